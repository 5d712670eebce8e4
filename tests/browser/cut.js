// Words of a page that somebody would not see whole: beyond the screen, or cut by what they stand in. What scrolls in a box
// of its own is not cut, nor what is there for screen readers alone.
() => {
  const wide = document.documentElement.clientWidth;
  const cut = [];
  const chain = function* (at) {
    for (; at !== null; at = at.parentElement) yield [at, getComputedStyle(at)];
  };
  const scrolls = (style) => ["auto", "scroll"].includes(style.overflowX);
  const unseen = (at) => [...chain(at)].some(([, style]) => style.clipPath !== "none" || style.visibility === "hidden" || style.display === "none");
  const edge = (at) => {
    // The nearest box that cuts, unless one that scrolls comes first.
    for (const [box, style] of chain(at)) {
      if (scrolls(style)) return [-Infinity, Infinity];
      if (["hidden", "clip"].includes(style.overflowX)) {
        const { left, right } = box.getBoundingClientRect();
        return [Math.max(left, 0), Math.min(right, wide)];
      }
    }
    return [0, wide];
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walk.nextNode(); text !== null; text = walk.nextNode()) {
    const words = text.data.trim();
    const at = text.parentElement;
    if (words === "" || at.closest("svg, script, select, .skip") !== null || unseen(at)) continue;
    const range = document.createRange();
    range.selectNodeContents(text);
    const [left, right] = edge(at);
    if ([...range.getClientRects()].some((box) => box.width > 0 && (box.left < left - 1 || box.right > right + 1))) cut.push(words.slice(0, 80));
  }
  return cut;
}
