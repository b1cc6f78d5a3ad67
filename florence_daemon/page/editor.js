// A caption that can be edited where it stands. What a person typed is never lost: not to news, nor to another's change.

import { ask, json } from "./api.js";
import { el, say, setText } from "./dom.js";

/** Make the element of one caption of a card; its `show` takes the caption as the daemon says it is. */
export function captionEditor(card, ext) {
  const text = el("p", { className: ext === ".tag" ? "text tags" : "text" });
  const mark = el("span", { className: "mark", hidden: true, title: "This program did not write it, and leaves it alone" }, "by hand");
  const edit = el("button", { type: "button", className: "quiet edit" }, "Edit");
  const problem = el("p", { className: "problem" });
  const head = el("div", { className: "caption-head" }, el("span", { className: "ext" }, ext), mark, edit);
  const element = el("div", { className: "caption" }, head, text, problem);
  let caption = null;
  let form = null;
  // What is being edited stays where it is, even when the file goes.
  element.edited = () => (form ? caption : null);

  element.show = (now) => {
    caption = now;
    mark.hidden = !now.by_person;
    edit.hidden = form !== null || Boolean(now.problem);
    edit.setAttribute("aria-label", `Edit ${ext} of ${card.shown.name}`);
    setText(text, now.text);
    setText(problem, now.problem ? `${ext}: ${now.problem}` : "");
  };

  edit.addEventListener("click", () => {
    form = editForm(card, caption, {
      onSaved: (shown) => {
        close();
        say(`${ext} of ${shown.name} is saved.`);
        card.shown = shown;
        const now = shown.captions.find((each) => each.ext === ext);
        if (now) element.show(now);
      },
      onCancel: close,
    });
    text.hidden = true;
    edit.hidden = true;
    element.append(form);
    form.elements.text.focus();
  });

  function close() {
    form.remove();
    form = null;
    text.hidden = false;
    edit.hidden = false;
    edit.focus();
  }

  return element;
}

function editForm(card, caption, { onSaved, onCancel }) {
  const { ext } = caption;
  let { version } = caption;
  const area = el("textarea", {
    name: "text",
    value: caption.text,
    rows: Math.min(12, 2 + Math.ceil(caption.text.length / 40)),
    maxLength: 16000,
    aria: { label: `${ext} of ${card.shown.name}` },
  });
  const problem = el("p", { className: "problem", role: "alert" });
  const theirs = el("div", { className: "theirs", hidden: true });
  const save = el("button", { type: "submit", className: "primary" }, "Save");
  const cancel = el("button", { type: "button", on: { click: onCancel } }, "Cancel");
  const form = el("form", { className: "edit-form" }, area, problem, theirs, el("div", { className: "buttons" }, save, cancel));

  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") onCancel();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    save.disabled = true;
    setText(problem, "");
    try {
      const members = { ext, text: area.value, version };
      onSaved(await ask(`/pictures/${card.shown.id}/caption`, json("PUT", members)));
    } catch (error) {
      save.disabled = false;
      setText(problem, error.message);
      if (error.status === 409) await showTheirs();
    }
  });

  async function showTheirs() {
    try {
      const shown = await ask(`/pictures/${card.shown.id}`);
      const now = shown.captions.find((each) => each.ext === ext);
      version = now ? now.version : null;
      theirs.replaceChildren(...(now ? exchange(area, now.text) : []));
      theirs.hidden = !now;
      setText(problem, now ? "Somebody changed it meanwhile. Save again to replace it with yours." : "Somebody removed it meanwhile. Save again to write yours.");
    } catch (error) {
      setText(problem, error.message);
    }
  }

  return form;
}

/** The file's text beside what a person wrote, and a button that exchanges the two: neither gets lost. */
function exchange(area, text) {
  const title = el("p", { className: "hint" }, "The file says:");
  const other = el("p", { className: "text" }, text);
  const swap = el("button", { type: "button" }, "Swap");
  swap.addEventListener("click", () => {
    [area.value, other.textContent] = [other.textContent, area.value];
    setText(title, title.textContent === "You wrote:" ? "The file says:" : "You wrote:");
    area.focus();
  });
  return [title, other, swap];
}
