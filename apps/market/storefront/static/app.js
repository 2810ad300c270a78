"use strict";
// Everything works without this file. It shows moments in the reader's own time, sends forms once, closes
// menus, suggests while somebody searches, and hears at once what is new.

for (const moment of document.querySelectorAll("time.moment")) {
  const at = new Date(moment.dateTime);
  moment.title = moment.textContent;
  moment.textContent = at.toLocaleString("en-GB", { dateStyle: "long", timeStyle: "short" });
}

// A form is sent once: a second click on its button does nothing. Coming back to the page frees it again.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.dataset.sent) {
    event.preventDefault();
  } else if (form.method === "post") {
    form.dataset.sent = "yes";
    form.setAttribute("aria-busy", "true");
  }
});
window.addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) {
    delete form.dataset.sent;
    form.removeAttribute("aria-busy");
  }
});

// Menus close on Escape and when something else is chosen.
for (const menu of document.querySelectorAll("details.menu")) {
  document.addEventListener("click", (event) => {
    if (!menu.contains(event.target)) menu.open = false;
  });
  menu.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && menu.open) {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  });
}
