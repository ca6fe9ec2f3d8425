"use strict";

const wanted = { text: "", step: "", failing: false };

async function showGroups(run, chosen) {
  const groups = await load(run + "/groups");
  if (!groups.length) return [empty("No training episode has been recorded yet.")];
  const [part, name] = chosen ? [chosen[0], chosen[1]] : [];
  const listed = groups.filter(isWanted), any = listed.length ? listed : groups;
  const current = groups.find((group) => String(group.part) === part && group.group === name) || any.find((group) => group.state === "kept") || any.find(parted) || any[0];
  const members = await load(`${run}/group/${current.part}/${current.group}`) || [];
  return [h("div", { class: "split" },
    h("div", null, groupFilters(), h("div", { class: "list", role: "listbox", "aria-label": "Groups" }, listed.length ? listed.map((group) => groupItem(run, group, group === current)) : empty("No group matches."))),
    h("div", { class: "detail" }, groupDetail(run, current, members)))];
}

function groupFilters() {
  const changed = (key, value) => { wanted[key] = value; route(true); };
  return h("div", { class: "filters" },
    h("input", { type: "search", id: "search", placeholder: "task, goal", "aria-label": "Search groups", value: wanted.text, onchange: (event) => changed("text", event.target.value) }),
    h("input", { type: "number", min: "1", placeholder: "step", "aria-label": "Step", value: wanted.step, onchange: (event) => changed("step", event.target.value) }),
    h("label", null, h("input", { type: "checkbox", checked: wanted.failing, onchange: (event) => changed("failing", event.target.checked) }), " none succeeded"));
}

function isWanted(group) {
  const text = wanted.text.trim().toLowerCase();
  return (wanted.step === "" || String(group.step) === wanted.step) && !(wanted.failing && tally(group).won)
    && (!text || [group.group, group.task, group.goal].some((each) => String(each).toLowerCase().includes(text)));
}

const parted = (group) => new Set(group.members.map((member) => member.reward)).size > 1;

function groupItem(run, group, current) {
  return h("a", { href: `#${run}/groups/${group.part}/${group.group}`, class: "item" + (current ? " current" : ""), role: "option", "aria-selected": String(current) },
    h("span", { class: "row" }, h("b", { class: "mono" }, group.group),
      h("span", { class: "soft" }, group.step !== null ? "step " + group.step : group.state ? "no step" : "under way"),
      h("span", { class: "tag " + (group.state || "") }, group.state || "waiting")),
    h("span", { class: "soft" }, group.task),
    dots(group.members));
}

function groupDetail(run, group, members) {
  return [
    h("h1", null, group.goal),
    h("p", { class: "soft" }, `${group.group} · ${group.task} · policy version ${group.version} · ` + counted(group, " succeeded")),
    group.why ? h("p", { class: "notice" }, words(group.state) + ": " + group.why) : null,
    group.findings.length ? h("p", { class: "notice" }, "Seen in its episodes: " + commonly(group)) : null,
    strips(run, members, (member) => [
      link(`${run}/episodes/${member.n}`, h("b", { class: "mono" }, member.id)), badge(member.outcome),
      h("span", null, "reward ", h("b", null, number(member.reward))),
      h("span", { class: member.advantage > 0 ? "good" : member.advantage < 0 ? "bad" : "soft" }, "advantage ", h("b", null, signed(member.advantage))),
    ]),
  ];
}
