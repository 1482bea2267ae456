// What every page does: menus, dialogs, copying, toasts, upload progress, the theme.
import { startTimes } from "./times.js";

const all = (selector, root = document) => [
  ...(root.matches?.(selector) ? [root] : []),
  ...root.querySelectorAll(selector),
];

export function toast(text, kind = "") {
  const box = document.createElement("div");
  box.className = `toast ${kind}`;
  box.dataset.toast = "";
  const words = document.createElement("span");
  words.textContent = text;
  const close = document.createElement("button");
  close.type = "button";
  close.className = "quiet";
  close.dataset.dismiss = "";
  close.textContent = "Dismiss";
  box.append(words, close);
  say(box);
}

// Above an open dialog only what is inside it can be seen and pressed.
function say(box) {
  const dialog = all("dialog:modal").pop();
  let home = document.getElementById("toasts");
  if (dialog) {
    home = dialog.querySelector(".toasts") || document.createElement("div");
    home.className = "toasts";
    home.setAttribute("role", "status");
    dialog.append(home);
  }
  home.append(box);
  fade(box);
}

function fade(box) {
  const bad = box.classList.contains("bad") || box.classList.contains("error");
  if (!bad) setTimeout(() => box.remove(), 8000);
}

async function copy(button) {
  const source = button.dataset.copy || document.getElementById(button.dataset.copyFrom)?.textContent || "";
  try {
    await navigator.clipboard.writeText(source);
  } catch {
    // without a secure context there is no clipboard API; a selected field still copies
    const field = document.createElement("textarea");
    field.value = source;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  toast("Copied.");
}

function open(dialog) {
  if (!dialog) return;
  const field = ":is(input:not([type=hidden]), select, textarea)";
  // the page came with the dialog open, and somebody is already typing in it
  const typing = dialog.open && dialog.contains(document.activeElement) && document.activeElement.closest(field);
  if (dialog.open) dialog.close();
  dialog.showModal();
  if (typing) return typing.focus();
  const wrong = dialog.querySelector(`${field}[aria-invalid=true]`);
  (wrong || dialog.querySelector(`.dialog-body ${field}`))?.focus();
}

document.addEventListener("click", (event) => {
  const target = event.target.closest?.("[data-copy],[data-copy-from],[data-opens],[data-closes],[data-dismiss],[data-menu]");
  all("details.menu[open]").forEach((menu) => menu.contains(event.target) || menu.removeAttribute("open"));
  if (!target) return;
  if ("copy" in target.dataset || "copyFrom" in target.dataset) copy(target);
  else if ("opens" in target.dataset) {
    event.preventDefault();
    open(document.getElementById(target.dataset.opens));
  } else if ("closes" in target.dataset) {
    event.preventDefault();
    const dialog = target.closest("dialog");
    dialog.close();
    if (dialog.dataset.leave) location.assign(dialog.dataset.leave);
  } else if ("dismiss" in target.dataset) target.closest("[data-toast]").remove();
  else {
    const sidebar = document.getElementById("sidebar");
    const shown = sidebar.toggleAttribute("data-open");
    target.setAttribute("aria-expanded", String(shown));
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") all("details.menu[open]").forEach((menu) => menu.removeAttribute("open"));
});

// A destructive button wakes up once the name is typed; the server checks it again.
document.addEventListener("input", (event) => {
  const field = event.target.closest?.("[data-must-equal]");
  if (!field) return;
  const button = field.form.querySelector("[type=submit]");
  button.disabled = field.value.trim() !== field.dataset.mustEqual;
});

// Fields that a choice needs (data-needs="name=value"; a ticked box is "on") are shown with it only, and so are fields
// that need one of those. Without a script they are always there.
function suit(form) {
  all("[data-needs]", form).forEach((part) => {
    const [name, value] = part.dataset.needs.split("=");
    const field = form.elements[name];
    const now = field.type === "checkbox" ? (field.checked ? "on" : "") : field.value;
    const reached = !field.closest("[data-needs][hidden]");
    part.hidden = part.disabled = now !== value || !reached;
  });
}

document.addEventListener("change", (event) => {
  if (event.target.form) suit(event.target.form);
  if (event.target.matches?.("[data-theme-choice]")) window.studioTheme.set(event.target.value);
  if (event.target.matches?.("[data-submit-on-change]")) event.target.form.requestSubmit();
});

function prepare(root) {
  all("[data-must-equal]", root).forEach((field) => {
    field.form.querySelector("[type=submit]").disabled = field.value.trim() !== field.dataset.mustEqual;
  });
  all("details[data-scripted]", root).forEach((part) => (part.open = true)); // what it folds is shown field by field
  all("form:has([data-needs])", root).forEach(suit);
  all("[data-theme-choice]", root).forEach((field) => {
    field.checked = field.value === window.studioTheme.get();
  });
  all("dialog[open]", root).forEach((dialog) => dialog.matches(":modal") || open(dialog));
  all("[data-toast]", root).forEach(fade);
  startTimes(root);
}

const htmx = document.body;
htmx.addEventListener("htmx:load", (event) => prepare(event.detail.elt));
htmx.addEventListener("htmx:xhr:progress", (event) => {
  const form = event.target.closest?.("form");
  const bar = form?.querySelector("progress[data-upload]");
  if (!bar || !event.detail.lengthComputable) return;
  bar.hidden = false;
  bar.max = event.detail.total;
  bar.value = event.detail.loaded;
  const words = form.querySelector("[data-upload-words]");
  if (words) {
    const share = Math.round((100 * event.detail.loaded) / event.detail.total);
    words.textContent = share < 100 ? `Uploading: ${share} %` : "Uploaded. Checking the file …";
  }
});
// one upload at a time, and the button says so
htmx.addEventListener("htmx:beforeRequest", (event) => {
  event.target.closest?.("form[data-upload-form]")?.querySelectorAll("[type=submit]").forEach((b) => (b.disabled = true));
});
htmx.addEventListener("htmx:afterRequest", (event) => {
  const form = event.target.closest?.("form[data-upload-form]");
  if (!form) return;
  form.querySelectorAll("[type=submit]").forEach((b) => (b.disabled = false));
  const bar = form.querySelector("progress[data-upload]");
  if (bar) bar.hidden = true;
  const words = form.querySelector("[data-upload-words]");
  if (words) words.textContent = "";
});
// An error is a toast, never a page inside a page. 422 is a form that shows its own errors.
htmx.addEventListener("htmx:beforeSwap", (event) => {
  const { xhr } = event.detail;
  if (new URL(xhr.responseURL || location.href).pathname.startsWith("/accounts/login/")) {
    event.detail.shouldSwap = false;
    location.reload(); // logged out meanwhile: the page itself leads to the login and back
    return;
  }
  if (xhr.status < 400 || xhr.status === 422) {
    if (xhr.status === 422) event.detail.shouldSwap = true;
    return;
  }
  event.detail.shouldSwap = false;
  const found = new DOMParser().parseFromString(xhr.responseText, "text/html").querySelector("[data-toast]");
  const background = event.detail.requestConfig?.triggeringEvent?.type?.startsWith("studio:");
  if (found) {
    say(document.adoptNode(found));
  } else if (!background) toast(`The server could not do that (${xhr.status}). Try again.`, "bad");
});
// What a reader opened stays open when its part of the page is drawn anew.
let opened = new Set();
const nameOf = (details) => {
  const home = details.closest("tr[id], [id]");
  return `${home?.id}:${home ? all("details", home).indexOf(details) : 0}`;
};
htmx.addEventListener("htmx:beforeSwap", (event) => {
  opened = new Set(all("details[open]:not(.menu)", event.detail.target).map(nameOf));
});
htmx.addEventListener("htmx:afterSwap", () => {
  if (opened.size) all("#main details").forEach((details) => opened.has(nameOf(details)) && (details.open = true));
});
htmx.addEventListener("htmx:sendError", (event) => {
  const background = event.detail.requestConfig?.triggeringEvent?.type?.startsWith("studio:");
  if (!background) toast("Studio does not answer. Check the connection and try again.", "bad");
});

prepare(document);
