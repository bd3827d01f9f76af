"use strict";
// Hands the figures to plotly in the colours of the theme; draws nothing itself.

const ROLES = ["page", "card", "text", "soft", "line", "main", "good", "bad", "warm", "cool", "accent"];

function themeColours() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(ROLES.map((role) => [role, style.getPropertyValue(`--${role}`).trim()]));
}

function coloured(value, colours) {
  if (Array.isArray(value)) return value;
  if (value === null || typeof value !== "object") return value;
  const copy = {};
  for (const [key, part] of Object.entries(value)) {
    if (key === "color") copy[key] = colours[part];
    else if (part === "heat") copy[key] = [[0, colours.card], [1, colours.main]];
    else copy[key] = coloured(part, colours);
  }
  return copy;
}

function themedLayout(layout, colours) {
  const axis = { gridcolor: colours.line, zerolinecolor: colours.line, linecolor: colours.line, automargin: true };
  const font = { size: 12.5, color: colours.soft };
  const titled = (given = {}) => ({ ...axis, ...given, title: { ...given.title, font } });
  return {
    height: 300,
    margin: { l: 8, r: 12, t: 34, b: 8 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colours.text, family: getComputedStyle(document.body).fontFamily, size: 12.5 },
    hoverlabel: { bgcolor: colours.card, bordercolor: colours.line, font: { color: colours.text } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: colours.soft } },
    ...layout,
    xaxis: titled(layout.xaxis),
    yaxis: titled(layout.yaxis),
  };
}

function drawCharts(charts) {
  const colours = themeColours();
  return Promise.all(
    charts.map((chart) => {
      const data = chart.data.map((trace) => coloured(trace, colours));
      const layout = themedLayout(chart.layout, colours);
      const settings = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
      return Plotly.react(`plot-${chart.id}`, data, layout, settings);
    }),
  );
}

async function showCharts(onMargin) {
  const script = await unpack("packed-plotly");
  if (!script) return;
  const charts = JSON.parse(await unpack("packed-charts"));
  document.head.append(element("script", { text: script }));
  const answers = document.getElementById("charts");
  if (answers) answers.hidden = false;
  await drawCharts(charts);
  const redraw = () => drawCharts(charts);
  document.addEventListener("theme", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  const margins = document.getElementById("plot-margins");
  if (margins) margins.on("plotly_click", (event) => onMargin(...event.points[0].customdata));
  document.documentElement.dataset.charts = "drawn";
}
