"use strict";
// Values under the pointer, and lines that a click on the legend hides. The page reads well without this.
// What runs said enters by textContent alone, never as markup.
(() => {
  const short = (v) => {
    if (v === null || v === undefined) return "–";
    const size = Math.abs(v);
    if (size >= 1e5 || (size > 0 && size < 1e-3)) return v.toExponential(3);
    return String(Number(v.toPrecision(5)));
  };
  const make = (name, kind, text) => {
    const node = document.createElement(name);
    if (kind) node.className = kind;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle; else high = middle;
    }
    return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  };
  for (const figure of document.querySelectorAll("figure.chart")) {
    const plot = figure.querySelector(".plot");
    const data = JSON.parse(plot.dataset.chart);
    const hidden = new Set();
    const cursor = make("i", "cursor off"), tip = make("div", "tip off");
    plot.append(cursor, tip);
    const at = (share) => data.log ? data.low * Math.pow(data.high / data.low, share) : data.low + share * (data.high - data.low);
    const place = (x) => data.log ? Math.log(x / data.low) / Math.log(data.high / data.low) : (x - data.low) / (data.high - data.low);
    let share = 0.5;
    const show = () => {
      const x = at(share), rows = [];
      let here = null;
      data.lines.forEach((line, n) => {
        if (hidden.has(n) || !line.x.length) return;
        const i = nearest(line.x, x);
        if (Math.abs(place(line.x[i]) - share) > 0.06 && line.x.length > 12) return;
        if (here === null || Math.abs(line.x[i] - x) < Math.abs(here - x)) here = line.x[i];
        rows.push([line, i]);
      });
      tip.replaceChildren();
      if (here === null) return hide();
      tip.append(make("b", "", Math.round(here).toLocaleString("en-US") + " " + data.x));
      for (const [line, i] of rows) {
        const row = make("span");
        row.append(make("i", "swatch c" + line.colour), line.name + "  ");
        row.append(make("strong", "", short(line.y[i]) + data.unit));
        if (line.low.length && line.low[i] !== line.high[i]) row.append(make("small", "", "  " + short(line.low[i]) + " to " + short(line.high[i])));
        if (line.bad[i]) row.append(make("small", "", "  " + line.bad[i] + " not finite"));
        tip.append(row);
      }
      for (const mark of data.marks) {
        if (Math.abs(place(mark.x) - share) < 0.008) tip.append(make("small", "", mark.text));
      }
      cursor.style.left = 100 * place(here) + "%";
      tip.style.left = share < 0.5 ? "calc(" + 100 * share + "% + 14px)" : "auto";
      tip.style.right = share < 0.5 ? "auto" : "calc(" + 100 * (1 - share) + "% + 14px)";
      cursor.classList.remove("off");
      tip.classList.remove("off");
    };
    const hide = () => { cursor.classList.add("off"); tip.classList.add("off"); };
    const point = (event) => {
      const box = plot.getBoundingClientRect();
      share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
      show();
    };
    plot.addEventListener("pointermove", point);
    plot.addEventListener("pointerdown", point);
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("focus", () => { if (plot.matches(":focus-visible")) show(); });
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -0.01, ArrowRight: 0.01, PageUp: -0.1, PageDown: 0.1 }[event.key];
      if (event.key === "Escape") hide();
      if (!by) return;
      event.preventDefault();
      share = Math.min(Math.max(share + by, 0), 1);
      show();
    });
    const pins = [...figure.querySelectorAll(".pin")];
    pins.forEach((pin, n) => pin.addEventListener("keydown", (event) => {
      const next = pins[n + ({ ArrowLeft: -1, ArrowRight: 1 }[event.key] || 0)];
      if (event.key === "Escape") pin.blur();
      if (!next || next === pin) return;
      event.preventDefault();
      pin.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    }));
    figure.querySelectorAll(".legend button").forEach((button, n) => {
      button.addEventListener("click", () => {
        const off = hidden.has(n);
        if (off) hidden.delete(n); else hidden.add(n);
        button.setAttribute("aria-pressed", String(off));
        for (const path of plot.querySelectorAll("[data-line='" + n + "']")) path.classList.toggle("off", !off);
        hide();
      });
    });
  }
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
})();
