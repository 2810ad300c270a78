"use strict";
// Pushes to this browser. Without support for them nothing of it is shown; turning them off works without this.

const part = document.getElementById("device");
const form = part && part.querySelector("form[action='/account/push']");
const WORKER = "/push-worker.js";

function say(text) {
  part.querySelector("[role=status]").textContent = text;
}

function fill(subscription) {
  const { endpoint, keys } = subscription.toJSON();
  form.elements.endpoint.value = endpoint;
  form.elements.p256dh.value = keys.p256dh;
  form.elements.auth.value = keys.auth;
}

// Asks for permission, which browsers allow only after a click, and takes a subscription for our key.
async function subscribed() {
  if ((await Notification.requestPermission()) !== "granted") {
    say("Your browser does not allow notices from this site. Its settings can change that.");
    return null;
  }
  await navigator.serviceWorker.register(WORKER, { scope: "/" });
  const { pushManager } = await navigator.serviceWorker.ready;
  const before = await pushManager.getSubscription();
  if (before) await before.unsubscribe(); // it may be for a key that we had before
  return pushManager.subscribe({ userVisibleOnly: true, applicationServerKey: part.dataset.key });
}

let ready = false;
let asking = false;

async function turnOn(event) {
  if (ready) return; // the fields are filled: it is sent as any form
  event.preventDefault();
  event.stopImmediatePropagation();
  if (asking) return;
  asking = true;
  try {
    const subscription = await subscribed();
    if (subscription) {
      fill(subscription);
      ready = true;
      form.requestSubmit();
    }
  } catch {
    say("Your browser could not turn notices on. Try again later.");
  } finally {
    asking = false;
  }
}

// What the page says and what the browser has may have come apart: signed out, permission withdrawn, renewed.
async function compare() {
  const registration = await navigator.serviceWorker.getRegistration("/");
  const subscription = registration && (await registration.pushManager.getSubscription());
  if (!("on" in part.dataset)) {
    if (subscription) await subscription.unsubscribe();
  } else if (subscription) {
    fill(subscription);
    await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)), redirect: "manual" });
  } else {
    form.hidden = false;
    say("Your browser has turned notices off.");
  }
}

if (form && "serviceWorker" in navigator && "PushManager" in window && "Notification" in window) {
  part.hidden = false;
  form.addEventListener("submit", turnOn);
  compare().catch(() => say("Your browser does not say whether it shows notices."));
}
