// Draws the curves that a page carries as JSON: {"<metric>": [[series name, [[x, y], …]], …]}.
/* global uPlot */
const host = document.getElementById("curves");
const palette = { light: ["#0d625c", "#a34a00", "#1857a4", "#8a2a75", "#5d6700"], dark: ["#62c6ba", "#f0a35e", "#86b9f5", "#e08ccb", "#c3cf62"] };
const charts = new Map();
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });
const overTime = host?.dataset.x === "time"; // else over rounds

// the resolved ink tells which theme rules, whoever chose it
const dark = () => Number(getComputedStyle(host).color.match(/\d+/)[0]) > 128;

function read() {
  const found = document.getElementById("curves-data");
  return found ? JSON.parse(found.textContent) : {};
}

function columns(series) {
  const xs = [...new Set(series.flatMap(([, points]) => points.map(([x]) => x)))].sort((a, b) => a - b);
  const at = series.map(([, points]) => new Map(points));
  return [xs, ...at.map((map) => xs.map((x) => map.get(x) ?? null))];
}

function draw(metric, series) {
  const colours = palette[dark() ? "dark" : "light"];
  const ink = getComputedStyle(host).getPropertyValue("color");
  const grid = { stroke: dark() ? "#30363b" : "#e3e3dc", width: 1 };
  const figure = document.createElement("figure");
  figure.className = "chart";
  const caption = document.createElement("figcaption");
  caption.textContent = metric;
  const plot = document.createElement("div");
  plot.className = "plot";
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", `Curve of ${metric} over ${overTime ? "time" : "rounds"}; the numbers are in the tables.`);
  figure.append(caption, plot);
  host.append(figure);
  const axis = { stroke: ink, grid, ticks: grid, font: "12px system-ui, sans-serif" };
  const chart = new uPlot(
    {
      width: plot.clientWidth || 360,
      height: 190,
      scales: { x: { time: overTime } },
      legend: { show: true, live: true },
      cursor: { y: false },
      axes: [
        overTime
          ? axis
          : { ...axis, size: 32, gap: 4, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], label: "round", labelSize: 16, labelFont: axis.font },
        { ...axis, size: 58, values: (_, ticks) => ticks.map((tick) => short.format(tick)) },
      ],
      series: [
        { label: overTime ? "time" : "round" },
        ...series.map(([name], i) => ({
          label: name,
          stroke: colours[i % colours.length],
          width: 2,
          spanGaps: true,
          points: { show: !overTime, size: 5 },
          value: (_, v) => (v === null ? "–" : Number(v).toPrecision(4)),
        })),
      ],
    },
    columns(series),
    plot,
  );
  return { chart, figure, plot, names: JSON.stringify(series.map(([name]) => name)) };
}

function refresh(fresh = false) {
  const data = read();
  const metrics = Object.keys(data);
  for (const [metric, made] of charts) {
    const same = metrics.includes(metric) && made.names === JSON.stringify(data[metric].map(([name]) => name));
    if (!same || fresh) {
      made.chart.destroy();
      made.figure.remove();
      charts.delete(metric);
    }
  }
  for (const metric of metrics) {
    const made = charts.get(metric);
    if (made) made.chart.setData(columns(data[metric]));
    else charts.set(metric, draw(metric, data[metric]));
  }
  host.closest("[data-curves-panel]")?.toggleAttribute("hidden", metrics.length === 0);
}

if (host) {
  host.closest("[data-curves-panel]")?.removeAttribute("hidden");
  refresh();
  document.body.addEventListener("htmx:afterSettle", () => refresh());
  document.documentElement.addEventListener("studio-theme", () => refresh(true));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => refresh(true));
  new ResizeObserver(() => {
    for (const { chart, plot } of charts.values()) {
      if (plot.clientWidth && plot.clientWidth !== chart.width) chart.setSize({ width: plot.clientWidth, height: 190 });
    }
  }).observe(host);
}
