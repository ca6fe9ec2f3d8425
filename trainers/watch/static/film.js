"use strict";
// Screens with what was done on them, alone and side by side.

/** A screen with the place that was acted on. */
function shot(run, part, name, point, alt) {
  if (!name) return h("div", { class: "shot none" }, "no screen kept");
  const image = h("img", { src: screenAddress(run, part, name), alt, loading: "lazy" });
  image.addEventListener("error", () => image.replaceWith(h("div", { class: "shot none" }, "thinned to save disk")));
  const mark = point ? h("span", { class: "tap", title: `at (${point[0]}, ${point[1]}) of 1000`,
    style: { left: place(point[0]), top: place(point[1]) } }) : null;
  return h("div", { class: "shot" }, image, mark);
}

// The middle of a pixel: coordinates 0..1000 divide the screen into 1001 equal steps.
const place = (value) => (100 * (value + 0.5) / 1001).toFixed(2) + "%";

/** What an episode saw, turn by turn: screen, action, its end. */
function frames(episode) {
  const found = (episode.turns || []).map((turn) => ({ screen: turn.screen, point: turn.point,
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

/** Episodes as film strips, one below the other; `heading` makes what stands before each. */
function strips(run, members, heading) {
  if (!members.length) return empty("No episode of it is kept.");
  const first = reference(members), compared = frames(first);
  const partings = members.map((member) => (member === first ? -1 : parting(frames(member), compared)));
  const earliest = Math.min(...partings.filter((column) => column >= 0));
  return h("div", { class: "strips" },
    h("p", { class: "soft" }, isFinite(earliest) ? `They part at screen ${earliest + 1}. Each is compared with ${first.id}, the shortest success or the first.` : "All see the same screens."),
    members.map((member, index) => h("section", { class: "strip", "data-episode": member.id },
      h("div", { class: "heading" }, heading(member), member === first && members.length > 1 ? h("span", { class: "soft" }, "compared with") : null),
      h("div", { class: "film", tabindex: "0", role: "group", "aria-label": "Film of " + member.id },
        frames(member).map((frame, column) => h("figure", { class: column === partings[index] ? "frame parts" : "frame" },
          column === partings[index] ? h("span", { class: "flag" }, "parts here") : null,
          shot(run, member.part, frame.screen, frame.point, "Screen " + (column + 1)),
          h("figcaption", { class: frame.end ? "soft" : frame.malformed ? "bad" : null, title: frame.action }, frame.action),
          frame.result ? h("small", { class: "bad", title: frame.result }, frame.result) : null))))));
}
