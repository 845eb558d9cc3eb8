"use strict";
// Numbers of the page's script: axes, their ticks, and what stands beside them.
const short = (v) => {
  if (v === null || v === undefined) return "–";
  const size = Math.abs(v);
  if (size >= 1e5 || (size > 0 && size < 1e-3)) return v.toExponential(3);
  return String(Number(v.toPrecision(5)));
};
const place = (axis, v) => axis.log ? (v > 0 ? Math.log(v / axis.low) / Math.log(axis.high / axis.low) : -1) : (v - axis.low) / (axis.high - axis.low);
const at = (axis, share) => axis.log ? axis.low * Math.pow(axis.high / axis.low, share) : axis.low + share * (axis.high - axis.low);
const part = (axis, from, to) => ({ low: at(axis, from), high: at(axis, to), log: axis.log });
const ticks = (axis, wanted) => {
  if (axis.log && axis.high / axis.low > 5) {
    const found = [];
    for (let power = Math.floor(Math.log10(axis.low)); power <= Math.log10(axis.high); power++) {
      for (const digit of axis.high / axis.low > 1e3 ? [1] : [1, 2, 5]) found.push(digit * Math.pow(10, power));
    }
    const inside = found.filter((t) => t >= axis.low && t <= axis.high);
    const every = Math.max(1, Math.round(inside.length / (wanted + 1)));
    return inside.filter((_, n) => n % every === 0);
  }
  const rough = (axis.high - axis.low) / wanted, power = Math.pow(10, Math.floor(Math.log10(rough)));
  const step = [1, 2, 2.5, 5, 10].map((s) => s * power).find((s) => s >= rough * 0.999999);
  const found = [];
  for (let n = Math.ceil(axis.low / step - 1e-9); n * step <= axis.high + 1e-9 * step; n++) found.push(Number((n * step).toPrecision(12)));
  return found;
};
// Evenly spaced numbers in as many digits as tell them apart.
const labels = (found, suffix) => {
  const size = Math.max(...found.map(Math.abs)), thousands = size >= 1e4 && size < 1e15;
  const [unit, prefix] = thousands ? [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([u]) => size >= u) : [1, ""];
  if (size < 1e-3 || size >= 1e15) return found.map((t) => Number(t.toPrecision(3)).toString() + suffix);
  for (let digits = 0; digits < 7; digits++) {
    const exact = found.every((t) => Math.abs(Number((t / unit).toFixed(digits)) - t / unit) <= 1e-9 * size / unit);
    if (exact) return found.map((t) => t ? (t / unit).toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }) + prefix + suffix : "0");
  }
  return found.map((t) => short(t) + suffix);
};
const UNITS = [[86400, " d"], [3600, " h"], [60, " min"], [1, " s"]];
// Ticks of the x-axis with their texts; times in the largest unit of which the axis shows two.
const named = (axis, over) => {
  const [unit, suffix] = over === "wall-clock time" ? UNITS.find(([u]) => axis.high >= 2 * u) || [1, " s"] : [1, ""];
  const found = ticks({ low: axis.low / unit, high: axis.high / unit, log: false }, 6), texts = labels(found, suffix);
  return found.map((t, n) => [t * unit, texts[n]]);
};
const told = (v, over) => over !== "wall-clock time" ? Math.round(v).toLocaleString("en-US") + " " + over
  : v < 60 ? v.toFixed(1) + " s" : v < 3600 ? Math.floor(v / 60) + " min " + Math.floor(v % 60) + " s" : Math.floor(v / 3600) + " h " + Math.floor(v / 60 % 60) + " min";
const nearest = (xs, x) => {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
};
// What a run's samples are on another axis, by the windows that tell both; past the last one it stands still.
const moved = (knots, column, samples) => {
  if (!column) return samples;
  let low = 0, high = knots.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (knots[middle][0] <= samples) low = middle; else high = middle;
  }
  const from = knots[low], to = knots[high], span = to[0] - from[0];
  const share = span > 0 ? Math.min(Math.max((samples - from[0]) / span, 0), 1) : 0;
  return from[column] + share * (to[column] - from[column]);
};
