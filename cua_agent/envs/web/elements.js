// Runs in every page before its own scripts; defines window.cua: what is on the screen, and what is focused.
(() => {
  // Carets blink and transitions move with the wall clock, so that two screenshots of one state would differ.
  const STYLE = `
    * { caret-color: transparent !important; transition: none !important; animation: none !important;
        scroll-behavior: auto !important; }`;
  const ROLES = {
    button: "button, input[type=button], input[type=submit], [role=button]",
    link: "a, [role=link], .alink",
    textbox: "input:is(:not([type]), [type=text], [type=input], [type=password], [type=search], [type=email], "
      + "[type=number], [type=date], [type=time])",
    textarea: "textarea, [contenteditable=true]",
    password: "input[type=password]",
    checkbox: "input[type=checkbox]",
    radio: "input[type=radio]",
    tab: "[role=tab]",
    listbox: "select",
    option: "option, [role=option]",
    menuitem: "[role=menuitem]",
    slider: ".ui-slider-handle, input[type=range]",
    circle: "svg circle",
    rectangle: "svg rect",
    triangle: "svg polygon",
  };
  const INTERACTIVE = Object.values(ROLES).join(", ");

  addEventListener("DOMContentLoaded", () => {
    const style = document.createElement("style");
    style.textContent = STYLE;
    document.head.append(style);
  });

  let field = null;

  /** What typing would reach: "line", "lines", "select" or "" (nothing); `held` tells of it from here on. */
  function focus() {
    field = document.activeElement ?? document.body;
    while (field.shadowRoot?.activeElement) field = field.shadowRoot.activeElement;
    if (field.matches("select")) return "select";
    if (field.matches(ROLES.textarea)) return "lines";
    return field.matches(ROLES.textbox) ? "line" : "";
  }

  /** The text of the field that `focus` found; null where it cannot be told. */
  const held = () => field.value ?? null;

  const clean = (text) => (text ?? "").replace(/\s+/g, " ").trim();
  const label = (node) => clean(node.innerText ?? node.textContent).replace(/:$/, "");

  /** The text beside an unlabelled field: before it, in the cell before its own, or after it. */
  function textBeside(field) {
    const alone = field.parentElement.children.length === 1;
    const before = textAlong(field, "previousSibling") || (alone && textAlong(field.parentElement, "previousSibling"));
    return before || textAlong(field, "nextSibling");
  }

  function textAlong(start, step) {
    for (let node = start[step]; node; node = node[step]) {
      if (node.nodeName === "BR" || node.id === "query" || node.matches?.(INTERACTIVE)) break;
      const text = label(node);
      if (text) return text;
    }
    return "";
  }

  /** The accessible name as a person would read it off the screen. */
  function nameOf(element) {
    const explicit = clean(element.getAttribute("aria-label"));
    if (explicit) return explicit;
    if (element.matches("input[type=button], input[type=submit]")) return clean(element.value);
    if (element.matches("input, textarea, select")) {
      const labels = [...(element.labels ?? [])].map(label).join(" ");
      return labels || clean(element.placeholder) || clean(element.title) || textBeside(element);
    }
    return label(element) || clean(element.title) || clean(element.getAttribute("alt"));
  }

  const ownText = (element) => [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && clean(node.data));

  /** Everything that has a name, in document order; the goal's own line is no part of the interface. */
  function candidates() {
    return [...document.querySelectorAll("body *:not(#query, #query *, script, style)")]
      .map((element) => ({ element, interactive: element.matches(INTERACTIVE) }))
      .filter(({ element, interactive }) => interactive || ownText(element))
      .map((candidate) => ({ ...candidate, name: nameOf(candidate.element) }));
  }

  /** The pixel [x, y] nearest to the element's centre where a click would reach it, or null when none is visible. */
  function visiblePixel(element) {
    const reaches = (x, y) => {
      const hit = document.elementFromPoint(x, y);
      return hit !== null && (element.contains(hit) || (element.localName === "option" && hit === element.closest("select")));
    };
    if (!element.checkVisibility({ visibilityProperty: true })) return null;
    for (const rect of element.getClientRects()) {
      for (const [across, down] of GRID) {
        const x = Math.floor(rect.left + rect.width * across);
        const y = Math.floor(rect.top + rect.height * down);
        if (x >= 0 && y >= 0 && x < innerWidth && y < innerHeight && reaches(x, y)) return [x, y];
      }
    }
    return null;
  }

  const FRACTIONS = [0.5, 0.3, 0.7, 0.1, 0.9];
  const offCentre = ([x, y]) => Math.hypot(x - 0.5, y - 0.5);
  const GRID = FRACTIONS.flatMap((y) => FRACTIONS.map((x) => [x, y])).sort((a, b) => offCentre(a) - offCentre(b));

  function firstVisible(found, index = 0) {
    let seen = 0;
    for (const { element } of found) {
      const pixel = visiblePixel(element);
      if (pixel && seen++ === index) return pixel;
    }
    return null;
  }

  /** "textbox", "textbox 2", "2nd textbox", "checkbox Abc", "Abc checkbox": a role, alone, counted or with a name. */
  function byRole(found, wanted) {
    for (const [role, selector] of Object.entries(ROLES)) {
      const match = wanted.match(`^(?:(.+) )?${role}(?: (.+))?$`);
      if (!match || (match[1] && match[2])) continue;
      const having = found.filter(({ element }) => element.matches(selector));
      const detail = match[1] ?? match[2];
      if (!detail) return firstVisible(having);
      const named = firstVisible(having.filter(({ name }) => name.toLowerCase() === detail));
      const count = detail.match(/^(\d+)(st|nd|rd|th)?$/);
      return named ?? (count && firstVisible(having, Number(count[1]) - 1));
    }
    return null;
  }

  /** The pixel [x, y] of the visible element called `target`, or null. Exact case wins, controls win over text. */
  function locate(target) {
    const wanted = clean(target);
    if (!wanted) return null;
    const found = candidates();
    const lower = wanted.toLowerCase();
    const tiers = [
      ({ name, interactive }) => interactive && name === wanted,
      ({ name }) => name === wanted,
      ({ name, interactive }) => interactive && name.toLowerCase() === lower,
      ({ name }) => name.toLowerCase() === lower,
    ];
    for (const tier of tiers) {
      const pixel = firstVisible(found.filter(tier));
      if (pixel) return pixel;
    }
    return byRole(found, lower) ?? (["x", "×"].includes(lower) ? locate("Close") : null);
  }

  window.cua = { focus, held, locate, visiblePixel };
})();
