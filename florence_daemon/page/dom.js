// Elements and their text. Nothing here or elsewhere makes HTML out of text: names and captions are not to be trusted.

/** Make an element: its properties (`dataset` and `aria` too, `on` for listeners), and its children, of which text is text. */
export function el(name, properties = {}, ...children) {
  return filled(document.createElement(name), properties, children);
}

/** The same for SVG, whose properties are attributes. */
export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** The element of the page with this id. */
export function byId(id) {
  return document.getElementById(id);
}

/** Set an element's text, if it is another one: so that readers of screens hear what is new, and nothing twice. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Say something to people who cannot see what happened; and to those who can, for a moment. */
export function say(text) {
  const said = byId("said");
  said.textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => {
    said.textContent = "";
  }, 6000);
}

/** Make a list's items those of `things`: kept, made and removed by key, in order; what stays in place is not moved. */
export function keep(list, things, keyOf, make, update) {
  const keys = new Set(things.map(keyOf));
  for (const item of [...list.children]) if (!keys.has(item.dataset.key)) item.remove();
  const before = new Map([...list.children].map((item) => [item.dataset.key, item]));
  let place = list.firstElementChild;
  for (const thing of things) {
    const key = keyOf(thing);
    let item = before.get(key);
    if (!item) {
      item = make(thing);
      item.dataset.key = key;
    }
    update(item, thing);
    if (item === place) place = place.nextElementSibling;
    else list.insertBefore(item, place);
  }
}

function filled(element, { dataset = {}, aria = {}, on = {}, ...properties }, children) {
  Object.assign(element, properties);
  Object.assign(element.dataset, dataset);
  for (const [key, value] of Object.entries(aria)) element.setAttribute(`aria-${key}`, value);
  for (const [key, listener] of Object.entries(on)) element.addEventListener(key, listener);
  element.append(...children);
  return element;
}
