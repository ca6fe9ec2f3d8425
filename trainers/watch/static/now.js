"use strict";

const SLOW_S = 10, STUCK_S = 60;
const TIMES = [["rollout_s", "waiting for rollouts"], ["train_s", "training"], ["sync_s", "publishing weights"]];

const KINDS = [["waiting", "run waits for rollouts"], ["training", "training"], ["publishing", "publishing weights"], ["evaluation", "evaluation"],
  ["reset", "device resets"], ["model", "device waits for the model"], ["device", "device acts"], ["scoring", "scoring"]];
const stripsOfSteps = new Map(), tasksOfSteps = new Map();

async function showNow(run, chosen) {
  const state = await load(run + "/now"), strip = chosen ? await stripOfStep(run, chosen[0], state) : null;
  const step = chosen ? Number(chosen[0]) : Math.max(0, ...state.steps.map((row) => row.step)), tasks = await tasksAt(run, step);
  const tasksOfStep = [h("h2", null, "Tasks of a step, failures first"), taskTable(run, step, tasks)];
  const behind = EXPORTED ? 0 : Date.now() / 1000 - state.time;
  const last = state.steps[state.steps.length - 1] || {};
  const playing = state.devices.filter((device) => device.waits_for !== "idle");
  const waits = (what) => playing.filter((device) => device.waits_for === what).length;
  return [
    h("div", { class: "figures" },
      figure("step", (last.step || 0) + " / " + (state.settings.max_steps || "?")),
      figure("success of the last step", percent(last.success_rate), "reward " + number(last.reward_mean)),
      figure("devices playing", playing.length + " / " + state.devices.length, waits("sampling") + " wait for the model, " + waits("acting") + " for the device"),
      figure("policy version", state.version, "staleness " + number(last.staleness_max, 0) + " of " + number(state.settings["rollout.max_staleness"], 0)),
      figure("tokens a second", number(last.tokens_per_s, 0), gpu(last)),
      figure("episodes lost", state.lost_count)),
    state.error ? h("p", { class: "notice bad" }, state.error) : null,
    state.screens_dropped ? h("p", { class: "notice" }, `${state.screens_dropped} episodes were recorded without screens: they came faster than they could be written.`) : null,
    h("h2", null, "Where the time of a step goes"), timeBars(run, state.steps), chosen ? [strip, ...tasksOfStep] : null,
    h("h2", null, "Devices"),
    state.live ? h("div", { class: "wall" }, state.devices.map((device) => deviceCard(run, state, device, state.time + behind))) : empty(whyNobody(state)),
    h("h2", null, "Groups under way"), queue(state),
    chosen ? null : tasksOfStep,
    h("h2", null, "Lost episodes"), lostList(run, state),
  ];
}

function whyNobody(state) {
  const reason = state.summary.stop_reason, last = state.steps[state.steps.length - 1];
  if (reason) return `The run is over: ${reason}.`;
  return last ? `Nobody plays: the run was interrupted after step ${last.step}, or is just being resumed.` : "Nobody plays: the run is just starting, or was broken off.";
}

function gpu(last) {
  const parts = [];
  if (typeof last.gpu_peak_gib === "number") parts.push("GPU " + number(last.gpu_peak_gib, 1) + " GiB");
  if (typeof last.gpu_wait_s === "number") parts.push("idle " + seconds(last.gpu_wait_s));
  if (typeof last.mfu === "number") parts.push("MFU " + percent(last.mfu));
  return parts.join(", ") || "environments in use " + percent(last.env_utilisation);
}

/** What the run and each device did in a step; kept once no episode of it can be under way any more. */
async function stripOfStep(run, step, state) {
  const name = `${run}/strip/${step}`, newest = state.steps.length ? state.steps[state.steps.length - 1].step : 0;
  const data = stripsOfSteps.get(name) || await load(name);
  if (data && (!state.live || Number(step) < newest - 3)) stripsOfSteps.set(name, data);
  if (!data || !data.lanes.length) return empty("There is no timeline of this step.");
  const place = (value) => (100 * value / data.seconds).toFixed(3) + "%";
  return h("section", { class: "clock", id: "strip" }, h("h3", null, `Step ${data.step} on the clock, ${seconds(data.seconds)}`),
    h("div", { class: "legend" }, KINDS.map(([kind, text]) => h("span", { class: "k-" + kind }, text))),
    data.lanes.filter((lane) => lane.spans.length).map((lane) => h("div", { class: "time" }, h("span", null, lane.name),
      h("div", { class: "lane" }, lane.spans.map(([kind, began, length, text]) =>
        h("i", { class: "k-" + kind, title: `${text}: ${seconds(length)}`, style: { left: place(began), width: place(length) } }))))));
}

