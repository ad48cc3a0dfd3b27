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
  const form = document.querySelector(".axis");
  const timeUnit = form.querySelector("[value=time]").parentElement.textContent;
  const axisTitles = { tokens: "tokens trained on", time: `${timeUnit} of training`, steps: "steps" };

  const axisStyle = (line, muted) => ({
    automargin: true, gridcolor: line, linecolor: line, zeroline: false, tickfont: { color: muted, size: 11 },
  });

  const chosenAxis = () => new FormData(form).get("axis");

  // The charts of training have one x axis, so they are zoomed together; [from, to] along the chosen axis.
  let zoom = null;
  let revision = 0;
  const isTraining = (chart) => figures.get(chart).data.some((trace) => trace.meta.x);
  const fullRange = () => {
    const axis = chosenAxis();
    const x = charts.filter(isTraining).flatMap((chart) => figures.get(chart).data.flatMap((trace) => trace.meta.x[axis]));
    return x.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  };

  // An exponential moving average with bias correction: the first values are not drawn towards zero.
  const movingAverage = (values, weight) => {
    let sum = 0;
    let seen = 0;
    return values.map((value) => {
      if (value === null) return null;
      sum = weight * sum + (1 - weight) * value;
      seen += 1;
      return sum / (1 - weight ** seen);
    });
  };

  const withAverage = (trace) => {
    const weight = Number(form.elements.smoothing.value);
    if (!weight || !trace.meta.smooth) return [trace];
    const average = { ...trace, y: movingAverage(trace.y, weight), mode: "lines" };
    // Over many points there is a pale curve already, of which this one is the mean.
    if (trace.meta.smooth === "mean") return [average];
    const pale = { opacity: 0.35, showlegend: false, hoverinfo: "skip", hovertemplate: null };
    return [{ ...trace, ...pale, line: { ...trace.line, width: 1 } }, average];
  };

  const visibleRange = (traces, [from, to], fromZero) => {
    const seen = traces.flatMap(({ x, y }) => y.filter((value, point) => value !== null && x[point] >= from && x[point] <= to));
    if (!seen.length) return {};
    const low = seen.reduce((least, value) => Math.min(least, value), fromZero ? 0 : Infinity);
    const high = seen.reduce((most, value) => Math.max(most, value), -Infinity);
    const margin = 0.06 * (high - low || Math.abs(high) || 1);
    return { autorange: false, range: [fromZero && low === 0 ? 0 : low - margin, high + margin] };
  };

  const draw = (chart) => {
    const css = getComputedStyle(document.documentElement);
    const color = (name) => css.getPropertyValue(`--${name}`).trim();
    const [text, muted, line, panel] = ["text", "muted", "line", "panel"].map(color);
    const along = chosenAxis();
    const { data, layout, events } = figures.get(chart);
    const traces = data.flatMap(withAverage).map((trace) => {
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
    const zoomed = isTraining(chart) && zoom;
    const xRange = zoomed ? { autorange: false, range: zoom } : {};
    const yRange = zoomed ? visibleRange(traces, zoom, layout.yaxis.rangemode === "tozero") : {};
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
      // Without it Plotly keeps what it computed from points that are the same, and loses the range of the axes.
      datarevision: ++revision,
      // What Plotly itself has zoomed stays so when the page is drawn anew.
      ...(isTraining(chart) ? {} : { uirevision: true }),
      xaxis: { ...layout.xaxis, ...axisStyle(line, muted), ...xRange, title: { ...title, font: small } },
      yaxis: {
        exponentformat: "none", separatethousands: true, ...layout.yaxis, ...axisStyle(line, muted),
        ...yRange, fixedrange: true, title: { ...layout.yaxis.title, font: small },
      },
      shapes: [...fixed, ...vertical],
    }, { displayModeBar: false, doubleClick: "autosize", responsive: true });
  };

  const drawAll = () => {
    form.elements.weight.value = Number(form.elements.smoothing.value).toFixed(2);
    for (const name of ["out", "left", "right", "reset"]) form.elements[name].disabled = !zoom;
    charts.forEach(draw);
  };

  const show = (range) => {
    const [low, high] = fullRange();
    zoom = range && (range[0] > low || range[1] < high) ? range : null;
    drawAll();
  };

  // Makes the range `factor` as wide, and moves it by `shift` of its width, within the data.
  const move = (factor, shift) => {
    const [low, high] = fullRange();
    const [from, to] = zoom || [low, high];
    const width = Math.min((to - from) * factor, high - low);
    const start = (from + to - width) / 2 + shift * width;
    const begin = Math.min(Math.max(start, low), high - width);
    show([begin, begin + width]);
  };

  drawAll();
  for (const chart of charts.filter(isTraining)) {
    chart.on("plotly_relayout", (change) => {
      if ("xaxis.range[0]" in change) show([change["xaxis.range[0]"], change["xaxis.range[1]"]]);
      else if (change["xaxis.autorange"]) show(null);
    });
  }
  dark.addEventListener("change", drawAll);
  form.addEventListener("input", (event) => {
    if (event.target.name === "axis") zoom = null;
    drawAll();
  });
  const moves = { in: [0.5, 0], out: [2, 0], left: [1, -0.5], right: [1, 0.5] };
  form.addEventListener("click", ({ target }) => {
    if (target.name === "reset") show(null);
    else if (target.name in moves) move(...moves[target.name]);
  });
})();
