"use strict";

const COLOURS = ["#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#0ea5e9", "#84cc16", "#ec4899"];
const METRICS = [["reward_mean", "reward"], ["entropy", "entropy"], ["kl", "KL to the reference"], ["grad_norm", "gradient norm"],
  ["logprob_gap", "log-prob gap"], ["staleness_mean", "staleness"], ["step_s", "seconds a step"], ["tokens_per_s", "tokens a second"],
  ["turns_mean", "turns an episode"], ["truncated", "turns cut off"], ["episodes_infra_error", "episodes lost"], ["env_utilisation", "environments in use"]];
let against = "step";

async function showCurves() {
  const runs = await load("curves");
  const x = (run) => (step) => (against === "step" ? step : run.minutes[step]);
  const success = runs.flatMap((run, index) => [
    { name: run.name + ": training", points: run.training.map(([step, value]) => [x(run)(step), value]), colour: COLOURS[index % COLOURS.length], thin: true },
    ...Object.entries(run.evaluations).map(([split, points]) => ({ name: `${run.name}: unseen ${split}`, points: points.map(([step, value]) => [x(run)(step), value]),
      colour: COLOURS[index % COLOURS.length], dots: true, dashed: split !== "seeds" }))]);
  const redraw = (event) => { against = event.target.value; route(); };
  return [
    h("div", { class: "filters" }, h("label", null, "over ", h("select", { "aria-label": "Over", onchange: redraw }, [["step", "steps"], ["minutes", "minutes of training"]].map(([value, text]) => h("option", { value, selected: against === value }, text))))),
    runs.flatMap((run) => run.notes).map((note) => h("p", { class: "notice" }, note)),
    chart("success", success, { low: 0, high: 1, tall: true, format: percent }),
    h("div", { class: "charts" }, METRICS.map(([key, name]) => chart(name, runs.map((run, index) => ({ name: run.name, colour: COLOURS[index % COLOURS.length],
      points: run.rows.map((row) => [x(run)(row.step), row[key]]) })), { format: number }))),
  ];
}

function chart(title, lines, { low, high, tall, format }) {
  const width = tall ? 900 : 420, height = tall ? 300 : 170, left = 52, bottom = 26, top = 8, right = 12;
  const drawn = lines.map((line) => ({ ...line, points: line.points.filter(([a, b]) => typeof a === "number" && typeof b === "number") })).filter((line) => line.points.length);
  if (!drawn.length) return tall ? empty("No step has ended yet.") : null;
  const xs = drawn.flatMap((line) => line.points.map(([a]) => a)), ys = drawn.flatMap((line) => line.points.map(([, b]) => b));
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)], y0 = low ?? Math.min(0, ...ys), y1 = (high ?? Math.max(...ys)) || 1;
  const px = (value) => left + (width - left - right) * (x1 > x0 ? (value - x0) / (x1 - x0) : 0.5);
  const py = (value) => height - bottom - (height - bottom - top) * ((value - y0) / ((y1 - y0) || 1));
  const ticks = [0, 0.25, 0.5, 0.75, 1];
  return h("figure", { class: "chart" }, h("figcaption", null, title),
    svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title },
      (tall ? ticks : [0, 0.5, 1]).map((share) => { const y = y0 + share * (y1 - y0); return [svg("line", { x1: left, x2: width - right, y1: py(y), y2: py(y), class: "grid" }), svg("text", { x: left - 6, y: py(y) + 4, "text-anchor": "end" }, format(y))]; }),
      [x0, (x0 + x1) / 2, x1].map((x, index) => svg("text", { x: px(x), y: height - 8, "text-anchor": ["start", "middle", "end"][index] }, number(x, 1))),
      drawn.map((line) => [svg("polyline", { points: line.points.map(([a, b]) => `${px(a)},${py(b)}`).join(" "), stroke: line.colour, class: "line" + (line.thin ? " thin" : "") + (line.dashed ? " dashed" : "") }),
        line.dots || line.points.length === 1 ? line.points.map(([a, b]) => svg("circle", { cx: px(a), cy: py(b), r: 3.5, fill: line.colour }, svg("title", null, `${line.name}: ${format(b)} at ${number(a, 1)}`))) : null])),
    tall ? h("div", { class: "legend" }, drawn.map((line) => h("span", { style: { "--colour": line.colour }, class: "key" + (line.thin ? " thin" : "") }, line.name))) : null);
}
