"use strict";
(() => {
  const { charts } = JSON.parse(document.getElementById("data").textContent);
  const colors = ["#3b7dd8", "#e07b00", "#2c9c69", "#c8498f", "#8a63d2", "#b58900", "#0aa2b5", "#d9534f", "#6b8e23", "#8d6e63"];
  const themes = {
    light: { text: "#1c2330", faint: "#5f6b7c", line: "#d9dee6", card: "#ffffff", accent: "#1f63c4" },
    dark: { text: "#e6e9ef", faint: "#9aa5b4", line: "#333b47", card: "#1b2028", accent: "#7db1ff" },
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches; // where dragging scrolls the page
  const hidden = new Set();
  let printing = false;
  let weight = 0;

  const theme = () => themes[dark.matches && !printing ? "dark" : "light"];
  const color = (run) => colors[run % colors.length];
  const element = (chart) => document.getElementById(chart.id);

  // The exponential moving average of TensorBoard, whose first values are not drawn towards zero.
  function smooth(values) {
    if (weight === 0) return values;
    let last = 0;
    return values.map((value, index) => {
      last = last * weight + (1 - weight) * value;
      return last / (1 - weight ** (index + 1));
    });
  }

  function style(trace) {
    const { text, faint, line, card, accent } = theme();
    if (trace.type === "heatmap") return { colorscale: [[0, card], [1, accent]], xgap: 1, ygap: 1, showscale: false };
    const own = trace.run === undefined ? { accent, faint, text, second: colors[1] }[trace.color || "accent"] : color(trace.run);
    if (trace.type === "bar") return { marker: { color: own } };
    const band = trace.band ? { fill: "tonexty", fillcolor: own + "33" } : {};
    const width = trace.width === undefined ? 1.8 : trace.width;
    return { line: { color: own, width, dash: trace.dash || "solid" }, marker: { color: own, size: 6 }, connectgaps: true, ...band };
  }

  function traces(chart) {
    return chart.traces.map(({ run, dash, color: _, band, width, ...trace }, index) => ({
      ...trace,
      ...style(chart.traces[index]),
      y: chart.smooth ? smooth(trace.y) : trace.y,
      visible: !hidden.has(run),
      hoverlabel: { namelength: 40 },
    }));
  }

  function layout(chart) {
    const { text, line } = theme();
    const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true };
    const { xaxis, yaxis, ...rest } = chart.layout;
    return {
      autosize: !printing,
      ...(printing ? { width: 320 } : {}),
      height: 250,
      margin: { l: 44, r: 10, t: chart.layout.showlegend ? 30 : 8, b: 36 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: text, size: 12, family: getComputedStyle(document.body).fontFamily },
      showlegend: false,
      legend: { orientation: "h", y: 1, yanchor: "bottom", x: 0 },
      hovermode: "closest",
      dragmode: touch ? false : "zoom",
      ...rest,
      xaxis: { ...axis, title: { text: chart.x, standoff: 6 }, ...xaxis },
      yaxis: { ...axis, ...yaxis },
    };
  }

  const options = { responsive: true, displaylogo: false, displayModeBar: false };

  const drawn = new Set();
  function draw(chart) {
    drawn.add(chart);
    Plotly.react(element(chart), traces(chart), layout(chart), options);
  }
  const redraw = (isDue = () => true) => [...drawn].filter(isDue).forEach(draw);

  // Charts are drawn as they come into sight, one after another, so that a page of many runs opens at once.
  const queue = [];
  function drawNext() {
    const chart = queue.shift();
    if (chart && !drawn.has(chart)) draw(chart);
    document.body.dataset.drawn = String(drawn.size);
    if (queue.length) setTimeout(drawNext);
  }
  const observer = new IntersectionObserver((entries) => {
    const wasIdle = !queue.length;
    queue.push(...charts.filter((chart) => entries.some((entry) => entry.isIntersecting && entry.target.id === chart.id)));
    if (wasIdle) drawNext();
  }, { rootMargin: "200px" });
  charts.forEach((chart) => observer.observe(element(chart)));

  function sortBy(column, header) {
    const body = document.querySelector("#runs tbody");
    const down = header.getAttribute("aria-sort") !== "descending";
    const isNumber = body.rows[0].cells[column].hasAttribute("data-number");
    const value = (row) => row.cells[column].dataset.value;
    const compare = (a, b) => (isNumber ? value(a) - value(b) : value(a).localeCompare(value(b)));
    const rows = [...body.rows].sort((a, b) => {
      if (!value(a) || !value(b)) return !value(a) - !value(b); // what is not known stands last
      return down ? compare(b, a) : compare(a, b);
    });
    for (const other of document.querySelectorAll("#runs th")) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows);
  }

  document.querySelectorAll("#runs th").forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => sortBy(column, header));
  });
  for (const swatch of document.querySelectorAll(".swatch")) swatch.style.background = color(Number(swatch.dataset.run));
  for (const box of document.querySelectorAll("input[data-run]")) {
    box.addEventListener("change", () => {
      hidden[box.checked ? "delete" : "add"](Number(box.dataset.run));
      redraw((chart) => chart.traces.some((trace) => trace.run !== undefined));
    });
  }
  const slider = document.getElementById("smoothing");
  if (slider) {
    slider.addEventListener("input", () => {
      weight = Number(slider.value);
      document.getElementById("smoothing-value").textContent = weight.toFixed(2);
      redraw((chart) => chart.smooth);
    });
  }
  dark.addEventListener("change", () => redraw());
  addEventListener("beforeprint", () => { printing = true; charts.forEach(draw); });
  addEventListener("afterprint", () => { printing = false; redraw(); });
})();
