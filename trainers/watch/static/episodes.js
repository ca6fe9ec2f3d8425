"use strict";

const search = { text: "", outcome: "", kind: "", step: "" };
const SHOWN = 300;
let colouring = "logprob", lastEpisode = Infinity;

async function showEpisodes(run, chosen) {
  if (chosen && chosen[0] !== undefined) return showEpisode(run, chosen[0]);
  const all = await load(run + "/episodes");
  const results = h("div", { class: "results" });
  const draw = () => results.replaceChildren(...episodeTable(run, all));
  const pick = (key, label, options) => h("select", { "aria-label": label, onchange: (event) => { search[key] = event.target.value; draw(); } },
    options.map(([value, text]) => h("option", { value, selected: search[key] === value }, text)));
  const outcomes = [...new Set(all.map((episode) => episode.outcome))].sort();
  draw();
  return [h("div", { class: "filters" },
    h("input", { type: "search", id: "search", placeholder: "task, goal, text of a call, cause", "aria-label": "Search", value: search.text,
      oninput: (event) => { search.text = event.target.value; draw(); } }),
    pick("outcome", "Outcome", [["", "all outcomes"], ...outcomes.map((outcome) => [outcome, words(outcome)])]),
    pick("kind", "Kind", [["", "training and evaluation"], ["training", "training"], ["evaluation", "evaluation"]]),
    h("input", { type: "number", min: "0", placeholder: "step", "aria-label": "Step", value: search.step, oninput: (event) => { search.step = event.target.value; draw(); } })),
  results];
}

function found(all) {
  const text = search.text.trim().toLowerCase();
  const matches = all.filter((episode) =>
    (!search.outcome || episode.outcome === search.outcome)
    && (!search.kind || (search.kind === "evaluation") === episode.evaluation)
    && (search.step === "" || String(episode.step) === search.step)
    && (!text || [episode.id, episode.task, episode.goal, episode.said, episode.failure || "", episode.findings.flat().join(" ")].some((each) => String(each).toLowerCase().includes(text))));
  return matches.sort((a, b) => (a.outcome === GOOD) - (b.outcome === GOOD) || b.n - a.n);
}

function episodeTable(run, all) {
  const matches = found(all);
  if (!matches.length) return [empty("No episode matches.")];
  const cell = (name) => h("th", null, name);
  return [h("p", { class: "soft" }, `${matches.length} of ${all.length} episodes, failures first` + (matches.length > SHOWN ? `; the first ${SHOWN} are shown` : "")),
    h("div", { class: "scroll" }, h("table", { class: "episodes" },
      h("thead", null, h("tr", null, ["outcome", "goal", "step", "turns", "reward", "episode"].map(cell))),
      h("tbody", null, matches.slice(0, SHOWN).map((episode) => h("tr", null,
        h("td", null, badge(episode.outcome)),
        h("td", null, link(`${run}/episodes/${episode.n}`, episode.goal || episode.task), episode.findings.length ? h("small", { class: "bad" }, episode.findings[0][1]) : null, h("small", { class: "mono" }, episode.said)),
        h("td", null, episode.step === null ? "–" : episode.step), h("td", null, episode.turns), h("td", null, number(episode.reward)),
        h("td", { class: "mono" }, episode.id))))))];
}

async function showEpisode(run, n) {
  const episode = await load(`${run}/episode/${n}`);
  if (!episode) return [empty("There is no such episode.")];
  lastEpisode = episode.last;
  const group = episode.evaluation ? null : link(`${run}/groups/${episode.part}/${episode.group}`, "its group " + episode.group);
  return [
    h("p", null, link(`${run}/episodes`, "← all episodes"), group ? [" · ", group] : null,
      typeof episode.success === "number" ? [" · ", link(`${run}/episodes/${episode.success}`, "a success of the same task")] : null),
    h("h1", null, episode.goal), badge(episode.outcome),
    h("div", { class: "figures" },
      figure("reward", number(episode.outcome === LOST ? null : episode.reward), Object.entries(episode.parts || {}).map(([name, value]) => words(name) + " " + signed(value)).join(", ")),
      figure("advantage", signed(episode.advantage), words(episode.state || "")),
      figure("score", number(episode.outcome === LOST ? null : episode.score)), figure("seed", episode.seed),
      figure(episode.evaluation ? "evaluated after step" : "step", episode.step === null ? "–" : episode.step),
      figure("policy version", episode.version), typeof episode.device === "number" ? figure("device", episode.device) : null),
    episode.findings.length ? [h("h2", null, "What stands out"), h("ul", { class: "notice bad" }, episode.findings.map(([, text]) => h("li", null, text)))] : null,
    episode.why ? h("p", { class: "notice" }, words(episode.state) + ": " + episode.why) : null,
    h("h2", null, "Why it scored so"), verdict(run, episode),
    h("h2", null, "Turns"), tokenLegend(),
    h("ol", { class: "turns" }, episode.turns.map((turn, index) => turnCard(run, episode, turn, index)), endCard(run, episode)),
    h("details", null, h("summary", null, "What the prompt begins with"), h("pre", null, episode.system || "")),
  ];
}

