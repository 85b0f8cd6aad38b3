// The live explorer: a VAE in the reader's browser reconstructs an image under a perturbation that the reader chooses.
//
// The data come from index.json and the models' files, which book/explorer.py writes and describes. The model is in
// vae.js, what a perturbation does is computed in probe.js, and charts.js draws.

import { drawBounds, drawHistogram, drawImage, element, shortly, SizeAxis } from "./charts.js";
import { Directions, Noise, Probe, SAMPLES, unitRows } from "./probe.js";
import { clopperPearson, crc32, median } from "./statistics.js";
import { Vae } from "./vae.js";

const SIDE = 28;
const SAMPLED = 5; // sampled reconstructions that are shown
const QUIET = 500; // milliseconds without a change before a screen reader announces the result
const STEPS = 1000; // steps of the slider

/** Fetch a file. If that fails, the message of the error is one for the reader of the page. */
async function fetched(url, options) {
  let answer;
  try {
    answer = await fetch(url, options);
  } catch {
    throw new Error("the server does not answer");
  }
  if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
  return answer;
}

/**
 * The explorer on the page. Start reading at start(). The state is in the controls of the form and in these fields:
 * model and vae (the chosen model and its network), images (of the data set), probe (the image, the direction and the
 * noise), size (of the perturbation) and result (what draw() has shown last).
 */
