"use strict";
// Everything from outside becomes text through `h`: nothing is ever parsed as HTML.

const EXPORTED = document.documentElement.hasAttribute("data-exported");
const waiting = new Map();

/** An element with attributes (`on...` are listeners, `style` an object) and children: elements, texts, or null. */
function h(name, attributes, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function svg(name, attributes, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [name, text] of Object.entries(value)) element.style.setProperty(name, text);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** The data of a view: from the server, or from the files of an export. Null when there is none. */
async function load(name) {
  if (!EXPORTED) {
    const answer = await fetch("/data/" + name.split("/").map(encodeURIComponent).join("/"));
    return answer.ok ? answer.json() : null;
  }
  if (!waiting.has(name)) {
    waiting.set(name, new Promise((resolve) => {
      const script = h("script", { src: "data/" + name + ".js", onerror: () => resolve(null) });
      script.resolve = resolve;
      script.dataset.name = name;
      document.head.append(script);
    }));
  }
  return waiting.get(name);
}

function received(name, content) {
  for (const script of document.querySelectorAll("script[data-name]")) {
    if (script.dataset.name === name) script.resolve(content);
  }
}

function screenAddress(run, part, name) {
  return (EXPORTED ? "" : "/") + `screens/${run}/${part}/` + name.split("/").map(encodeURIComponent).join("/");
}

const number = (value, digits = 2) => (typeof value === "number" ? value.toFixed(digits).replace(/\.?0+$/, (zeros) => (zeros.includes(".") ? "" : zeros)) : "–");
const percent = (value) => (typeof value === "number" ? (100 * value).toFixed(1) + " %" : "–");
const signed = (value) => (typeof value === "number" ? (value > 0 ? "+" : "") + number(value) : "–");
const words = (text) => String(text === null || text === undefined ? "" : text).replaceAll("_", " ");

function seconds(value) {
  if (typeof value !== "number" || !isFinite(value)) return "–";
  if (value < 10) return value.toFixed(1) + " s";
  if (value < 120) return Math.round(value) + " s";
  return value < 7200 ? Math.round(value / 60) + " min" : (value / 3600).toFixed(1) + " h";
}

const GOOD = "success", LOST = "infra_error";
function badge(outcome) {
  return h("span", { class: "badge " + String(outcome).replace(/\W/g, "") }, words(outcome));
}

function figure(name, value, note) {
  return h("div", { class: "figure" }, h("b", null, value), h("span", null, name), note ? h("small", null, note) : null);
}

/** How many of the episodes of a group something was seen in. */
function commonly(group) {
  return group.findings.map(([kind, count]) => `${kind} ${count} of ${group.members.length}`).join(" · ");
}

/** How often a group succeeded: `won` of the `scored`, and how many of its episodes were `lost`. */
function tally(group) {
  const count = (outcome) => group.members.filter((member) => member.outcome === outcome).length;
  return { won: count(GOOD), scored: group.members.length - count(LOST), lost: count(LOST) };
}

/** The same in words; `did` is said after the successes. */
function counted(group, did = "") {
  const { won, scored, lost } = tally(group);
  return [scored ? `${won} of ${scored}${did}` : null, lost ? `${lost} lost` : null].filter(Boolean).join(", ");
}

function dots(members) {
  return h("span", { class: "dots" }, members.map((member) => h("i", { class: "dot " + String(member.outcome).replace(/\W/g, ""), title: words(member.outcome) })));
}

function link(to, ...children) {
  return h("a", { href: "#" + to }, children);
}

function empty(text) {
  return h("p", { class: "empty" }, text);
}
