// Live pages. The page was rendered complete up to event `data-after`; from there this listens. Every event is
// told once, as the DOM events `studio:<first word of its kind>` and `studio:event`; parts of the page listen
// to them and fetch themselves again. Bursts are gathered, so that a busy round costs one fetch a second.
import { toast } from "./page.js";

const body = document.body;
const path = body.dataset.live;
const polling = body.dataset.poll !== "off" && new URLSearchParams(location.search).get("poll") !== "off";
const POLL_MS = 5000;
const GATHER_MS = 200;
const BUSY_MS = 1000;
const KNOWN = 5000;

const drawn = Number(body.dataset.after || 0);
const drawnAt = Date.now();
let last = Number(body.dataset.after || 0);
let socket = null;
let tries = 0;
let ended = false;
let lastTold = 0;
let timer = null;
const known = new Set();
const gathered = new Set();

function say(state, words) {
  const sign = document.getElementById("live-state");
  if (!sign) return;
  sign.dataset.state = state;
  sign.title = words;
  sign.firstElementChild.textContent = words;
}

function tell() {
  timer = null;
  lastTold = Date.now();
  const names = [...gathered];
  gathered.clear();
  for (const name of names) body.dispatchEvent(new CustomEvent(`studio:${name}`));
}

function gather(...names) {
  names.forEach((name) => gathered.add(name));
  if (timer === null) timer = setTimeout(tell, Math.max(GATHER_MS, lastTold + BUSY_MS - Date.now()));
}

// Ids may commit out of order, so the server begins a little before `after`; what is known is dropped here.
function take(event) {
  if (!event || typeof event.id !== "number" || known.has(event.id)) return;
  known.add(event.id);
  if (known.size > KNOWN) known.delete(known.values().next().value);
  last = Math.max(last, event.id);
  const inThePage = event.id <= drawn && Date.parse(event.at) < drawnAt - 10000;
  if (!inThePage) gather(String(event.kind).split(".")[0], "event");
}

function connect() {
  if (ended || (socket && socket.readyState <= WebSocket.OPEN)) return;
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  socket = new WebSocket(`${scheme}//${location.host}${path}?after=${last}`);
  socket.onopen = () => {
    tries = 0;
    say("live", "Live");
  };
  socket.onmessage = (message) => {
    const data = JSON.parse(message.data);
    (Array.isArray(data) ? data : [data]).forEach(take);
  };
  socket.onclose = (close) => {
    socket = null;
    if (close.code === 4401 || close.code === 4404) {
      ended = true;
      say("off", "Not live");
      toast(
        close.code === 4401 ? "You are logged out. Reload the page to log in." : "You no longer have access to this project.",
        "bad",
      );
      return;
    }
    say("waiting", polling ? "Reconnecting, refreshing every 5 s" : "Reconnecting");
    const wait = Math.min(5000, 500 * 2 ** tries++);
    setTimeout(connect, wait * (0.5 + Math.random() / 2));
  };
}

if (path) {
  say("waiting", "Connecting");
  connect();
  addEventListener("online", connect);
  document.addEventListener("visibilitychange", () => document.hidden || connect());
  setInterval(() => {
    const open = socket && socket.readyState === WebSocket.OPEN;
    if (polling && !ended && !open && !document.hidden) gather("poll", "event");
  }, POLL_MS);
}

// The tail of events: rows that were not there before light up; pausing keeps what is on the page.
let newest = newestRow();
function newestRow() {
  return Math.max(0, ...[...document.querySelectorAll("tr[data-event]")].map((row) => Number(row.dataset.event)));
}
body.addEventListener("htmx:afterSettle", () => {
  const rows = [...document.querySelectorAll("tr[data-event]")];
  rows.filter((row) => newest && Number(row.dataset.event) > newest).forEach((row) => row.classList.add("is-new"));
  newest = Math.max(newest, newestRow());
});
body.addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-pause]");
  if (!button) return;
  const paused = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(paused));
  button.textContent = paused ? "Resume" : "Pause";
  if (!paused) gather("event");
});
const ofItself = (event) => event.detail.requestConfig?.triggeringEvent?.type?.startsWith("studio:");
const isPaused = () => Boolean(document.querySelector("[data-pause][aria-pressed=true]"));
body.addEventListener("htmx:beforeRequest", (event) => {
  // a page whose dialog is open, or whose field is being typed in, must not change under the hands
  const busy = event.detail.elt.contains(document.activeElement) && document.activeElement.matches("input, textarea, select");
  if (ofItself(event) && (isPaused() || busy)) event.preventDefault();
});
// what was asked for before the pause may be answered after it
body.addEventListener("htmx:beforeSwap", (event) => {
  if (ofItself(event) && isPaused()) event.detail.shouldSwap = false;
});
