"use strict";
// Screens with what was done on them, alone and side by side.

/** A screen with the place that was acted on. */
function shot(run, part, name, point, alt, touch) {
  if (!name) return h("div", { class: "shot none" }, "no screen kept");
  const image = h("img", { src: screenAddress(run, part, name), alt, loading: "lazy" });
  image.addEventListener("error", () => image.replaceWith(h("div", { class: "shot none" }, "thinned to save disk")));
  const mark = point ? h("span", { class: "tap", title: `at (${point[0]}, ${point[1]}) of 1000` + (touch && touch.length ? ", " + whereAt(touch[0]) : ""),
    style: { left: place(point[0]), top: place(point[1]) } }) : null;
  return h("div", { class: "shot" }, image, touch && touch.length ? box(touch[0].place) : null, mark);
}

/** What stood where the finger was: on it, or how far from it. */
function whereAt({ place: { name }, right, below }) {
  const aside = [below && `${Math.abs(below)} ${below > 0 ? "below" : "above"}`, right && `${Math.abs(right)} ${right > 0 ? "right of" : "left of"}`].filter(Boolean);
  return aside.length ? `on nothing: ${aside.join(" and ")} “${name}”` : `on “${name}”`;
}

function touchNote(element, touch) {
  return touch && touch.length ? h(element, { class: touch[0].right || touch[0].below ? "bad" : "soft" }, whereAt(touch[0])) : null;
}

/** The outline of what was touched, or was nearest. */
function box({ name, left, top, right, bottom }) {
  const share = (value) => (100 * value / 1001).toFixed(2) + "%";
  return h("span", { class: "place", title: name, style: { left: share(left), top: share(top), width: share(right + 1 - left), height: share(bottom + 1 - top) } });
}

// The middle of a pixel: coordinates 0..1000 divide the screen into 1001 equal steps.
const place = (value) => (100 * (value + 0.5) / 1001).toFixed(2) + "%";

/** What an episode saw, turn by turn: screen, action, its end. */
function frames(episode) {
  const found = (episode.turns || []).map((turn) => ({ screen: turn.screen, point: turn.point, touch: turn.touch,
    action: turn.action || "malformed: " + turn.text, result: turn.result, malformed: !turn.action }));
  found.push({ screen: episode.final, point: null, action: words(episode.outcome), result: episode.failure || "", end: true });
  return found;
}

const pixels = (name) => (name ? name.split("/").pop() : null);

/** What the others are compared with: the shortest success, or the first episode. */
function reference(members) {
  const won = members.filter((member) => member.outcome === GOOD);
  return won.sort((a, b) => a.turns.length - b.turns.length)[0] || members[0];
}

/** The first column in which a film shows another screen than the one it is compared with; -1 when it never does. */
function parting(film, compared) {
  for (let column = 0; column < Math.max(film.length, compared.length); column++) {
    const [one, other] = [film[column], compared[column]];
    if (!one || !other || pixels(one.screen) !== pixels(other.screen)) return Math.min(column, film.length - 1);
  }
  return -1;
}

/** Where two films part because the same screen was touched in two places. */
function apart(film, compared, column, name) {
  const [here, there] = [film[column - 1], compared[column - 1]];
  if (!here || !there || !here.point || !there.point) return null;
  const [right, below] = [here.point[0] - there.point[0], here.point[1] - there.point[1]];
  if (!right && !below) return null;
  const by = [below && `${Math.abs(below)} ${below > 0 ? "lower" : "higher"}`, right && `${Math.abs(right)} further ${right > 0 ? "right" : "left"}`].filter(Boolean);
  return h("p", { class: "finding" }, `On screen ${column} it touched ${by.join(" and ")} than ${name}.`);
}

/** Episodes as film strips, one below the other; `heading` makes what stands before each. */
function strips(run, members, heading) {
  if (!members.length) return empty("No episode of it is kept.");
  const first = reference(members), compared = frames(first);
  const partings = members.map((member) => (member === first ? -1 : parting(frames(member), compared)));
  const earliest = Math.min(...partings.filter((column) => column >= 0));
  return h("div", { class: "strips" + (members.length > 4 ? " many" : "") },
    h("p", { class: "soft" }, isFinite(earliest) ? `They part at screen ${earliest + 1}. Each is compared with ${first.id}, the shortest success or the first.` : "All see the same screens."),
    members.map((member, index) => h("section", { class: "strip", "data-episode": member.id },
      h("div", { class: "heading" }, heading(member), member === first && members.length > 1 ? h("span", { class: "soft" }, "the others are compared with this one") : null),
      (member.findings || []).slice(0, 2).map(([, text]) => h("p", { class: "finding" }, text)),
      first.outcome === GOOD && member.outcome !== GOOD ? apart(frames(member), compared, partings[index], first.id) : null,
      h("div", { class: "film", tabindex: "0", role: "group", "aria-label": "Film of " + member.id },
        frames(member).map((frame, column) => h("figure", { class: column === partings[index] ? "frame parts" : "frame" },
          column === partings[index] ? h("span", { class: "flag" }, "parts here") : null,
          shot(run, member.part, frame.screen, frame.point, "Screen " + (column + 1), frame.touch),
          h("figcaption", { class: frame.end ? "soft" : frame.malformed ? "bad" : null, title: frame.action }, frame.action),
          touchNote("small", frame.touch),
          frame.result ? h("small", { class: "bad", title: frame.result }, frame.result) : null))))));
}
