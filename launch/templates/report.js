"use strict";
(async () => {
  const charts = [...document.querySelectorAll(".chart")];
  const fault = document.getElementById("chart-fault");
  try {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const library = document.createElement("script");
    library.textContent = await new Response(stream).text();
    document.head.append(library);
  } catch (error) {
    fault.hidden = false;
    fault.textContent = `The charts cannot be drawn: this browser does not unpack gzip (${error}). A newer one does.`;
    return;
  }

  const figures = new Map(charts.map((chart) => [chart, JSON.parse(chart.querySelector("script").textContent)]));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)");
  const timeUnit = document.querySelector(".axis [value=time]").parentElement.textContent;
  const axisTitles = { tokens: "tokens trained on", time: `${timeUnit} of training`, steps: "steps" };

  const axisLook = (line, muted) => ({
    gridcolor: line, linecolor: line, zeroline: false, tickfont: { color: muted, size: 11 },
  });

  const draw = (chart) => {
    const css = getComputedStyle(document.documentElement);
    const colour = (name) => css.getPropertyValue(`--${name}`).trim();
    const [text, muted, line, panel] = ["text", "muted", "line", "panel"].map(colour);
    const along = new FormData(document.querySelector(".axis")).get("axis");
    const { data, layout, events } = figures.get(chart);
    const traces = data.map((trace) => {
      const own = trace.meta.muted ? muted : colour(`colour-${trace.meta.colour % 6}`);
      const fill = trace.fill ? { fillcolor: own + "33" } : {};
      const x = trace.meta.x ? trace.meta.x[along] : trace.x;
      const mark = { ...trace.marker, color: own, line: { ...(trace.marker || {}).line, color: own } };
      if (mark.symbol === "x-thin") mark.line.width = 2;
      const error = trace.error_y ? { error_y: { ...trace.error_y, color: own } } : {};
      return { ...trace, ...fill, ...error, x, line: { ...trace.line, color: own }, marker: mark };
    });
    const runsAlong = data.some((trace) => trace.meta.x);
    const title = runsAlong ? { text: axisTitles[along] } : (layout.xaxis || {}).title;
    const fixed = (layout.shapes || []).map((shape) => ({ ...shape, line: { color: muted, width: 1, dash: "dot" } }));
    const upright = (events || []).map((event) => ({
      type: "line", x0: event.x[along], x1: event.x[along], yref: "paper", y0: 0, y1: 1, layer: "below", opacity: 0.7,
      line: { color: "colour" in event ? colour(`colour-${event.colour % 6}`) : muted, width: 1, dash: event.dash },
    }));
    const small = { color: muted, size: 12 };
    Plotly.react(chart, traces, {
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: text, family: getComputedStyle(document.body).fontFamily, size: 12 },
      dragmode: touch.matches ? false : "zoom",
      hoverlabel: { bgcolor: panel, bordercolor: line, font: { color: text } },
      xaxis: { ...layout.xaxis, ...axisLook(line, muted), title: { ...title, font: small } },
      yaxis: { ...layout.yaxis, ...axisLook(line, muted), title: { ...layout.yaxis.title, font: small } },
      shapes: [...fixed, ...upright],
    }, { displayModeBar: false, responsive: true });
  };

  const drawAll = () => charts.forEach(draw);
  drawAll();
  dark.addEventListener("change", drawAll);
  document.querySelector(".axis").addEventListener("change", drawAll);
})();
