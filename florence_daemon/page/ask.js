// A picture that a person drops, chooses or pastes, and what the model says of it.

import { Refused, ask as askDaemon } from "./api.js";
import { byId, el, say, setText, svg } from "./dom.js";
import { draw, listed, placesOf, region } from "./places.js";

const FIRST = "<MORE_DETAILED_CAPTION>";
const NAMES = { "<OD>": "Objects", "<OCR>": "Text (OCR)", "<OCR_WITH_REGION>": "Text (OCR) with its places" };
const HINTS = {
  nothing: "",
  text: "Say what is to be found.",
  "text or nothing": "Say what is to be found, or leave it empty for everything.",
  region: "Draw a box over the picture, or write the region: thousandths of its width and height.",
};

const FLAWS = {
  empty: "it is empty",
  cut: "it was cut off at the longest answer",
  loop: "it repeats itself",
  leak: "it holds marks of the model's own",
};

let tasks = [];
let file = null;
let asking = null;
let found = [];

/** Wire the form. */
export function start() {
  byId("file").addEventListener("change", (event) => {
    if (event.target.files.length) take(event.target.files[0]);
  });
  byId("prompt").addEventListener("change", showFields);
  byId("ask").addEventListener("submit", submit);
  byId("ask-cancel").addEventListener("click", () => asking?.abort());
  byId("preview").addEventListener("error", () => showPreview(false));
  byId("preview").addEventListener("load", () => showPreview(true));
  takeDropped();
  takePasted();
  takeRegion();
  new ResizeObserver(drawFound).observe(byId("overlay"));
}

/** Ask which prompts there are, once. Throws Refused. */
export async function prepare() {
  if (tasks.length) return;
  tasks = await askDaemon("/tasks");
  byId("prompt").replaceChildren(
    ...tasks.map((task) => el("option", { value: task.prompt, title: task.prompt, selected: task.prompt === FIRST }, nameOf(task.prompt))),
  );
  showFields();
}

function nameOf(prompt) {
  const words = prompt.slice(1, -1).toLowerCase().replaceAll("_", " ");
  return NAMES[prompt] || words[0].toUpperCase() + words.slice(1);
}

function task() {
  return tasks.find((each) => each.prompt === byId("prompt").value);
}

function showFields() {
  const { needs } = task();
  byId("text-field").hidden = needs === "nothing";
  byId("text").required = needs === "text" || needs === "region";
  setText(byId("text-label"), needs === "region" ? "Region" : "Text");
  byId("text").placeholder = needs === "region" ? "<loc_52><loc_332><loc_932><loc_774>" : "a red car";
  byId("text").value = "";
  byId("stage").dataset.draws = needs === "region" ? "yes" : "no";
  setText(byId("stage-hint"), HINTS[needs]);
  clear();
}

