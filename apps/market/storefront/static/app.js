"use strict";
// Everything works without this file. It shows moments in the reader's own time, sends forms once, closes
// menus, suggests while somebody searches, and hears at once what is new.

function localTimes(part) {
  for (const moment of part.querySelectorAll("time.moment")) {
    const at = new Date(moment.dateTime);
    moment.title = moment.textContent;
    moment.textContent = at.toLocaleString("en-GB", { dateStyle: "long", timeStyle: "short" });
  }
}
localTimes(document);

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

// Suggestions while somebody types: one question at a time, the newest wins.
const search = document.querySelector("input[data-suggest]");
if (search) {
  const list = document.createElement("datalist");
  list.id = "suggestions";
  search.after(list);
  search.setAttribute("list", list.id);
  let waiting = 0;
  let asking = null;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    const text = search.value.trim();
    if (text.length < 2) return;
    waiting = setTimeout(async () => {
      if (asking) asking.abort();
      asking = new AbortController();
      try {
        const answer = await fetch(`${search.dataset.suggest}?q=${encodeURIComponent(text)}`, { signal: asking.signal });
        if (!answer.ok) return;
        list.replaceChildren(...(await answer.json()).map((value) => Object.assign(document.createElement("option"), { value })));
      } catch (error) {
        if (error.name !== "AbortError") list.replaceChildren();
      }
    }, 150);
  });
}

// Parts that are still on their way somewhere: looked at again when something is told, and from time to time.
async function renew(part) {
  if (document.hidden || part.contains(document.activeElement) || part.querySelector("details[open]")) return;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!answer.ok || answer.redirected) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById(part.id);
    if (fresh) {
      part.replaceWith(fresh);
      localTimes(fresh);
    }
  } catch {
    // The next look may find the server again.
  }
}

let looks = 0;
setInterval(() => {
  looks += 1;
  const pause = looks < 20 ? 1 : 5; // every 3 seconds for a minute, then every 15
  const part = document.querySelector("[data-live]");
  if (part && part.dataset.live !== "inbox" && looks % pause === 0) renew(part);
}, 3000);

// What is told, at once. Only a page that is looked at listens, so that many tabs take one connection.
const badge = document.querySelector("[data-unread]");
if (document.body.dataset.events && badge) {
  let source = null;
  let known = null;
  const listen = () => {
    source = new EventSource(document.body.dataset.events);
    source.addEventListener("unread", (event) => {
      const told = JSON.parse(event.data);
      badge.querySelector("[data-count]").textContent = told.count;
      badge.hidden = told.count === 0;
      if (known !== null && told.newest > known) {
        badge.classList.remove("fresh");
        void badge.offsetWidth;
        badge.classList.add("fresh");
        const part = document.querySelector("[data-live]");
        if (part) renew(part);
      }
      known = told.newest;
    });
    source.addEventListener("end", stop);
  };
  const stop = () => {
    if (source) source.close();
    source = null;
  };
  document.addEventListener("visibilitychange", () => (document.hidden ? stop() : source || listen()));
  window.addEventListener("pagehide", stop);
  window.addEventListener("pageshow", () => document.hidden || source || listen());
}
