// Keeps a page true while somebody looks at it: on news from the stream it fetches the page again and swaps what differs.
// At most one fetch a second, and fewer where the service is slow. Focus, scroll, open details and what was typed stay. Without this script every page is whole,
// only as old as its loading. A drawing that is too wide for its box is opened at now.
"use strict";
(() => {
  const AT_MOST_MS = 1000;
  const AT_LEAST_MS = 15000;
  const AGAIN_MS = 5000;
  const TICK_MS = 1000;
  const body = document.body;
  let ahead = skew(body.dataset.now);

  // ---- time: the same words as the server's (controller/words.py)

  function skew(now) {
    return now ? Date.parse(now) - Date.now() : 0;
  }

  function duration(seconds) {
    const whole = Math.floor(seconds);
    if (whole < 60) return `${whole} s`;
    const minutes = Math.floor(whole / 60);
    const hours = Math.floor(whole / 3600);
    const days = Math.floor(whole / 86400);
    if (hours === 0) return `${minutes} min`;
    if (days === 0) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
    return hours % 24 ? `${days} d ${hours % 24} h` : `${days} d`;
  }

  function tick() {
    const now = Date.now() + ahead;
    for (const time of document.querySelectorAll("time[data-away], time[data-lasting]")) {
      const seconds = (Date.parse(time.dateTime) - now) / 1000;
      if (Number.isNaN(seconds)) continue;
      let text;
      if ("lasting" in time.dataset) text = duration(Math.max(0, -seconds));
      else if (Math.abs(seconds) < 1) text = "now";
      else text = seconds > 0 ? `in ${duration(seconds)}` : `${duration(-seconds)} ago`;
      if (time.textContent !== text) time.textContent = text;
    }
  }

  // A picture that is wider than its box is opened at now, and stays there until somebody moves it.
  let placed = null;

  function atNow() {
    const box = document.querySelector(".gantt");
    const line = box?.querySelector(".now line");
    if (!line || (placed !== null && Math.abs(box.scrollLeft - placed) > 1)) return;
    const from = line.getBoundingClientRect().left - box.getBoundingClientRect().left;
    box.scrollLeft += from - box.clientWidth / 2;
    placed = box.scrollLeft;
  }

  // ---- the page, again

  // A field that somebody has touched, and details that somebody has opened or closed, are theirs.
  const callbacks = {
    beforeNodeMorphed(old, fresh) {
      if (old.nodeType !== Node.ELEMENT_NODE) return true;
      if (old instanceof HTMLDetailsElement && fresh instanceof HTMLDetailsElement) fresh.open = old.open;
      if (old.matches("input, textarea, select") && old.id !== "" && old.id === fresh.id) return false;
      return true;
    },
  };

  function swap(text) {
    const page = new DOMParser().parseFromString(text, "text/html");
    const fresh = page.getElementById("main");
    if (fresh === null || !page.body.dataset.now) return false;
    ahead = skew(page.body.dataset.now);
    body.dataset.generation = page.body.dataset.generation ?? "";
    body.dataset.forecast = page.body.dataset.forecast ?? "";
    const x = window.scrollX;
    const y = window.scrollY;
    for (const [place, whole] of [["main", fresh], ["reading", page.getElementById("reading")]]) {
      const old = document.getElementById(place);
      if (old === null || whole === null) continue;
      Idiomorph.morph(old, whole, { morphStyle: "outerHTML", ignoreActiveValue: true, restoreFocus: true, callbacks });
    }
    const places = document.querySelector("nav.places");
    const others = page.querySelector("nav.places");
    if (places !== null && others !== null) Idiomorph.morph(places, others, { morphStyle: "outerHTML", restoreFocus: true });
    document.title = page.title;
    if (window.scrollX !== x || window.scrollY !== y) window.scrollTo({ left: x, top: y, behavior: "instant" });
    atNow();
    tick();
    return true;
  }

  let waiting = 0;
  let asking = false;
  let wanted = false;
  let next = 0;

  function want() {
    wanted = true;
    if (asking || waiting !== 0 || document.hidden) return;
    waiting = window.setTimeout(fetchAgain, Math.max(0, next - performance.now()));
  }

  // The page as it is now; null where the service does not answer, or lacks a system behind it: what is shown stays.
  async function again() {
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" }, cache: "no-store" });
      // Logged out: the login page asks for the token, and leads back here.
      if (answer.redirected && new URL(answer.url).pathname === "/login") location.reload();
      return answer.status < 500 ? await answer.text() : null;
    } catch {
      return null;
    }
  }

  async function fetchAgain() {
    waiting = 0;
    asking = true;
    wanted = false;
    const begun = performance.now();
    let well = false;
    try {
      const text = await again();
      well = text !== null && swap(text);
    } finally {
      asking = false;
      // Many who look on at once make the service slow: each then asks less often, and leaves it nine tenths of its time.
      const took = performance.now() - begun;
      next = begun + Math.min(Math.max(AT_MOST_MS, 10 * took), AT_LEAST_MS);
      if (!well) window.setTimeout(want, AGAIN_MS);
      else if (wanted) want();
    }
  }

  // ---- the stream

  const link = document.getElementById("link");

  function say(text, on) {
    if (link === null) return;
    link.hidden = false;
    link.classList.toggle("on", on);
    if (link.textContent !== text) link.textContent = text;
  }

  const KINDS = [
    "board", "forecast", "reset", "commit-accepted", "commit-refused", "wave-opened", "wave-soaking", "wave-soaked", "wave-complete",
    "gate-failed", "revert-proposed", "device-flagged", "device-recovered", "condition-changed", "key-expiring",
    "assignment-expiring", "flag-acknowledged",
  ];

  function listen() {
    const source = new EventSource(body.dataset.live);
    source.addEventListener("open", () => say("live", true));
    source.addEventListener("error", () => {
      say("not live: reconnecting", false);
      // A browser gives up where it was answered with an error: then we try.
      if (source.readyState === EventSource.CLOSED) {
        source.close();
        window.setTimeout(listen, AGAIN_MS);
        want();
      }
    });
    for (const kind of KINDS) {
      source.addEventListener(kind, (event) => {
        // The first words are of the board and the forecast that this page was most likely made from.
        const known = (kind === "board" && String(JSON.parse(event.data).generation) === body.dataset.generation)
          || (kind === "forecast" && String(JSON.parse(event.data).number) === body.dataset.forecast);
        if (!known) want();
      });
    }
  }

  atNow();
  window.setInterval(tick, TICK_MS);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && wanted) want();
  });
  if (body.dataset.live) listen();
})();
