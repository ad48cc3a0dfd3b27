"use strict";
(async () => {
  const charts = [...document.querySelectorAll(".chart")];
  const problem = document.getElementById("chart-error");
  try {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const library = document.createElement("script");
    library.textContent = await new Response(stream).text();
    document.head.append(library);
  } catch (error) {
    problem.hidden = false;
    problem.textContent = `The charts cannot be drawn: this browser does not unpack gzip (${error}). A newer one does.`;
    return;
  }

  const figures = new Map(charts.map((chart) => [chart, JSON.parse(chart.querySelector("script").textContent)]));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)");
  const timeUnit = document.querySelector(".axis [value=time]").parentElement.textContent;
  const axisTitles = { tokens: "tokens trained on", time: `${timeUnit} of training`, steps: "steps" };

  const axisStyle = (line, muted) => ({
    automargin: true, gridcolor: line, linecolor: line, zeroline: false, tickfont: { color: muted, size: 11 },
  });

  const draw = (chart) => {
    const css = getComputedStyle(document.documentElement);
    const color = (name) => css.getPropertyValue(`--${name}`).trim();
    const [text, muted, line, panel] = ["text", "muted", "line", "panel"].map(color);
    const along = new FormData(document.querySelector(".axis")).get("axis");
    const { data, layout, events } = figures.get(chart);
    const traces = data.map((trace) => {
      const own = trace.meta.muted ? muted : color(`color-${trace.meta.color % 6}`);
      const fill = trace.fill === "tozeroy" ? { fillcolor: own + "33" } : {};
      const x = trace.meta.x ? trace.meta.x[along] : trace.x;
      const mark = { size: 5, ...trace.marker, color: own, line: { ...(trace.marker || {}).line, color: own } };
      if (mark.symbol === "x-thin") mark.line.width = 2;
      const error = trace.error_y ? { error_y: { ...trace.error_y, color: own } } : {};
      const line = { width: 2, ...trace.line, color: own };
      return { hovertemplate: "%{y}", ...trace, ...fill, ...error, x, line, marker: mark };
    });
    const title = data.some((trace) => trace.meta.x) ? { text: axisTitles[along] } : (layout.xaxis || {}).title;
    const fixed = (layout.shapes || []).map((shape) => ({ ...shape, line: { color: muted, width: 1, dash: "dot" } }));
    const vertical = (events || []).map((event) => ({
      type: "line", x0: event.x[along], x1: event.x[along], yref: "paper", y0: 0, y1: 1, layer: "below", opacity: 0.7,
      line: { color: "color" in event ? color(`color-${event.color % 6}`) : muted, width: 1, dash: event.dash },
    }));
    const small = { color: muted, size: 12 };
    Plotly.react(chart, traces, {
      margin: { l: 8, r: 12, t: 8, b: 8 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      hovermode: "x unified",
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: text, family: getComputedStyle(document.body).fontFamily, size: 12 },
      dragmode: touch.matches ? false : "zoom",
      hoverlabel: { bgcolor: panel, bordercolor: line, font: { color: text } },
      xaxis: { ...layout.xaxis, ...axisStyle(line, muted), title: { ...title, font: small } },
      yaxis: {
        exponentformat: "none", separatethousands: true, ...layout.yaxis, ...axisStyle(line, muted),
        title: { ...layout.yaxis.title, font: small },
      },
      shapes: [...fixed, ...vertical],
    }, { displayModeBar: false, responsive: true });
  };

  const drawAll = () => charts.forEach(draw);
  drawAll();
  dark.addEventListener("change", drawAll);
  document.querySelector(".axis").addEventListener("change", drawAll);
})();
