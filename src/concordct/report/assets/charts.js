"use strict";
// Numbers under the cursor for every chart; arrow keys step through the samples.
(() => {
  const text = (v) => {
    if (v === null) return "–";
    const size = Math.abs(v);
    return (size !== 0 && (size < 1e-3 || size >= 1e5) ? v.toExponential(2) : String(Number(v.toPrecision(3)))).replace(/-/g, "−");
  };
  for (const figure of document.querySelectorAll("figure.chart")) {
    const chart = JSON.parse(figure.querySelector("script").textContent);
    const svg = figure.querySelector("svg"), hover = svg.querySelector(".hover");
    const line = hover.querySelector("line"), dots = hover.querySelectorAll("circle");
    const output = figure.querySelector(".values");
    const [left, top, right, bottom] = chart.box;
    const toX = (x) => left + ((x - chart.x[0]) / (chart.x[1] - chart.x[0])) * (right - left);
    const scale = chart.log ? Math.log10 : (v) => v;
    const toY = (y) => bottom - ((scale(y) - scale(chart.y[0])) / (scale(chart.y[1]) - scale(chart.y[0]))) * (bottom - top);
    const longest = chart.series.reduce((a, s) => (s.x.length > a.length ? s.x : a), []);
    let sample = 0;
    const nearest = (xs, x) => {
      let best = 0;
      if (chart.steps) {
        while (best + 1 < xs.length && xs[best + 1] <= x) best++;
        return best;
      }
      for (let i = 1; i < xs.length; i++) if (Math.abs(xs[i] - x) < Math.abs(xs[best] - x)) best = i;
      return best;
    };
    function show(x) {
      if (!longest.length) return;
      sample = nearest(longest, x);
      const at = longest[sample];
      hover.setAttribute("visibility", "visible");
      line.setAttribute("x1", toX(at));
      line.setAttribute("x2", toX(at));
      const parts = [`${chart.x_label} ${text(at)}`];
      if (chart.x2) parts.push(`${chart.x2[0]} ${text(at * chart.x2[1])}`);
      chart.series.forEach((series, i) => {
        const k = nearest(series.x, at), y = series.x.length ? series.y[k] : null;
        const visible = y !== null && y >= chart.y[0] && y <= chart.y[1];
        dots[i].setAttribute("visibility", visible ? "inherit" : "hidden");
        if (visible) {
          dots[i].setAttribute("cx", toX(series.x[k]));
          dots[i].setAttribute("cy", toY(y));
        }
        parts.push(`${series.name} ${text(y)}`);
      });
      output.textContent = parts.join("  ·  ");
    }
    function hide() {
      hover.setAttribute("visibility", "hidden");
      output.textContent = "";
    }
    svg.addEventListener("pointermove", (e) => {
      const box = svg.getBoundingClientRect();
      const x = ((e.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      if (x < left - 8 || x > right + 8) return hide();
      show(chart.x[0] + ((x - left) / (right - left)) * (chart.x[1] - chart.x[0]));
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (e) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
      if (!step || !longest.length) return;
      e.preventDefault();
      show(longest[Math.min(Math.max(sample + step, 0), longest.length - 1)]);
    });
  }
})();
