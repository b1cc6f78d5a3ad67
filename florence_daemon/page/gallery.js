// The pictures captioned last: small, with their captions.

import { news, picture } from "./api.js";
import { captionEditor } from "./editor.js";
import { byId, el, keep, setText } from "./dom.js";

const STEP = 24;
const MOST = 240;
// So many thumbnails are asked for at once: one process makes them.
const AT_ONCE = 3;

let wanted = STEP;
let loading = 0;
const waiting = [];

/** Wire the button. */
export function start(refresh) {
  byId("more").addEventListener("click", () => {
    wanted = Math.min(MOST, wanted + STEP);
    refresh();
  });
}

/** Ask for the latest pictures, and show what is new. Throws Refused. */
export async function update() {
  const answer = await news(`/pictures?limit=${wanted}`);
  if (answer === null) return;
  const { pictures } = answer;
  byId("none").hidden = pictures.length > 0;
  byId("more").hidden = pictures.length < wanted || wanted >= MOST;
  const grid = byId("grid");
  const edited = [...grid.children].filter((card) => card.querySelector("form")).map((card) => card.shown);
  keep(grid, withThese(pictures, edited, "id"), (shown) => shown.id, makeCard, updateCard);
}

/** Show nothing any more: somebody signed out. */
export function clear() {
  wanted = STEP;
  byId("grid").replaceChildren();
}

function makeCard(shown) {
  const card = el(
    "li",
    { className: "card" },
    el("div", { className: "thumbnail" }),
    el("p", { className: "name", title: shown.path }, shown.name),
    el("div", { className: "captions" }),
  );
  watcher.observe(card);
  return card;
}

function updateCard(card, shown) {
  card.shown = shown;
  if (card.dataset.thumbnail !== shown.thumbnail && card.dataset.seen) queue(card);
  setText(card.querySelector(".name"), shown.name);
  const captions = card.querySelector(".captions");
  const edited = [...captions.children].map((element) => element.edited()).filter(Boolean);
  keep(
    captions,
    withThese(shown.captions, edited, "ext"),
    (caption) => caption.ext,
    (caption) => captionEditor(card, caption.ext),
    (item, caption) => item.show(caption),
  );
}

/** These and, at the end, those others that are not among them: somebody is writing there. */
function withThese(these, others, key) {
  return [...these, ...others.filter((other) => !these.some((each) => each[key] === other[key]))];
}

// Thumbnails are asked for once their card is near what can be seen.
const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      target.dataset.seen = "yes";
      watcher.unobserve(target);
      queue(target);
    }
  },
  { rootMargin: "400px" },
);

function queue(card) {
  card.dataset.thumbnail = card.shown.thumbnail;
  waiting.push(card);
  work();
}

async function work() {
  if (loading >= AT_ONCE || !waiting.length) return;
  const card = waiting.shift();
  loading += 1;
  await showThumbnail(card);
  loading -= 1;
  work();
}

async function showThumbnail(card) {
  const { id, thumbnail, name } = card.shown;
  if (!card.isConnected) return;
  const frame = card.querySelector(".thumbnail");
  try {
    const address = await picture(`/pictures/${id}/thumbnail?v=${thumbnail}`);
    const free = () => URL.revokeObjectURL(address);
    frame.replaceChildren(el("img", { alt: name, src: address, on: { load: free, error: free } }));
  } catch (error) {
    if (error.status === 503) setTimeout(() => queue(card), 3000);
    else frame.replaceChildren(el("p", { className: "hint" }, error.message));
  }
}