function timeBars(run, steps) {
  if (!steps.length) return empty("No step has ended yet.");
  const longest = Math.max(...steps.map((row) => row.step_s || 0)) || 1;
  return h("div", { class: "times" },
    h("div", { class: "legend" }, TIMES.map(([key, name]) => h("span", { class: key }, name)), h("span", { class: "rest" }, "the rest"), h("span", { class: "plain" }, "at the end: seconds, and success of the step")),
    steps.map((row) => {
      const known = TIMES.map(([key]) => row[key] || 0);
      const rest = Math.max(0, (row.step_s || 0) - known.reduce((sum, value) => sum + value, 0));
      const bar = (kind, value) => h("i", { class: kind, style: { width: (100 * value / longest).toFixed(2) + "%" }, title: seconds(value) });
      return h("div", { class: "time" }, h("span", null, link(`${run}/now/${row.step}`, "step " + row.step)),
        h("div", { class: "bar" }, TIMES.map(([key], index) => bar(key, known[index])), bar("rest", rest)),
        h("span", null, seconds(row.step_s)),
        h("span", { title: "success of its training episodes" }, percent(row.success_rate)));
    }));
}

function deviceCard(run, state, device, present) {
  const idle = device.waits_for === "idle" || !device.id;
  const waited = idle ? 0 : Math.max(0, present - device.since);
  const mood = idle ? "idle" : waited > STUCK_S ? "stuck" : waited > SLOW_S ? "slow" : "";
  const name = (device.process === "0" ? "" : device.process + "/") + device.device;
  return h("article", { class: "device " + mood },
    h("header", null, h("b", null, name), h("span", null, idle ? "idle" : words(device.waits_for) + " " + seconds(waited))),
    device.screen ? shot(run, state.part, device.screen, null, "Last screen of device " + name) : h("div", { class: "shot none" }, "no screen yet"),
    h("p", { title: device.goal }, device.goal || ""),
    h("small", null, device.id ? `${device.id} · turn ${device.turn}` : ""),
    h("small", { class: "mono" }, device.said || ""));
}

function queue(state) {
  if (!state.queue.length) return empty("None.");
  const bound = state.settings["rollout.max_staleness"] || 0, size = state.settings["rollout.group_size"];
  return h("table", null,
    h("thead", null, h("tr", null, ["group", "task", "played", "age in versions", "since"].map((name) => h("th", null, name)))),
    h("tbody", null, state.queue.map((group) => {
      const age = Math.max(0, state.version - group.version);
      return h("tr", null, h("td", { class: "mono" }, group.group), h("td", null, group.task),
        h("td", null, `${group.done} of ${size}` + (group.playing ? `, ${group.playing} playing` : ", ready")),
        h("td", { class: age > bound ? "bad" : null }, `${age} of ${bound}`), h("td", null, seconds(state.time - group.began)));
    })));
}

function lostList(run, state) {
  if (!state.lost.length) return empty("None.");
  return h("table", null, h("tbody", null, state.lost.map((lost) => h("tr", null,
    h("td", { class: "mono" }, link(`${run}/episodes/${lost.n}`, lost.id)), h("td", null, lost.task),
    h("td", null, typeof lost.device === "number" ? "device " + lost.device : ""), h("td", { class: "bad" }, lost.failure || "")))));
}

/** The groups of a step; kept, because a step has them all when it ends. */
async function tasksAt(run, step) {
  const name = `${run}/tasks/${step}`, found = tasksOfSteps.get(name) || await load(name) || [];
  if (found.length) tasksOfSteps.set(name, found);
  return found;
}

/** The groups that a step used or left, with what was seen in their episodes. */
function taskTable(run, step, groups) {
  const go = (event) => { if (event.target.value !== "") location.hash = `#${run}/now/${Number(event.target.value)}`; };
  return [h("p", null, h("label", null, "Step ", h("input", { type: "number", id: "step", min: "1", value: step, "aria-label": "Step", onchange: go }))),
    groups.length ? h("div", { class: "scroll" }, h("table", { class: "tasks" },
      h("thead", null, h("tr", null, ["succeeded", "goal", "seen in its episodes", "group"].map((name) => h("th", null, name)))),
      h("tbody", null, groups.map((group) => {
        return h("tr", null,
          h("td", { class: tally(group).won ? null : "bad" }, counted(group), dots(group.members)),
          h("td", null, link(`${run}/groups/${group.part}/${group.group}`, group.goal), h("small", { class: "mono" }, group.task)),
          h("td", null, commonly(group)), h("td", { class: "mono" }, group.group, h("small", null, group.state)));
      })))) : empty(`No group of step ${step} is recorded.`)];
}
