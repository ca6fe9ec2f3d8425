// Runs in every MiniWoB++ page before the page's own scripts, after elements.js; adds to window.cua.
(() => {
  // The reward panel, the click tracker and the START cover lie in the page and would be drawn or clicked.
  const STYLE = `
    #reward-display, #click-canvas, #sync-task-cover { display: none !important; }
    html, body { overflow: hidden !important; width: 160px; height: 210px; }`;
  const DAY_MS = 86400000;

  addEventListener("DOMContentLoaded", () => {
    const style = document.createElement("style");
    style.textContent = STYLE;
    document.head.append(style);
    if (window.jQuery) jQuery.fx.off = true;
  });

  /** Starts the episode that `seed` determines and returns its goal when its pictures are there. */
  async function start(seed) {
    document.activeElement?.blur();
    core.EPISODE_MAX_TIME = DAY_MS; // must precede startEpisodeReal: the default ends the episode after 10 s
    Math.seedrandom(seed);
    core.startEpisodeReal();
    await settled();
    return core.getUtterance();
  }

  const pictures = new Map(); // URL -> promise of its arrival

  /** Waits for the icons of style sheets, which are fetched when first shown; returns whether the episode is over. */
  async function settled() {
    for (const element of document.querySelectorAll("body *")) {
      const { backgroundImage, content } = getComputedStyle(element);
      for (const [, url] of `${backgroundImage} ${content}`.matchAll(/url\("(.+?)"\)/g)) {
        if (!pictures.has(url)) pictures.set(url, decoded(url));
      }
    }
    await Promise.all(pictures.values());
    return WOB_DONE_GLOBAL;
  }

  function decoded(url) {
    const image = new Image();
    image.src = url;
    return image.decode().catch(() => {}); // a picture that does not exist never appears
  }

  Object.assign(window.cua, { start, settled });
})();
