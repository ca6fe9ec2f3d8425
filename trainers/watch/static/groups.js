"use strict";

async function showGroups(run, chosen) {
  const groups = await load(run + "/groups");
  if (!groups.length) return [empty("No training episode has been recorded yet.")];
  const [part, name] = chosen ? [chosen[0], chosen[1]] : [];
  const current = groups.find((group) => String(group.part) === part && group.group === name) || groups.find((group) => group.state === "kept") || groups.find(parted) || groups[0];
  const members = await load(`${run}/group/${current.part}/${current.group}`) || [];
  return [h("div", { class: "split" },
    h("div", { class: "list", role: "listbox", "aria-label": "Groups" }, groups.map((group) => groupItem(run, group, group === current))),
    h("div", { class: "detail" }, groupDetail(run, current, members)))];
}

const parted = (group) => new Set(group.members.map((member) => member.reward)).size > 1;

function groupItem(run, group, current) {
  return h("a", { href: `#${run}/groups/${group.part}/${group.group}`, class: "item" + (current ? " current" : ""), role: "option", "aria-selected": String(current) },
    h("span", { class: "row" }, h("b", { class: "mono" }, group.group),
      h("span", { class: "soft" }, group.step !== null ? "step " + group.step : group.state ? "no step" : "under way"),
      h("span", { class: "tag " + (group.state || "") }, group.state || "waiting")),
    h("span", { class: "soft" }, group.task),
    h("span", { class: "dots" }, group.members.map((member) => h("i", { class: "dot " + String(member.outcome).replace(/\W/g, ""), title: words(member.outcome) }))));
}

function groupDetail(run, group, members) {
  const scored = members.filter((member) => member.outcome !== "infra_error");
  const won = scored.filter((member) => member.outcome === GOOD).length;
  return [
    h("h1", null, group.goal),
    h("p", { class: "soft" }, `${group.group} · ${group.task} · policy version ${group.version} · ${won} of ${scored.length} succeeded`),
    group.why ? h("p", { class: "notice" }, words(group.state) + ": " + group.why) : null,
    strips(run, members, (member) => [
      link(`${run}/episodes/${member.n}`, h("b", { class: "mono" }, member.id)), badge(member.outcome),
      h("span", null, "reward ", h("b", null, number(member.reward))),
      h("span", { class: member.advantage > 0 ? "good" : member.advantage < 0 ? "bad" : "soft" }, "advantage ", h("b", null, signed(member.advantage))),
    ]),
  ];
}
