// The page: which x-axis all charts over samples have, what part of it they show, and which runs. It reads well without this.
(() => {
  const tools = document.querySelector(".tools");
  const page = {
    knots: tools ? JSON.parse(tools.dataset.knots) : [], over: "samples", column: 0, axis: null, view: [0, 1],
    whole: () => page.view[0] === 0 && page.view[1] === 1,
    // Show from one share of what is shown to another.
    look: (from, to) => {
      const [low, high] = page.view, wide = Math.min(Math.max((to - from) * (high - low), 0.002), 1);
      const first = Math.min(Math.max(low + from * (high - low), 0), 1 - wide);
      page.view = [first, wide === 1 ? 1 : first + wide];
      redraw();
    },
    zoom: (how, share) => ({
      "zoom in": () => page.look(share / 2, share / 2 + 0.5),
      "zoom out": () => page.look(-share, 2 - share),
      earlier: () => page.look(-0.25, 0.75),
      later: () => page.look(0.25, 1.25),
      "whole run": () => { page.view = [0, 1]; redraw(); },
    })[how](),
  };
  const all = [...document.querySelectorAll("figure.chart")].map((figure) => plotted(figure, page));
  const plots = all.filter((plot) => plot.runs);
  const redraw = () => {
    plots.forEach((plot) => plot.redraw());
    for (const button of tools.querySelectorAll("[data-zoom]")) {
      const [low, high] = page.view;
      button.disabled = { "zoom in": high - low < 0.004, earlier: low === 0, later: high === 1 }[button.dataset.zoom] ?? page.whole();
    }
  };
  if (plots.length) {
    page.axis = plots[0].samples;
    tools.hidden = false;
    tools.addEventListener("submit", (event) => event.preventDefault());
    tools.addEventListener("change", (event) => {
      page.over = event.target.value;
      page.column = ["samples", "steps", "wall-clock time"].indexOf(page.over);
      const ends = page.knots.map((knots) => knots[knots.length - 1][page.column]);
      page.axis = page.column ? { low: 0, high: Math.max(...ends) || 1, log: false } : plots[0].samples;
      page.view = [0, 1];
      document.querySelector(".over").textContent = page.over;
      document.body.classList.toggle("timed", page.column === 2);
      redraw();
    });
    for (const button of tools.querySelectorAll("[data-zoom]")) {
      button.disabled = button.dataset.zoom !== "zoom in";
      button.addEventListener("click", () => page.zoom(button.dataset.zoom, 0.5));
    }
  }
  document.querySelectorAll(".controls .legend button").forEach((button) => button.addEventListener("click", () => {
    const off = button.getAttribute("aria-pressed") === "true";
    button.setAttribute("aria-pressed", String(!off));
    plots.forEach((plot) => plot.toggle(off, (line) => String(line.run) === button.dataset.run));
  }));
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => { details.open = true; }));
})();
