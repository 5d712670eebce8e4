// Words of a page that somebody would not see whole: beyond the screen, or cut by what they stand in. What scrolls in a box
// of its own is not cut, nor what is there for screen readers alone.
() => {
  const wide = document.documentElement.clientWidth;
  const cut = [];
  // What an element hands down to those below it: whether nothing in it is seen, and between which edges.
  const known = new Map();
  const room = (at) => {
    if (at === null) return { unseen: false, left: 0, right: wide };
    if (known.has(at)) return known.get(at);
    const style = getComputedStyle(at);
    let { unseen, left, right } = room(at.parentElement);
    unseen ||= style.clipPath !== "none" || style.visibility === "hidden" || style.display === "none";
    if (["auto", "scroll"].includes(style.overflowX)) [left, right] = [-Infinity, Infinity];
    if (["hidden", "clip"].includes(style.overflowX)) {
      const box = at.getBoundingClientRect();
      [left, right] = [Math.max(left, box.left), Math.min(right, box.right)];
    }
    known.set(at, { unseen, left, right });
    return known.get(at);
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walk.nextNode(); text !== null; text = walk.nextNode()) {
    const words = text.data.trim();
    const at = text.parentElement;
    if (words === "" || at.closest("svg, script, select, .skip") !== null) continue;
    const { unseen, left, right } = room(at);
    if (unseen) continue;
    const range = document.createRange();
    range.selectNodeContents(text);
    if ([...range.getClientRects()].some((box) => box.width > 0 && (box.left < left - 1 || box.right > right + 1))) cut.push(words.slice(0, 80));
  }
  return cut;
}
