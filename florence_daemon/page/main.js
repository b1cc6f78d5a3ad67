// The page: asks the daemon every few seconds what it does, and shows it.

import { Refused, forget, news, setToken, token } from "./api.js";
import * as ask from "./ask.js";
import { byId, setText } from "./dom.js";
import * as gallery from "./gallery.js";
import * as work from "./work.js";

const EVERY_MS = 2000;
// While the daemon does not answer, it is asked less and less often, up to this.
const LONGEST_MS = 15000;
// Captions may be changed by others, of which no number tells.
const PICTURES_MS = 10000;

let timer = 0;
let unanswered = 0;
let captioned = null;
let picturesAt = -PICTURES_MS;
let isLooking = false;

async function look() {
  clearTimeout(timer);
  if (isLooking) return;
  isLooking = true;
  try {
    await ask.prepare();
    const overview = await news("/overview");
    if (overview) work.show(overview);
    await lookAtPictures(overview);
    unanswered = 0;
    work.showNotice("");
    show("page");
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) show("sign-in");
    else work.showNotice(`${error.message} It is asked again.`);
    unanswered += 1;
  } finally {
    isLooking = false;
    schedule();
  }
}

async function lookAtPictures(overview) {
  const isNew = overview && overview.queue.captioned !== captioned;
  if (!isNew && performance.now() - picturesAt < PICTURES_MS) return;
  await gallery.update();
  picturesAt = performance.now();
  if (overview) captioned = overview.queue.captioned;
}

/** Ask at once: something was done. */
function lookNow() {
  picturesAt = -PICTURES_MS;
  look();
}

function schedule() {
  clearTimeout(timer);
  if (!document.hidden && byId("sign-in").hidden) timer = setTimeout(look, Math.min(LONGEST_MS, EVERY_MS * (1 + unanswered)));
}

function show(view) {
  const isNew = byId(view).hidden;
  byId("page").hidden = view !== "page";
  byId("sign-in").hidden = view !== "sign-in";
  byId("sign-out").hidden = view !== "page" || !token();
  if (view === "sign-in" && isNew) byId("token").focus();
}

async function signIn(event) {
  event.preventDefault();
  setText(byId("sign-in-problem"), "");
  setToken(byId("token").value.trim());
  try {
    await news("/overview");
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    setToken("");
    setText(byId("sign-in-problem"), error.status === 401 ? "That is not the token." : error.message);
    byId("token").select();
    return;
  }
  byId("token").value = "";
  forget();
  show("page");
  byId("latest").focus({ preventScroll: true });
  lookNow();
}

function signOut() {
  setToken("");
  forget();
  gallery.clear();
  captioned = null;
  show("sign-in");
}

work.start(lookNow);
gallery.start(lookNow);
ask.start();
byId("sign-in-form").addEventListener("submit", signIn);
byId("sign-out").addEventListener("click", signOut);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && byId("sign-in").hidden) look();
});
setInterval(work.tick, 1000);
look();
