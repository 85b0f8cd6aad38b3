// The drawings of the explorer: images, a histogram, and the bounds on the axis of the slider.
//
// What is drawn is computed in probe.js; the page around the drawings is in explorer.js.

const SVG = "http://www.w3.org/2000/svg";
const BINS = 45;
const END = 3; // the histogram ends at END * r; its last bin also counts all larger distances
const PADDING = { left: 46, right: 12, top: 22, bottom: 38 };

/** Return a number with three significant digits, without an exponent. */
export const shortly = (value) => String(Number(value.toPrecision(3)));

/** Return a new element of HTML. Children may be elements or strings. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Return a new element of SVG. */
function shape(tag, attributes, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

/** Draw grey values on a canvas. Values that a perturbation moves out of [0, 1] are drawn as 0 or 1. */
export function drawImage(canvas, pixels) {
  const image = new ImageData(canvas.width, canvas.height);
  for (let i = 0; i < image.width * image.height; i++) {
    const grey = 255 * Math.min(1, Math.max(0, pixels[i]));
    image.data.fill(grey, 4 * i, 4 * i + 3); // red, green and blue; ImageData rounds
    image.data[4 * i + 3] = 255; // opaque
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Return the share of the distances in each bin. r is an edge between two bins, so no bar lies on both sides of it. */
function shares(distances, r) {
  const out = new Float64Array(BINS);
  const width = (END * r) / BINS;
  const inside = BINS / END; // number of bins up to r
  for (const d of distances) {
    const bin = d <= r ? Math.min(Math.floor(d / width), inside - 1) : Math.max(Math.floor(d / width), inside);
    out[Math.min(bin, BINS - 1)] += 1 / distances.length;
  }
  return out;
}

const CEILINGS = [0.1, 0.2, 0.4, 0.7, 1]; // where the vertical axis of the histogram may end

/** Draw the distribution of D: bars for the distances with the perturbation, an outline for those without. */
export function drawHistogram(svg, distances, unperturbed, r) {
  const [width, height] = [svg.clientWidth, svg.clientHeight];
  const [moved, clean] = [shares(distances, r), shares(unperturbed, r)];
  const most = Math.max(...moved, ...clean);
  const ceiling = CEILINGS.find((value) => value >= most) ?? 1; // few values, so that the axis seldom changes
  const x = (bin) => PADDING.left + ((width - PADDING.left - PADDING.right) * bin) / BINS;
  const y = (share) => height - PADDING.bottom - (height - PADDING.top - PADDING.bottom) * Math.min(1, share / ceiling);
  const shapes = [hatching(), ...axes(x, y, ceiling, r, width, height)];
  moved.forEach((share, bin) => {
    if (share === 0) return;
    const box = { x: x(bin), y: y(share), width: x(bin + 1) - x(bin) - 0.5, height: y(0) - y(share) };
    const kind = bin < BINS / END ? "within" : "beyond";
    shapes.push(shape("rect", { ...box, class: kind }));
    if (kind === "beyond") shapes.push(shape("rect", { ...box, fill: "url(#explorer-hatching)" }));
  });
  const outline = [...clean].map((share, bin) => `H${x(bin)}V${y(share)}`).join("") + `H${x(BINS)}V${y(0)}`;
  shapes.push(shape("path", { d: `M${x(0)} ${y(0)}${outline}`, class: "unperturbed" }));
  const edge = x(BINS / END);
  shapes.push(shape("path", { d: `M${edge} ${y(0)}V${PADDING.top - 6}`, class: "edge" }));
  shapes.push(shape("text", { x: edge + 5, y: PADDING.top - 8 }, `r = ${shortly(r)}`));
  svg.replaceChildren(...shapes);
}

/** Return the pattern of lines over the bars beyond r, so that colour is not the only difference. */
function hatching() {
  const size = { width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" };
  const pattern = shape("pattern", { id: "explorer-hatching", ...size });
  pattern.append(shape("rect", { width: 1.5, height: 5, class: "hatch" }));
  return pattern;
}

/** Return the axes of the histogram, their labels and their title. */
function axes(x, y, ceiling, r, width, height) {
  const shapes = [shape("path", { d: `M${x(0)} ${y(ceiling)}V${y(0)}H${x(BINS)}`, class: "axis" })];
  for (let times = 0; times <= END; times++) {
    const at = (times * BINS) / END;
    const label = (times === END ? "≥ " : "") + shortly(times * r);
    shapes.push(shape("text", { x: x(at), y: y(0) + 15, "text-anchor": times < END ? "middle" : "end" }, label));
  }
  for (const share of [0, ceiling]) {
    shapes.push(shape("text", { x: x(0) - 5, y: y(share) + 4, "text-anchor": "end" }, `${Math.round(100 * share)} %`));
  }
  const title = "distance D(x, δ), in pixel values";
  shapes.push(shape("text", { x: (x(0) + x(BINS)) / 2, y: height - 4, "text-anchor": "middle" }, title));
  return shapes;
}

/**
 * The axis of sizes runs from 0 to `last`. It is linear far below `linearBelow` and logarithmic far above it.
 * book/explorer_picture.py draws the same axis.
 */
export class SizeAxis {
  constructor([linearBelow, last]) {
    this.linearBelow = linearBelow;
    this.last = last;
  }

  /** Return the place of a size on the axis, from 0 to 1. */
  position(size) {
    return Math.min(1, Math.log1p(size / this.linearBelow) / Math.log1p(this.last / this.linearBelow));
  }

  /** Return the size at a place on the axis. */
  size(position) {
    return this.linearBelow * Math.expm1(position * Math.log1p(this.last / this.linearBelow));
  }

  /** Draw the ticks: 0, and powers of ten. */
  drawTicks(place) {
    const ticks = [0];
    const first = 10 ** Math.ceil(Math.log10(this.linearBelow) + 0.5); // not too close to 0
    for (let tick = first; tick <= this.last; tick *= 10) ticks.push(tick);
    place.replaceChildren(
      ...ticks.map((tick) => element("span", { style: `left:${100 * this.position(tick)}%` }, shortly(tick))),
    );
  }
}

/**
 * Show the bounds below the slider, one per row. Each is a button at the place of its size, and moves the slider there.
 *
 * @param {Element} place  below the slider.
 * @param {Array} bounds  each with column, size, name, kind and symbol.
 * @param {SizeAxis} axis
 * @param {Function} go  called with the size of a bound whose button is pressed.
 */
export function drawBounds(place, bounds, axis, go) {
  place.querySelectorAll(".explorer-bound").forEach((old) => old.remove());
  for (const bound of bounds) {
    const marker = element("span", { class: "marker", "aria-hidden": "true" }, bound.symbol);
    const words = element("span", {}, bound.name, element("span", { class: "kind" }, ` ${bound.kind}`));
    const title = "Move the slider to this size";
    const button = element("button", { type: "button", "data-bound": bound.column, title }, marker, words);
    button.addEventListener("click", () => go(bound.size));
    place.append(element("div", { class: "explorer-bound" }, button));
    placeBound(button, marker.offsetWidth / 2, axis.position(bound.size));
  }
}

/** Put the middle of a bound's marker at a position from 0 to 1, and the words on the side that has more room. */
function placeBound(button, half, position) {
  const [side, edge] = position <= 0.5 ? ["left", position] : ["right", 1 - position];
  button.style[side] = `calc(${100 * edge}% - ${half}px)`;
  button.classList.toggle("turned", side === "right");
}