/** The last screen, and beside it what the validator wants, asked and heard. */
function verdict(run, episode) {
  const told = episode.verdict || {};
  if (!told.validator) return empty("The validator was not listened to.");
  return h("div", { class: "turn" }, shot(run, episode.part, episode.final, null, "Screen that was scored"), h("div", { class: "verdict" },
    h("pre", null, told.validator),
    episode.answers.length ? h("table", null,
      h("thead", null, h("tr", null, ["asked at the end", "answer", "at the start"].map((name) => h("th", null, name)))),
      h("tbody", null, episode.answers.map(([question, answer, before]) =>
        h("tr", null, h("td", { class: "mono" }, question), h("td", { class: "mono" + (before !== null && before !== answer ? " changed" : "") }, answer || "(nothing)"),
          h("td", { class: "mono soft" }, before))))) : empty(episode.outcome === LOST ? "The episode was lost before it was scored." : "It asked nothing at the end."),
    told.rule ? h("details", { open: episode.outcome !== GOOD }, h("summary", null, "How it decides"), h("pre", null, told.rule)) : null));
}

function tokenLegend() {
  const pick = (event) => { colouring = event.target.value; document.querySelectorAll(".tokens").forEach((each) => { each.dataset.by = colouring; each.recolour(); }); };
  return h("label", { class: "soft" }, "Tokens coloured by ", h("select", { "aria-label": "Colour tokens by", onchange: pick },
    [["logprob", "log-probability (redder: less likely)"], ["staleness", "staleness (redder: older policy)"]].map(([value, text]) => h("option", { value, selected: colouring === value }, text))));
}

function tokens(turn, episode) {
  if (!turn.tokens || !turn.tokens.length) return h("pre", null, turn.text);
  const now = typeof episode.trained === "number" ? episode.trained : Math.max(...turn.tokens.map((token) => token[2]));
  const spans = turn.tokens.map(([text, logprob, version]) => [h("span", { title: `log-probability ${number(logprob, 3)}, version ${version}, staleness ${now - version}` }, text), logprob, now - version]);
  const shown = h("pre", { class: "tokens", "data-by": colouring }, spans.map(([span]) => span));
  shown.recolour = () => spans.forEach(([span, logprob, stale]) => {
    const strength = colouring === "logprob" ? Math.min(1, -logprob / 3) : Math.min(1, stale / 4);
    span.style.setProperty("background-color", `rgb(229 72 77 / ${(0.65 * strength).toFixed(2)})`);
  });
  shown.recolour();
  return shown;
}

function turnCard(run, episode, turn, index) {
  return h("li", { class: "turn" }, shot(run, episode.part, turn.screen, turn.point, `Screen before turn ${index + 1}`, turn.touch),
    h("div", null, h("h3", { class: turn.action ? null : "bad" }, `${index + 1}. ` + (turn.action || "malformed call")), tokens(turn, episode),
      h("p", { class: turn.result ? "bad" : "soft" }, "→ " + (turn.result || "ok")),
      touchNote("p", turn.touch),
      h("p", { class: "soft" }, `model ${seconds(turn.generate_s)}, device ${seconds(turn.env_s)}` + (turn.point ? `, at (${turn.point[0]}, ${turn.point[1]}) of 1000` : "") + (turn.truncated ? ", cut off by rollout.max_new_tokens" : ""))));
}

function endCard(run, episode) {
  return h("li", { class: "turn" }, shot(run, episode.part, episode.final, null, "Last screen"), h("div", null, h("h3", null, "The end"), badge(episode.outcome)));
}
