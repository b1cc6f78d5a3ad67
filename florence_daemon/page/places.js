// Places in a picture: boxes, quadrilaterals and outlines, drawn over it, and listed for those who do not see them.

import { el, svg } from "./dom.js";

const COLOURS = 8;
// The size of names on the screen, whatever the picture's is.
const LETTER_PX = 13;

/** The places of an answer: each with its name, its outlines in pixels of the upright picture, and the box around it. */
export function placesOf(result) {
  const found = [];
  add(found, result.bboxes, result.labels || result.bboxes_labels, ([x1, y1, x2, y2]) => [[x1, y1, x2, y1, x2, y2, x1, y2]]);
  add(found, result.quad_boxes, result.labels, (quad) => [quad]);
  add(found, result.polygons, result.polygons_labels || result.labels, (outlines) => outlines);
  return found;
}

function add(found, shapes, labels, outlinesOf) {
  (shapes || []).forEach((shape, at) => {
    const outlines = outlinesOf(shape);
    const numbers = outlines.flat();
    const xs = numbers.filter((_, index) => index % 2 === 0);
    const ys = numbers.filter((_, index) => index % 2 === 1);
    const box = [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
    found.push({ label: (labels || [])[at] || "", outlines, box });
  });
}

/** Draw places over a picture of this size, as it is shown now. */
export function draw(overlay, places, width, height) {
  overlay.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const colours = new Map();
  const letter = (LETTER_PX * width) / (overlay.clientWidth || width);
  overlay.replaceChildren(
    ...places.map((place) => {
      if (!colours.has(place.label)) colours.set(place.label, colours.size % COLOURS);
      place.colour = colours.get(place.label);
      return drawn(place, letter, width, height);
    }),
  );
}

function drawn(place, letter, width, height) {
  const group = svg("g", { class: `place colour-${place.colour}` });
  for (const outline of place.outlines) {
    const points = pairs(outline).map((pair) => pair.join(",")).join(" ");
    group.append(svg("polygon", { points, class: "under" }), svg("polygon", { points, class: "line" }));
  }
  if (place.label) {
    const [x1, y1] = place.box;
    const long = Math.min(place.label.length * letter * 0.6 + letter, width);
    const x = Math.max(0, Math.min(x1, width - long));
    const y = Math.max(0, Math.min(y1 - letter * 1.5, height - letter * 1.5));
    const sign = svg("rect", { x, y, width: long, height: letter * 1.5, rx: letter * 0.25, class: "sign" });
    const text = svg("text", { x: x + letter * 0.5, y: y + letter * 1.07, "font-size": letter });
    text.textContent = place.label;
    group.append(sign, text);
  }
  return group;
}

/** List places, with the colours that `draw` gave them. */
export function listed(places) {
  if (!places.length) return el("p", { className: "hint" }, "Nothing was found.");
  return el(
    "ul",
    { className: "places" },
    ...places.map((place) =>
      el(
        "li",
        {},
        el("span", { className: `swatch colour-${place.colour ?? 0}`, aria: { hidden: "true" } }),
        el("span", {}, place.label || "a place"),
        el("span", { className: "hint" }, place.box.map((number) => Math.round(number)).join(", ")),
      ),
    ),
  );
}

/** The region that a task takes, in thousandths of the picture's sides: `<loc_52><loc_332><loc_932><loc_774>`. */
export function region(box, width, height) {
  const bins = [box[0] / width, box[1] / height, box[2] / width, box[3] / height];
  return bins.map((part) => `<loc_${Math.max(0, Math.min(999, Math.floor(part * 1000)))}>`).join("");
}

function pairs(numbers) {
  return Array.from({ length: numbers.length / 2 }, (_, at) => [numbers[2 * at], numbers[2 * at + 1]]);
}
