// Relative times and countdowns. The server's words stand until this runs, and the exact time is in the title.
const seconds = (element) => (Date.parse(element.dateTime) - Date.now()) / 1000;

function span(s) {
  if (s < 60) return `${Math.floor(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} d`;
}

export function ago(s) {
  if (s > -5 && s < 5) return "just now";
  return s < 0 ? `${span(-s)} ago` : `in ${span(s)}`;
}

function clock(s) {
  if (s <= 0) return "now due";
  const whole = Math.ceil(s);
  if (whole < 60) return `${whole} s left`;
  const pad = (n) => String(n).padStart(2, "0");
  const [h, m, sec] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60), whole % 60];
  return h ? `${h}:${pad(m)}:${pad(sec)} left` : `${m}:${pad(sec)} left`;
}

function write(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

export function startTimes(root) {
  const found = root.matches?.("time") ? [root] : root.querySelectorAll?.("time[datetime]") || [];
  for (const element of found) {
    if ("relative" in element.dataset) write(element, ago(seconds(element)));
    else if ("countdown" in element.dataset) write(element, clock(seconds(element)));
  }
}

setInterval(() => {
  document.querySelectorAll("time[data-countdown]").forEach((e) => write(e, clock(seconds(e))));
}, 1000);
setInterval(() => {
  document.querySelectorAll("time[data-relative]").forEach((e) => write(e, ago(seconds(e))));
}, 15000);
