"use strict";
(() => {
  const plots = [...document.querySelectorAll(".plot")].map((element) => ({
    element,
    figure: JSON.parse(element.querySelector("script").textContent),
  }));
  const colour = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function fewerTicks({ tickvals, ticktext }) {
    if (!tickvals || tickvals.length < 6) return {};
    const keep = (_, index) => index % 2 === 0;
    return { tickvals: tickvals.filter(keep), ticktext: ticktext.filter(keep) };
  }

  function axis(settings, narrow, isHorizontal) {
    const title = settings.title && { ...settings.title, font: { size: 12, color: colour("--soft") } };
    return {
      ...settings,
      ...(title && { title }),
      ...(narrow && fewerTicks(settings)),
      color: colour("--text"),
      gridcolor: colour("--grid"),
      linecolor: colour("--line"),
      zerolinecolor: colour("--line"),
      tickfont: { size: narrow ? 10 : 12 },
      fixedrange: matchMedia("(pointer: coarse)").matches,
      automargin: isHorizontal ? "height" : "width",
    };
  }

  function themed(layout, narrow) {
    const result = {
      ...layout,
      showlegend: false,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: narrow ? 11 : 13, color: colour("--text") },
      hoverlabel: {
        bgcolor: colour("--panel"), bordercolor: colour("--line"), align: "left",
        font: { color: colour("--text"), size: 12 },
      },
      margin: narrow ? { l: 10, r: 18, t: 14, b: 36 } : { l: 20, r: 24, t: 16, b: 44 },
    };
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(key)) result[key] = axis(layout[key], narrow, key[0] === "x");
    }
    if (layout.annotations) {
      result.annotations = layout.annotations.map((note) => ({
        ...note, font: { size: narrow ? 10 : 12, color: colour("--soft") },
      }));
    }
    return result;
  }

  const plainText = (markup) => new DOMParser().parseFromString(markup, "text/html").body.textContent;

  function addLegend({ element, figure }) {
    const { data, layout } = figure;
    const named = data.filter((trace) => trace.name && trace.showlegend !== false);
    if (named.length < 2 && !layout.showlegend) return;
    const legend = document.createElement("div");
    legend.className = "legend";
    for (const trace of named) {
      const button = document.createElement("button");
      const swatch = document.createElement("i");
      swatch.style.background = trace.marker?.color ?? trace.line?.color ?? colour("--soft");
      button.type = "button";
      button.ariaPressed = "true";
      button.append(swatch, plainText(trace.name));
      button.addEventListener("click", () => {
        const isShown = button.ariaPressed !== "true";
        button.ariaPressed = String(isShown);
        const belongs = (other) => other === trace || (trace.legendgroup && other.legendgroup === trace.legendgroup);
        for (const other of data.filter(belongs)) other.visible = isShown;
        draw({ element, figure });
      });
      legend.append(button);
    }
    element.before(legend);
  }

  function draw({ element, figure }) {
    const narrow = element.clientWidth < 560;
    const options = { responsive: true, displaylogo: false, displayModeBar: false };
    return Plotly.react(element, figure.data, themed(figure.layout, narrow), options);
  }

  const drawAll = () => Promise.all(plots.map(draw));
  for (const plot of plots) {
    plot.element.replaceChildren();
    addLegend(plot);
  }
  if (plots.length) drawAll().then(() => document.documentElement.classList.add("drawn"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  matchMedia("(max-width: 600px)").addEventListener("change", drawAll);
})();
