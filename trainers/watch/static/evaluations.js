"use strict";

let showing = "all";
const MARKS = { success: "✓", out_of_turns: "…" };

async function showEvaluations(run, chosen) {
  const data = await load(run + "/evaluations");
  if (!data.steps.length) return [empty("No evaluation has been recorded yet.")];
  if (chosen && chosen[0]) return showSeed(run, data, Number(chosen[0]));
  const [first, last] = [data.steps[0], data.steps[data.steps.length - 1]];
  const kindOf = (row) => {
    const [before, after] = [row.played[first], row.played[last]].map((each) => (each ? each.outcome === GOOD : null));
    if (first === last || before === null || after === null || before === after) return "";
    return after ? "learnt" : "forgotten";
  };
  const counts = { all: data.rows.length, learnt: 0, forgotten: 0 };
  data.rows.forEach((row) => { if (kindOf(row)) counts[kindOf(row)] += 1; });
  const body = h("div", null);
  const draw = () => body.replaceChildren(seedTable(run, data, data.rows.filter((row) => showing === "all" || kindOf(row) === showing), kindOf));
  draw();
  return [
    h("p", null, `The same held-out seeds after step ${data.steps.join(", ")}.`),
    h("div", { class: "filters", role: "group" }, Object.entries(counts).map(([kind, count]) => h("button", { "aria-pressed": String(showing === kind),
      onclick: (event) => { showing = kind; [...event.target.parentNode.children].forEach((each) => each.setAttribute("aria-pressed", String(each === event.target))); draw(); } },
    `${kind} ${count}`))),
    categoryTable(data), body];
}

function categoryTable(data) {
  const categories = [...new Set(data.rows.map((row) => row.category))];
  const share = (rows, step) => {
    const played = rows.map((row) => row.played[step]).filter(Boolean);
    return played.length ? percent(played.filter((each) => each.outcome === GOOD).length / played.length) : "–";
  };
  return h("div", { class: "scroll" }, h("table", { class: "narrow" },
    h("thead", null, h("tr", null, h("th", null, "success by category"), data.steps.map((step) => h("th", null, "step " + step)))),
    h("tbody", null, [["all", data.rows], ...categories.map((name) => [name, data.rows.filter((row) => row.category === name)])].map(([name, rows]) =>
      h("tr", null, h("td", null, words(name)), data.steps.map((step) => h("td", null, share(rows, step))))))));
}

function seedTable(run, data, rows, kindOf) {
  if (!rows.length) return empty("None.");
  return h("div", { class: "scroll" }, h("table", { class: "seeds" },
    h("thead", null, h("tr", null, h("th", null, "goal"), h("th", null, "seed"), data.steps.map((step) => h("th", null, step)), h("th", null))),
    h("tbody", null, rows.map((row) => h("tr", null, h("td", null, link(`${run}/evaluations/${data.rows.indexOf(row) + 1}`, row.goal)), h("td", { class: "mono" }, row.seed % 1000000),
      data.steps.map((step) => h("td", null, row.played[step] ? h("a", { href: `#${run}/episodes/${row.played[step].n}`, class: "cell " + String(row.played[step].outcome).replace(/\W/g, ""), title: words(row.played[step].outcome), "aria-label": `step ${step}: ${words(row.played[step].outcome)}` }, MARKS[row.played[step].outcome] || "✗") : null)),
      h("td", { class: kindOf(row) === "learnt" ? "good" : "bad" }, kindOf(row)))))));
}

async function showSeed(run, data, place) {
  const row = data.rows[place - 1];
  if (!row) return [empty("There is no such seed.")];
  const played = await Promise.all(data.steps.filter((step) => row.played[step]).map((step) => load(`${run}/episode/${row.played[step].n}`)));
  return [h("p", null, link(`${run}/evaluations`, "← all seeds")), h("h1", null, row.goal), h("p", { class: "soft" }, `${row.task}, seed ${row.seed}`),
    strips(run, played, (member) => [link(`${run}/episodes/${member.n}`, h("b", null, "after step " + member.step)), badge(member.outcome)])];
}
