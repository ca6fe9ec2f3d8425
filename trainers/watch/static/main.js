"use strict";

const VIEWS = [["now", "Now", showNow], ["groups", "Groups", showGroups], ["episodes", "Episodes", showEpisodes],
  ["evaluations", "Evaluations", showEvaluations], ["curves", "Curves", showCurves]];
const LIVE_VIEWS = ["now", "curves"];
let runs = [], drawing = 0, changed = false;

function where() {
  const [run, view, ...chosen] = decodeURIComponent(location.hash.slice(1)).split("/");
  const known = VIEWS.find(([name]) => name === view) || VIEWS[0];
  return { run: Number(run) < runs.length ? Number(run) || 0 : 0, view: known, chosen: chosen.length ? chosen : null };
}

/** Draw what the address says; an older drawing that is still loading is dropped. */
async function route(keepPlace) {
  const mine = ++drawing, { run, view, chosen } = where();
  document.title = `${runs[run].name} · ${view[1]}`;
  document.getElementById("run").value = String(run);
  document.getElementById("tabs").replaceChildren(...VIEWS.map(([name, title]) =>
    h("a", { href: `#${run}/${name}`, "aria-current": name === view[0] ? "page" : null }, title)));
  let content;
  try {
    content = await view[2](run, chosen);
  } catch (error) {
    content = [h("p", { class: "notice bad" }, "This could not be shown: " + error.message)];
  }
  if (mine !== drawing) return;
  const list = document.querySelector(".list"), scrolled = list ? list.scrollTop : 0;
  const main = document.getElementById("view"), drawn = h("main", null, content);
  if (keepPlace && main.dataset.view === view[0]) patchChildren(main, drawn);
  else main.replaceChildren(...drawn.childNodes);
  main.dataset.view = view[0];
  const after = document.querySelector(".list");
  if (after) after.scrollTop = scrolled;
  if (!keepPlace) window.scrollTo(0, 0);
}

/** Make the children of `before` what those of `after` are; what is the same stays, pictures and focus with it. */
function patchChildren(before, after) {
  const [there, drawn] = [[...before.childNodes], [...after.childNodes]];
  drawn.forEach((node, index) => (index < there.length ? patch(there[index], node) : before.append(node)));
  there.slice(drawn.length).forEach((node) => node.remove());
}

function patch(before, after) {
  if (before.isEqualNode(after)) return;
  if (before.nodeName !== after.nodeName || ["IMG", "svg", "SELECT", "INPUT"].includes(before.nodeName)) { before.replaceWith(after); return; }
  if (before.nodeType === Node.TEXT_NODE) { before.data = after.data; return; }
  for (const { name } of [...before.attributes]) if (!after.hasAttribute(name)) before.removeAttribute(name);
  for (const { name, value } of after.attributes) if (before.getAttribute(name) !== value) before.setAttribute(name, value);
  patchChildren(before, after);
}

/** Go to the next or former thing of the list that is shown. */
function move(by) {
  const { run, view, chosen } = where();
  if (view[0] === "groups") {
    const items = [...document.querySelectorAll(".list .item")];
    const next = items[items.findIndex((item) => item.classList.contains("current")) + by];
    if (next) { location.hash = next.getAttribute("href"); next.scrollIntoView({ block: "nearest" }); }
  } else if (view[0] === "episodes" && chosen) {
    const next = Number(chosen[0]) + by;
    if (next >= 0 && next <= lastEpisode) location.hash = `#${run}/episodes/${next}`;
  } else {
    const links = [...document.querySelectorAll("tbody a")];
    const next = links[links.indexOf(document.activeElement) + by];
    if (next) next.focus();
  }
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.matches("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const { run, view, chosen } = where(), view_number = Number(event.key);
  if (view_number >= 1 && view_number <= VIEWS.length) location.hash = `#${run}/${VIEWS[view_number - 1][0]}`;
  else if (event.key === "j") move(1);
  else if (event.key === "k") move(-1);
  else if (event.key === "Escape" && chosen) location.hash = `#${run}/${view[0]}`;
  else if (event.key === "/") {
    event.preventDefault();
    const input = document.getElementById("search");
    if (input) input.focus();
    else location.hash = `#${run}/episodes`;
  }
});

function listen() {
  const state = document.getElementById("state");
  if (EXPORTED) { state.textContent = "exported"; return; }
  const events = new EventSource("/events");
  events.onopen = () => { state.textContent = "connected"; state.className = "on"; };
  events.onerror = () => { state.textContent = "the server is not there"; state.className = "off"; };
  events.onmessage = () => { changed = true; };
  setInterval(() => {
    const { view } = where(), typing = document.activeElement && document.activeElement.matches("input, select");
    if (changed && !document.hidden && !typing && LIVE_VIEWS.includes(view[0])) { changed = false; route(true); }
  }, 1000);
}

async function begin() {
  runs = await load("runs");
  const choice = document.getElementById("run");
  choice.replaceChildren(...runs.map((run, index) => h("option", { value: String(index) }, run.name + (run.parts > 1 ? ` (resumed ${run.parts - 1} times)` : ""))));
  choice.addEventListener("change", () => { location.hash = `#${choice.value}/${where().view[0]}`; });
  window.addEventListener("hashchange", () => route());
  listen();
  await route();
}

begin();
