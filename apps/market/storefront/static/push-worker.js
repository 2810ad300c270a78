"use strict";
// Shows what is pushed, also while no page is open, and opens what it is about.

self.addEventListener("install", () => self.skipWaiting());

function readable(data) {
  try {
    return data.json();
  } catch {
    return {};
  }
}

// A browser takes the permission away from who gets pushes and shows nothing, so something is always shown.
self.addEventListener("push", (event) => {
  const told = readable(event.data);
  const shown = self.registration.showNotification(String(told.title || "Something is new on market"), {
    body: String(told.body || ""),
    tag: `notice-${told.id || 0}`, // pushed twice, shown once
    data: { link: String(told.link || "") },
  });
  event.waitUntil(shown);
});

// On this site only, whatever the push says.
function target(link) {
  try {
    const address = new URL(link, self.location.origin);
    if (link && address.origin === self.location.origin) return address.href;
  } catch {
    // No address at all.
  }
  return new URL("/notifications", self.location.origin).href;
}

async function open(address) {
  const pages = await self.clients.matchAll({ type: "window", includeUncontrolled: true });
  const same = pages.find((page) => page.url === address);
  return same ? same.focus() : self.clients.openWindow(address);
}

self.addEventListener("notificationclick", (event) => {
  event.notification.close();
  event.waitUntil(open(target(event.notification.data.link)));
});