class Explorer {
  constructor(root) {
    this.root = root;
    this.folder = root.dataset.folder;
    this.form = this.find("form");
    this.controls = this.form.elements;
    this.size = 0;
    this.requests = 0; // number of models asked for
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  async start() {
    try {
      const answer = await fetched(`${this.folder}index.json`, { cache: "no-cache" });
      this.index = await answer.json();
    } catch (error) {
      this.complain(`The explorer cannot start: ${error.message}. The figure shows one of its states.`);
      return;
    }
    this.axis = new SizeAxis(this.index.sizes);
    this.fillChoices();
    this.pictures = this.makePictures();
    this.find(".explorer-static").hidden = true;
    this.form.hidden = false;
    this.axis.drawTicks(this.find(".explorer-ticks"));
    this.listen();
    await this.chooseModel();
  }

  /** Show a message to the reader; the empty string hides it. */
  complain(message) {
    const place = this.find(".explorer-message");
    place.textContent = message;
    place.hidden = message === "";
  }

  // The choices that the page offers

  /** Offer data sets, models and images, and choose those with which the explorer starts. */
  fillChoices() {
    const datasets = Object.keys(this.index.datasets).filter((name) => this.modelsOf(name).length);
    const { model, image, r } = this.index.start;
    this.model = this.index.models.find(({ name }) => name === model);
    for (const name of datasets) this.controls.dataset.append(new Option(this.index.datasets[name].title, name));
    this.controls.dataset.value = this.model.dataset;
    this.controls.r.value = r;
    this.fillModels();
    this.fillImages(image);
  }

  modelsOf(dataset) {
    return this.index.models.filter((model) => model.dataset === dataset);
  }

  /** Offer the models of the data set. The model with the same beta and tau as before is chosen, or else the first. */
  fillModels() {
    const models = this.modelsOf(this.controls.dataset.value);
    const chosen = models.find(({ beta, tau }) => beta === this.model.beta && tau === this.model.tau) ?? models[0];
    const title = ({ beta, tau }) => `β = ${beta}` + (tau ? `, τ = ${tau}` : "");
    const options = models.map((model) => new Option(title(model), model.name, false, model === chosen));
    this.controls.model.replaceChildren(...options);
  }

  /** Offer the images of the data set. The image with the same number as before is chosen. */
  fillImages(chosen = this.image) {
    const dataset = this.index.datasets[this.controls.dataset.value];
    const grey = Uint8Array.from(atob(dataset.grey), (letter) => letter.charCodeAt(0));
    this.images = dataset.classes.map((_, i) =>
      // pixels in [0, 1], rounded to single precision as in the package
      Float64Array.from(grey.subarray(i * SIDE ** 2, (i + 1) * SIDE ** 2), (value) => Math.fround(value / 255)),
    );
    const group = this.find(".explorer-images");
    group.querySelectorAll("label").forEach((old) => old.remove());
    dataset.classes.forEach((shown, i) => {
      const canvas = element("canvas", { width: SIDE, height: SIDE, "aria-hidden": "true" });
      const title = `Test image ${i + 1}: ${shown}`;
      const radio = element("input", { type: "radio", name: "image", value: i, "aria-label": title });
      radio.checked = i === chosen;
      group.append(element("label", { title }, radio, canvas));
      drawImage(canvas, this.images[i]);
    });
  }

  /** Add the pictures to the page, and return their canvases in the order in which drawPictures fills them. */
  makePictures() {
    const titles = [
      ["input", "x"], ["perturbed input", "x + δ"],
      ["reconstruction of the input", "g(μ(x))"], ["reconstruction of the perturbed input", "g(μ(x + δ))"],
      ...Array.from({ length: SAMPLED }, (_, i) => [`sampled reconstruction ${i + 1}`, `sample ${i + 1}`]),
    ];
    const groups = [element("div"), element("div")]; // reconstructions of the mean latent, and of sampled latents
    this.find(".explorer-pictures").append(...groups);
    return titles.map(([alt, title], i) => {
      const canvas = element("canvas", { width: SIDE, height: SIDE, role: "img", "aria-label": alt });
      const group = groups[Number(i >= titles.length - SAMPLED)];
      group.append(element("div", {}, canvas, element("span", { "aria-hidden": "true" }, title)));
      return canvas;
    });
  }

  // Reactions to choices

  /** React to every control, and to a change of the form's width. */
  listen() {
    const on = (name, change) => this.form.addEventListener("change", ({ target }) => target.name === name && change());
    on("dataset", () => {
      this.fillModels();
      this.fillImages();
      this.chooseModel();
    });
    on("model", () => this.chooseModel());
    on("image", () => this.choosePerturbation());
    on("direction", () => this.choosePerturbation());
    on("r", () => this.choosePerturbation());
    this.controls.size.addEventListener("input", () => {
      this.size = this.axis.size(this.controls.size.value / STEPS);
      this.drawSoon();
    });
    this.form.addEventListener("submit", (event) => event.preventDefault());
    new ResizeObserver(([{ contentRect }]) => this.fit(contentRect.width)).observe(this.form);
  }

  /** Fetch the chosen model, unless it was the last one fetched. Of several requests, only the last has an effect. */
  async chooseModel() {
    const request = ++this.requests;
    const model = this.index.models.find(({ name }) => name === this.controls.model.value);
    this.complain("");
    this.form.setAttribute("aria-busy", "true");
    this.find(".explorer-time").textContent = `Loading the model, ${(model.bytes / 1e6).toFixed(1)} MB …`;
    if (this.wanted?.model !== model) this.wanted = { model, vae: this.load(model) };
    try {
      const vae = await this.wanted.vae;
      if (request !== this.requests) return;
      this.model = model;
      this.vae = vae;
      this.noise ??= new Noise(vae.latents, vae.pixels);
      this.random = undefined; // random directions belong to a model
      this.find(".explorer-outcome").hidden = false;
      this.size ||= this.boundOf("attack"); // a size at which the reconstruction visibly changes
      this.choosePerturbation();
    } catch (error) {
      if (request !== this.requests) return;
      this.vae = this.probe = this.wanted = undefined;
      this.find(".explorer-outcome").hidden = true;
      this.find(".explorer-time").textContent = "";
      this.announce("");
      this.complain(
        `The model with ${this.controls.model.selectedOptions[0].text} could not be loaded: ${error.message}.` +
          " Reload the page, or choose another model.",
      );
    } finally {
      if (request === this.requests) this.form.removeAttribute("aria-busy");
    }
  }

  /** Fetch a model's file. The checksum in the address keeps the browser from using an older copy. */
  async load(model) {
    const answer = await fetched(`${this.folder}${model.name}.bin?${model.crc32.toString(16)}`);
    const content = await answer.arrayBuffer();
    if (content.byteLength !== model.bytes) {
      throw new Error(`its file is incomplete (${content.byteLength} of ${model.bytes} bytes)`);
    }
    if (crc32(new Uint8Array(content)) !== model.crc32) throw new Error("its file is corrupt");
    return new Vae(content, this.index.tensors, model.tau);
  }

  /** Prepare and draw the chosen image with the chosen direction and r. */
  choosePerturbation() {
    if (!this.vae) return; // the model could not be loaded
    const directions = this.controls.direction.value === "worst" ? this.worst() : this.randomly();
    this.probe = new Probe(this.vae, this.images[this.image], directions, this.noise);
    this.moveSlider();
    this.drawBounds();
    this.draw();
  }

  get image() {
    return Number(this.controls.image.value);
  }

  /** The bounds of the model at the chosen r, one list per column. */
  get bounds() {
    return this.model[this.controls.r.value];
  }

  /** Return the number of a column for the chosen image. */
  boundOf(column) {
    return this.bounds[column][this.image];
  }

  /** Return the random directions, one per sample. */
  randomly() {
    this.random ??= new Directions(this.vae, this.noise.directions);
    return this.random;
  }

  /**
   * Return the direction of the attack's perturbation. If the image is not r-robust even without a perturbation, no
   * attack was made. In this case, return the direction for the other choice of r.
   */
  worst() {
    const of = (which) => {
      const start = this.image * this.vae.pixels;
      return unitRows(this.vae.tensors[`worst_${which}`].slice(start, start + this.vae.pixels), this.vae.pixels);
    };
    const own = of(this.controls.r.value);
    const attacked = own.some((value) => value !== 0);
    return new Directions(this.vae, attacked ? own : of(this.controls.r.value === "own" ? "fixed" : "own"));
  }

  // Showing the result

  /** Move to a size of the perturbation, and show it. */
  go(size) {
    this.size = size;
    this.moveSlider();
    this.draw();
  }

  /** Move the slider to the size. */
  moveSlider() {
    this.controls.size.value = Math.round(STEPS * this.axis.position(this.size));
  }

  /** Draw once with the next frame, however many events happen before it. */
  drawSoon() {
    this.soon ??= requestAnimationFrame(() => this.draw());
  }

  /** Compute and show what a perturbation of the size does. */
  draw() {
    this.soon = undefined;
    if (!this.probe) return;
    const start = performance.now();
    const r = this.boundOf("r");
    const shown = this.probe.at(this.size);
    const number = shown.distances.filter((d) => d <= r).length;
    const [low, high] = clopperPearson(number, SAMPLES, this.index.interval_confidence);
    this.result = { ...shown, r, probability: number / SAMPLES, low, high };
    this.drawPictures();
    drawHistogram(this.find(".explorer-histogram"), shown.distances, this.probe.unperturbed, r);
    this.drawWords();
    this.milliseconds = performance.now() - start;
    this.find(".explorer-time").textContent = `Computed in your browser in ${this.milliseconds.toFixed(0)} ms.`;
  }

  /** Fill the canvases of makePictures. */
  drawPictures() {
    const { input, reconstruction, reconstructions } = this.result;
    const width = this.vae.pixels;
    const sampled = (i) => reconstructions.subarray(i * width, (i + 1) * width);
    const samples = Array.from({ length: SAMPLED }, (_, i) => sampled(i));
    const shown = [this.probe.x, input, this.probe.centre, reconstruction, ...samples];
    shown.forEach((pixels, i) => drawImage(this.pictures[i], pixels));
  }

  /** Show the result in words, on the page and for screen readers. */
  drawWords() {
    const { distances, r, probability, low, high } = this.result;
    const percent = (value) => `${(100 * value).toFixed(1)}\u00a0%`;
    const interval = `${100 * this.index.interval_confidence}\u00a0% interval ${percent(low)} to ${percent(high)}`;
    const estimate = `P(D ≤ r) ≈ ${percent(probability)}, ${interval}`;
    const verdict = low > 0.5 ? "✔ r-robust here" : high <= 0.5 ? "✘ not r-robust here" : "○ undecided";
    const size = shortly(this.size);
    this.find(".explorer-number").textContent = size;
    this.find(".explorer-here").style.left = `${100 * this.axis.position(this.size)}%`;
    this.find(".explorer-probability").replaceChildren(element("strong", {}, verdict), ` ${estimate}`);
    this.find(".explorer-reading").textContent = this.reading();
    this.controls.size.setAttribute("aria-valuetext", size);
    this.find(".explorer-histogram").setAttribute(
      "aria-label",
      `Histogram of ${SAMPLES} samples of D: median ${shortly(median(distances))} with the perturbation,` +
        ` ${shortly(median(this.probe.unperturbed))} without; r is ${shortly(r)}`,
    );
    this.announce(`Size ${size}: ${verdict.slice(2)}. ${estimate}. ${this.reading()}`);
  }

  /** Let a screen reader say a text once the reader has stopped moving the slider. */
  announce(text) {
    clearTimeout(this.pending);
    this.pending = setTimeout(() => (this.find(".explorer-status").textContent = text), QUIET);
  }

  /** Return in words what is known about all perturbations of this size. */
  reading() {
    const [certified, attack] = [this.boundOf("certified"), this.boundOf("attack")];
    const confidence = `with ${100 * this.model.confidence}\u00a0% confidence`;
    if (certified > 0 && this.size <= certified) {
      return `All directions: certified, ${confidence}, that no perturbation of this size breaks r-robustness.`;
    }
    if (this.size < attack || this.boundOf("censored") || !this.boundOf("confirmed")) {
      return "All directions: not known. No certificate and no attack that succeeded reaches this size.";
    }
    return `All directions: broken, ${confidence}, by the attack's perturbation, which is no larger than this.`;
  }

  /** Show the bounds for the image below the slider. */
  drawBounds() {
    const bounds = this.index.bounds.map((bound) => {
      const size = this.boundOf(bound.column);
      return { ...bound, size, name: `${bound.name} ${this.quoted(bound, size)}`, kind: `(${bound.kind})` };
    });
    drawBounds(this.find(".explorer-axis"), bounds, this.axis, (size) => this.go(size));
  }

  /** Draw again what depends on the width of the page. */
  fit(width) {
    if (width === this.width || !this.probe) return;
    this.width = width;
    this.drawBounds();
    this.drawSoon();
  }

  /** Return the number of a bound, "> 64" if its search met the limit, "0.5?" if the attack is not confirmed. */
  quoted({ column, censored }, size) {
    if (censored && this.boundOf(censored)) return `> ${shortly(size)}`;
    if (column === "attack" && !this.boundOf("confirmed")) return `${shortly(size)}?`;
    return shortly(size);
  }

  /** Return what the page shows, for tests. */
  state() {
    const busy = this.form.hasAttribute("aria-busy");
    if (!this.probe) return { busy };
    if (this.soon) this.draw(); // do not wait for the next frame
    return {
      busy,
      model: this.model.name,
      image: this.image,
      direction: this.controls.direction.value,
      choiceOfR: this.controls.r.value,
      size: this.size,
      r: this.result.r,
      probability: this.result.probability,
      interval: [this.result.low, this.result.high],
      distances: [...this.result.distances],
      input: [...this.result.input],
      reconstruction: [...this.result.reconstruction],
      centre: [...this.probe.centre],
      milliseconds: this.milliseconds,
    };
  }
}

const explorer = new Explorer(document.getElementById("explorer"));
// For tests/test_explorer.py.
window.explorer = {
  ready: explorer.start().then(() => true),
  state: () => explorer.state(),
  go: (size) => explorer.go(size),
  noise: () => ({ eta: [...explorer.noise.eta], directions: [...explorer.noise.directions] }),
};
