// One chart: the values under the pointer, and its lines on another axis or closer. What runs said enters by textContent alone.
const SIDE = 1000, PINS = 16, LANE = 48, SIGNS = { bad: "✕", warn: "!", note: "•" };
const make = (name, kind, text) => {
  const node = document.createElement(name);
  if (kind) node.className = kind;
  if (text !== undefined) node.textContent = text;
  return node;
};
const drawn = (kind, path) => {
  const node = document.createElementNS(document.querySelector("svg").namespaceURI, "path");
  node.setAttribute("class", kind);
  node.setAttribute("d", path);
  return node;
};
// `page`: the axis of all charts over samples, what part of it is shown, and each run's knots.
const plotted = (figure, page) => {
  const plot = figure.querySelector(".plot"), svg = plot.querySelector("svg");
  const data = JSON.parse(plot.dataset.chart), samples = { low: data.low, high: data.high, log: data.log };
  const runs = data.lines.every((line) => line.run !== null);
  const hidden = new Set();
  const cursor = make("i", "cursor off"), tip = make("div", "tip off"), picked = make("i", "picked off");
  plot.append(picked, cursor, tip);
  let share = 0.5, xs = data.lines.map((line) => line.x), shown = samples;
  const x = (v, run) => moved(page.knots[run], page.column, v);

  const hide = () => { cursor.classList.add("off"); tip.classList.add("off"); };
  const show = () => {
    const here = at(shown, share), rows = [];
    let spot = null;
    data.lines.forEach((line, n) => {
      if (hidden.has(n) || !line.x.length) return;
      const i = nearest(xs[n], here);
      if (Math.abs(place(shown, xs[n][i]) - share) > 0.06 && line.x.length > 12) return;
      if (spot === null || Math.abs(xs[n][i] - here) < Math.abs(spot - here)) spot = xs[n][i];
      rows.push([line, i]);
    });
    tip.replaceChildren();
    if (spot === null) return hide();
    tip.append(make("b", "", told(spot, runs ? page.over : data.x)));
    for (const [line, i] of rows) {
      const row = make("span");
      row.append(make("i", "swatch c" + line.colour), line.name + "  ");
      row.append(make("strong", "", short(line.y[i]) + data.unit));
      if (line.low.length && line.low[i] !== line.high[i]) row.append(make("small", "", "  " + short(line.low[i]) + " to " + short(line.high[i])));
      if (line.bad[i]) row.append(make("small", "", "  " + line.bad[i] + " not finite"));
      tip.append(row);
    }
    for (const mark of data.marks) {
      if (Math.abs(place(shown, x(mark.x, mark.run)) - share) < 0.008) tip.append(make("small", "", mark.text));
    }
    cursor.style.left = 100 * place(shown, spot) + "%";
    tip.style.left = share < 0.5 ? "calc(" + 100 * share + "% + 14px)" : "auto";
    tip.style.right = share < 0.5 ? "auto" : "calc(" + 100 * (1 - share) + "% + 14px)";
    cursor.classList.remove("off");
    tip.classList.remove("off");
  };

  // The heights at which the lines run within what is shown: all of the chart while all of the axis is shown.
  const heights = () => {
    let low = Infinity, high = -Infinity;
    data.lines.forEach((line, n) => {
      if (hidden.has(n)) return;
      xs[n].forEach((v, i) => {
        if (v < shown.low || v > shown.high || line.y[i] === null) return;
        for (const y of [line.y[i], line.low[i], line.high[i]]) {
          if (y === null || y === undefined) continue;
          low = Math.min(low, place(data.up, y));
          high = Math.max(high, place(data.up, y));
        }
      });
    });
    low = Math.max(low, 0);
    high = Math.min(high, 1);
    if (page.whole() || !(high > low)) return [0, 1];
    const room = Math.max(high - low, 0.002) * 0.06;
    return [Math.max(low - room, 0), Math.min(high + room, 1)];
  };
  const redraw = () => {
    const whole = page.axis, [from, to] = page.view;
    shown = part(whole, from, to);
    xs = data.lines.map((line) => line.x.map((v) => x(v, line.run)));
    for (const path of svg.querySelectorAll("[data-line], .discarded")) {
      const run = path.dataset.run ?? data.lines[path.dataset.line].run;
      path.dataset.first ??= path.getAttribute("d");
      path.setAttribute("d", path.dataset.first.replace(/([-\d.]+) ([-\d.]+)/g, (_, px, py) => (SIDE * place(whole, x(at(samples, px / SIDE), run))).toFixed(2) + " " + py));
    }
    const [low, high] = heights(), up = part(data.up, low, high);
    svg.setAttribute("viewBox", [SIDE * from, SIDE * (1 - high), SIDE * (to - from), SIDE * (high - low)].join(" "));
    svg.querySelectorAll(".grid, .event").forEach((node) => node.remove());
    plot.querySelectorAll(".tick").forEach((node) => node.remove());
    const found = ticks(up, 5), texts = up.log && up.high / up.low > 5 ? found.map((t) => labels([t], "")[0]) : labels(found, "");
    const lines = found.map((t) => drawn("grid", "M0 " + SIDE * (1 - place(data.up, t)) + "H" + SIDE));
    found.forEach((t, n) => { const tick = make("span", "tick y", texts[n]); tick.style.top = 100 * (1 - place(up, t)) + "%"; plot.append(tick); });
    for (const [t, text] of named(shown, page.over)) {
      const tick = make("span", "tick x", text);
      tick.style.left = 100 * place(shown, t) + "%";
      plot.append(tick);
    }
    const seen = data.marks.map((mark) => ({ ...mark, at: place(shown, x(mark.x, mark.run)) })).filter((mark) => mark.at >= 0 && mark.at <= 1);
    for (const mark of new Map(seen.map((mark) => [Math.round(LANE * mark.at), mark])).values()) {
      lines.push(drawn("event " + mark.kind, "M" + SIDE * (from + mark.at * (to - from)) + " 0V" + SIDE));
    }
    svg.prepend(...lines);
    for (const mark of plot.querySelectorAll(".beyond")) {
      const where = place(shown, x(Number(mark.dataset.x), data.lines[mark.dataset.line].run));
      mark.style.left = 100 * where + "%";
      mark.classList.toggle("off", where < 0 || where > 1 || high < 1);
    }
    pin(seen);
    hide();
  };
  // The pins of the marks in sight: those that lie close together share one.
  const pin = (seen) => {
    const lane = figure.querySelector(".lane");
    if (!lane) return;
    const cells = new Map();
    for (const mark of seen) {
      const cell = Math.round(PINS * mark.at);
      cells.set(cell, [...(cells.get(cell) || []), mark]);
    }
    lane.replaceChildren(...[...cells.keys()].sort((a, b) => a - b).map((cell, n) => {
      const held = cells.get(cell), kind = ["bad", "warn", "note"].find((k) => held.some((mark) => mark.kind === k));
      const button = make("button", "pin " + kind, held.length === 1 ? SIGNS[kind] : String(held.length));
      const text = [...new Set(held.map((mark) => mark.text))].join("\n");
      button.type = "button";
      button.style.left = 100 * cell / PINS + "%";
      button.tabIndex = n ? -1 : 0;
      button.setAttribute("aria-label", text);
      Object.assign(button.dataset, { text, side: cell > PINS / 2 ? "left" : "right" });
      return button;
    }));
  };
  const toggle = (off, chosen) => {
    data.lines.forEach((line, n) => {
      if (!chosen(line, n)) return;
      if (off) hidden.add(n); else hidden.delete(n);
      for (const path of plot.querySelectorAll("[data-line='" + n + "']")) path.classList.toggle("off", off);
    });
    hide();
  };

  const share_of = (event) => {
    const box = plot.getBoundingClientRect();
    return Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
  };
  let dragged = null;
  plot.addEventListener("pointermove", (event) => {
    share = share_of(event);
    if (dragged === null) return show();
    const [from, to] = [dragged, share].sort((a, b) => a - b);
    picked.style.left = 100 * from + "%";
    picked.style.width = 100 * (to - from) + "%";
    picked.classList.remove("off");
    hide();
  });
  plot.addEventListener("pointerdown", (event) => {
    share = share_of(event);
    if (runs && event.pointerType === "mouse" && event.button === 0) {
      dragged = share;
      plot.setPointerCapture(event.pointerId);
    }
    show();
  });
  plot.addEventListener("pointerup", () => {
    if (dragged === null) return;
    const [from, to] = [dragged, share].sort((a, b) => a - b);
    dragged = null;
    picked.classList.add("off");
    if (to - from > 0.02) page.look(from, to);
  });
  plot.addEventListener("pointercancel", () => { dragged = null; picked.classList.add("off"); });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("focus", () => { if (plot.matches(":focus-visible")) show(); });
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const by = { ArrowLeft: -0.01, ArrowRight: 0.01, PageUp: -0.1, PageDown: 0.1 }[event.key];
    if (event.key === "Escape") hide();
    const looks = { "+": "zoom in", "=": "zoom in", "-": "zoom out", "0": "whole run" }[event.key] || (event.shiftKey && { ArrowLeft: "earlier", ArrowRight: "later" }[event.key]);
    if (!by && !(runs && looks)) return;
    event.preventDefault();
    if (runs && looks) page.zoom(looks, share);
    else share = Math.min(Math.max(share + by, 0), 1);
    show();
  });
  figure.querySelector(".lane")?.addEventListener("keydown", (event) => {
    const pins = [...figure.querySelectorAll(".pin")], pin = event.target;
    const next = pins[pins.indexOf(pin) + ({ ArrowLeft: -1, ArrowRight: 1 }[event.key] || 0)];
    if (event.key === "Escape") pin.blur();
    if (!next || next === pin) return;
    event.preventDefault();
    pin.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  figure.querySelectorAll(".legend button").forEach((button, n) => button.addEventListener("click", () => {
    const off = button.getAttribute("aria-pressed") === "true";
    button.setAttribute("aria-pressed", String(!off));
    toggle(off, (_, line) => line === n);
  }));
  return { runs, samples, redraw, toggle };
};
