// What the daemon does: its model, its queue, its folders, and what failed.

import { tell } from "./api.js";
import { byId, el, keep, say, setText, svg } from "./dom.js";

const STATES = {
  unloaded: "not loaded",
  loading: "loading",
  loaded: "loaded",
  restarting: "restarting",
  failed: "failed",
};
const HEALTH = { ok: "ok", degraded: "degraded", failed: "failed" };

let refresh = () => {};

/** Wire the buttons. after: asks anew, once something was done. */
export function start(after) {
  refresh = after;
  byId("model-switch").addEventListener("click", switchModel);
  byId("retry-all").addEventListener("click", () => retry(null));
}

/** Show an overview. */
export function show(overview) {
  showModel(overview.model);
  showProblems(overview);
  showNumbers(overview.queue);
  showPlot(overview.activity);
  showFolders(overview.folders);
  showFailures(overview.failures, overview.failures_total);
  setText(byId("version"), `Florence Daemon ${overview.version}`);
}

function showModel(model) {
  setText(byId("model-name"), model.name);
  byId("model-name").title = model.name;
  const state = byId("model-state");
  state.dataset.state = model.state;
  setText(state, STATES[model.state] || model.state);
  state.title = details(model);
  showLeaving(model.unloads_in_s);
  const button = byId("model-switch");
  const isThere = model.state === "loaded" || model.state === "loading";
  button.hidden = false;
  button.dataset.action = isThere ? "unload" : "load";
  setText(button, isThere ? "Unload" : "Load");
}

/** Say what is wrong with the model and with the configuration. */
function showProblems({ model, configuration }) {
  const problems = [];
  if (model.error) problems.push(`The model: ${model.error}`);
  if (configuration.error) problems.push(`The configuration is wrong, and the one before it still counts: ${configuration.error}`);
  byId("notice").dataset.daemon = problems.join(" · ");
  showNotice();
}

let leavesAt = null;

function showLeaving(seconds) {
  leavesAt = seconds === null ? null : performance.now() + 1000 * seconds;
  tick();
}

/** Count down to when the model leaves; called every second. */
export function tick() {
  const seconds = leavesAt === null ? null : Math.max(0, Math.round((leavesAt - performance.now()) / 1000));
  setText(byId("model-leaves"), seconds === null ? "" : `leaves in ${duration(seconds)}`);
}

function duration(seconds) {
  if (seconds < 90) return `${seconds} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

function details(model) {
  const parts = [];
  if (model.device) parts.push(`on ${model.device}`);
  const loaded = model.engines.filter((engine) => engine.state === "loaded").length;
  if (loaded && model.engines.length > 1) parts.push(`${loaded} of ${model.engines.length} engines`);
  if (model.load_s !== null) parts.push(`loaded in ${model.load_s} s`);
  if (model.resident_mb) parts.push(`${model.resident_mb} MB of memory`);
  return parts.join(", ");
}

/** Say that something is wrong that stays wrong; that the daemon does not answer goes before what it said. */
export function showNotice(text) {
  const notice = byId("notice");
  if (text !== undefined) notice.dataset.server = text;
  const shown = notice.dataset.server || notice.dataset.daemon || "";
  setText(notice, shown);
  notice.hidden = !shown;
}

async function switchModel(event) {
  const button = event.currentTarget;
  button.disabled = true;
  try {
    await tell(`/${button.dataset.action}`);
    say(button.dataset.action === "load" ? "The model is being loaded." : "The model was told to leave.");
  } catch (error) {
    say(error.message);
  }
  button.disabled = false;
  refresh();
}

function showNumbers(queue) {
  const waiting = queue.http + queue.folder + queue.backfill;
  const numbers = [
    ["waiting", waiting, `${queue.http} of people, ${queue.folder} of folders, ${queue.backfill} of backfills`],
    ["at work", queue.running, ""],
    ["settling", queue.settling, "files that may still be written"],
    ["captioned", queue.captioned, "since the start"],
    ["failed tries", queue.failed, "since the start"],
  ];
  keep(
    byId("numbers"),
    numbers,
    ([name]) => name,
    ([name, , title]) => el("div", { title }, el("dt", {}, name), el("dd")),
    (item, [, number, title]) => {
      setText(item.lastElementChild, number.toLocaleString("en"));
      item.title = title;
    },
  );
}

const WIDTH = 600;
const HEIGHT = 120;

function showPlot(counts) {
  const plot = byId("plot");
  const most = Math.max(...counts, 1);
  const wide = WIDTH / counts.length;
  plot.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  const bars = counts.map((count, minute) => {
    const high = count ? Math.max(3, (count / most) * (HEIGHT - 4)) : 1.5;
    const place = { x: minute * wide + wide * 0.14, y: HEIGHT - high, width: wide * 0.72, height: high };
    return svg("rect", { ...place, class: count ? "bar-some" : "bar-none" });
  });
  plot.replaceChildren(...bars);
  const total = counts.reduce((sum, count) => sum + count, 0);
  setText(byId("plot-title"), total ? `${total} in the last hour, ${most} a minute at most` : "nothing in the last hour");
}

function showFolders(folders) {
  const shown = folders.length ? folders : [{ path: "", health: "ok", watching: "No folder is watched.", reason: "" }];
  keep(byId("folders"), shown, (folder) => folder.path, makeFolder, updateFolder);
}

function makeFolder(folder) {
  if (!folder.path) return el("li", { className: "hint" }, folder.watching);
  return el(
    "li",
    {},
    el("span", { className: "dot", aria: { hidden: "true" } }),
    el("div", {}, el("span", { className: "path" }, folder.path), el("span", { className: "health" }), el("p", { className: "hint" })),
  );
}

function updateFolder(item, folder) {
  if (!folder.path) return;
  item.dataset.health = folder.health;
  setText(item.querySelector(".health"), HEALTH[folder.health] || folder.health);
  const activity = folder.scanning ? "is being scanned" : folder.watching;
  setText(item.querySelector(".hint"), folder.reason || activity);
}

function showFailures(failures, total) {
  byId("failures").hidden = !failures.length;
  setText(byId("failures-title"), total === 1 ? "One picture failed" : `${total} pictures failed`);
  keep(byId("failure-list"), failures, (failure) => failure.path, makeFailure, updateFailure);
  const more = byId("failures-more");
  more.hidden = total <= failures.length;
  setText(more, `and ${total - failures.length} more: florence-daemon status lists all`);
}

function makeFailure(failure) {
  const name = nameOf(failure);
  return el(
    "li",
    {},
    el("div", {}, el("span", { className: "path", title: failure.path }, name), el("p", { className: "reason" }), el("p", { className: "hint" })),
    el("button", { type: "button", aria: { label: `Try ${name} again` }, on: { click: () => retry(failure.path) } }, "Try again"),
  );
}

function updateFailure(item, failure) {
  setText(item.querySelector(".reason"), failure.reason);
  const tries = failure.attempts === 1 ? "tried once" : `tried ${failure.attempts} times`;
  const next = failure.next_try_in_s;
  const folder = failure.path.slice(0, -nameOf(failure).length - 1);
  const when = next === null ? tries : `${tries}, again in ${duration(Math.round(next))}`;
  setText(item.querySelector(".hint"), `${folder} · ${when}`);
}

function nameOf(failure) {
  return failure.path.split(/[\\/]/).pop();
}

async function retry(path) {
  try {
    const { retried } = await tell("/retry", path === null ? {} : { path });
    say(retried === 1 ? "One picture is tried again." : `${retried} pictures are tried again.`);
    } catch (error) {
    say(error.message);
  }
  refresh();
}
