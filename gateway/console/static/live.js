// Live updates, countdowns and keys. Every page works without this file.
"use strict";

const $ = (selector, root = document) => root.querySelector(selector);
const dialog = $("#dialog");

// --- live: the server says that something changed, and htmx asks for the part that shows it ---

function listen() {
  const state = $("#live");
  if (!state || !window.EventSource) return;
  const source = new EventSource(state.dataset.source);
  const say = (text, ok) => {
    state.textContent = text;
    state.classList.toggle("off", !ok);
  };
  source.onopen = () => {
    say("Live", true);
    document.body.dispatchEvent(new Event("changed")); // what came before the stream was open
  };
  source.onerror = () => say("Not live: connecting again", false);
  source.addEventListener("changed", () => document.body.dispatchEvent(new Event("changed")));
  window.addEventListener("pagehide", () => source.close());
}

// --- countdowns: seconds by the server's clock, so that a wrong one here does not matter ---

let ahead = 0;

function synchronize(root) {
  const clock = $("[data-now]", root) || (root.matches && root.matches("[data-now]") ? root : null);
  if (clock) ahead = Date.now() / 1000 - Number(clock.dataset.now);
}

function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (whole >= 2 * size) return `${Math.floor(whole / size)} ${unit}`;
  }
  return `${whole} s`;
}

function count() {
  const now = Date.now() / 1000 - ahead;
  for (const element of document.querySelectorAll("[data-until]")) {
    const left = Number(element.dataset.until) - now;
    const text = left > 0 ? `${span(left)} left` : "time is over";
    if (element.textContent !== text) element.textContent = text;
    element.classList.toggle("urgent", left < 120);
  }
}

// --- dialog: a question from the server, or the help ---

function show(content) {
  dialog.replaceChildren(content);
  if (!dialog.open) dialog.showModal();
}

async function ask(path) {
  const answer = await fetch(path, { headers: { "HX-Request": "true" } });
  if (answer.status === 401) return location.assign(answer.headers.get("hx-redirect") || "/console");
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const question = $("[data-dialog]", page);
  if (!question) return location.assign(path);
  synchronize(question);
  show(document.adoptNode(question));
  ($("[autofocus]", dialog) || dialog).focus();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-ask]");
  if (link && dialog && !event.metaKey && !event.ctrlKey) {
    event.preventDefault();
    ask(link.href);
  } else if (event.target === dialog || event.target.closest("[data-close]")) {
    event.preventDefault();
    dialog.close();
  }
});

// --- keys ---

function move(step) {
  const rows = [...document.querySelectorAll("a.row")];
  if (!rows.length) return;
  const at = rows.indexOf(document.activeElement);
  const next = at < 0 ? (step > 0 ? 0 : rows.length - 1) : at + step;
  rows[Math.max(0, Math.min(rows.length - 1, next))].focus();
}

function decide(decision) {
  const row = document.activeElement.closest("a.row[data-decidable]");
  const link = row ? `${row.href}/confirm?decision=${decision}` : $(`a[data-ask][data-key=${decision}]`)?.href;
  if (link) ask(link);
}

const KEYS = {
  j: () => move(1),
  k: () => move(-1),
  a: () => decide("approve"),
  d: () => decide("deny"),
  i: () => location.assign("/console"),
  "?": () => show($("#help").content.cloneNode(true)),
};

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select, [contenteditable]");
  if (typing || !dialog || dialog.open || event.ctrlKey || event.metaKey || event.altKey) return;
  const act = KEYS[event.key];
  if (act) {
    event.preventDefault();
    act();
  }
});

// The list is exchanged under the reader's hands: what was focused stays so.
let focused = "";
document.addEventListener("htmx:before:swap", () => {
  focused = document.activeElement?.id || "";
});
document.addEventListener("htmx:after:swap", (event) => {
  synchronize(event.target);
  count();
  if (focused && document.activeElement === document.body) document.getElementById(focused)?.focus();
});

synchronize(document.body);
count();
setInterval(count, 1000);
listen();