function takeDropped() {
  const stage = byId("stage");
  let inside = 0;
  document.addEventListener("dragenter", (event) => {
    if (hasFiles(event)) stage.dataset.dragged = String((inside += 1) > 0);
  });
  document.addEventListener("dragleave", (event) => {
    if (hasFiles(event)) stage.dataset.dragged = String((inside -= 1) > 0);
  });
  document.addEventListener("dragover", (event) => {
    if (hasFiles(event)) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    inside = 0;
    stage.dataset.dragged = "false";
    if (!hasFiles(event) || byId("page").hidden) return;
    event.preventDefault();
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
}

function hasFiles(event) {
  return event.dataTransfer?.types.includes("Files");
}

function takePasted() {
  document.addEventListener("paste", (event) => {
    const pasted = [...(event.clipboardData?.files || [])].find((each) => each.type.startsWith("image/"));
    if (pasted && !byId("page").hidden) take(pasted);
  });
}

function take(taken) {
  asking?.abort();
  file = taken;
  clear();
  const preview = byId("preview");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.alt = file.name;
  byId("stage").dataset.has = "yes";
  byId("shown").hidden = false;
  byId("ask-button").disabled = false;
  setText(byId("preview-name"), file.name);
  say(`${file.name} is chosen.`);
}

function showPreview(isShown) {
  byId("stage").dataset.preview = isShown ? "yes" : "no";
  if (!isShown) setText(byId("preview-name"), `${file?.name}: this browser cannot show it, the model may read it all the same.`);
}

function clear() {
  found = [];
  byId("answer").replaceChildren();
  byId("overlay").replaceChildren();
}

async function submit(event) {
  event.preventDefault();
  if (!file || asking) return;
  const { needs, prompt } = task();
  const form = new FormData();
  form.append("image", file);
  form.append("prompt", prompt);
  if (needs !== "nothing" && byId("text").value.trim()) form.append("text", byId("text").value);
  asking = new AbortController();
  showAsking(true);
  try {
    showAnswer(await askDaemon("/process_image", { method: "POST", body: form, signal: asking.signal }));
  } catch (error) {
    if (error.name === "AbortError") byId("answer").replaceChildren();
    else if (error instanceof Refused) byId("answer").replaceChildren(el("p", { className: "problem" }, error.message));
    else throw error;
  } finally {
    asking = null;
    showAsking(false);
  }
}

function showAsking(isAsking) {
  byId("ask-cancel").hidden = !isAsking;
  byId("ask-button").disabled = isAsking;
  if (!isAsking) return;
  clear();
  const isLoaded = byId("model-state").dataset.state === "loaded";
  const text = isLoaded ? "Asking…" : "Asking… The model is loaded first, which takes a while.";
  byId("answer").replaceChildren(el("p", { className: "asking" }, text));
}

function showAnswer({ result, flaw }) {
  const parts = typeof result === "string" ? words(result) : places(result);
  if (flaw) parts.push(el("p", { className: "problem" }, `This answer is flawed: ${FLAWS[flaw] || flaw}.`));
  byId("answer").replaceChildren(...parts);
}

function words(result) {
  if (!result) return [el("p", { className: "hint" }, "The model had nothing to say.")];
  const copy = el("button", { type: "button", className: "quiet" }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(result);
      say("Copied.");
    } catch {
      say("This browser lets the page copy over https or on this machine only.");
    }
  });
  return [el("p", { className: "text" }, result), el("div", { className: "buttons" }, copy)];
}

function places(result) {
  found = placesOf(result);
  drawFound();
  return [listed(found)];
}

function drawFound() {
  const { naturalWidth, naturalHeight } = byId("preview");
  if (found.length && naturalWidth) draw(byId("overlay"), found, naturalWidth, naturalHeight);
}

// A region is drawn with a pointer; who has none writes it.
function takeRegion() {
  const overlay = byId("overlay");
  let from = null;
  const at = (event) => {
    const { naturalWidth, naturalHeight } = byId("preview");
    const frame = overlay.getBoundingClientRect();
    const part = (value, start, length) => Math.max(0, Math.min(1, (value - start) / length));
    return [part(event.clientX, frame.left, frame.width) * naturalWidth, part(event.clientY, frame.top, frame.height) * naturalHeight];
  };
  overlay.addEventListener("pointerdown", (event) => {
    if (byId("stage").dataset.draws !== "yes" || !byId("preview").naturalWidth) return;
    event.preventDefault();
    from = at(event);
    overlay.setPointerCapture(event.pointerId);
  });
  overlay.addEventListener("pointermove", (event) => {
    if (from) showRegion(from, at(event));
  });
  overlay.addEventListener("pointerup", () => {
    from = null;
  });
}

function showRegion([x1, y1], [x2, y2]) {
  const { naturalWidth, naturalHeight } = byId("preview");
  const box = [Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)];
  byId("text").value = region(box, naturalWidth, naturalHeight);
  byId("overlay").setAttribute("viewBox", `0 0 ${naturalWidth} ${naturalHeight}`);
  const place = { x: box[0], y: box[1], width: box[2] - box[0], height: box[3] - box[1] };
  byId("overlay").replaceChildren(svg("rect", { ...place, class: "under" }), svg("rect", { ...place, class: "line chosen" }));
}
