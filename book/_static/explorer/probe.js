// What a perturbation of any size does to the reconstruction, for one image, one model and one kind of direction.
//
// Start at the class Probe. It computes D(x, delta) of Eq. 3 as the package does in vaerobust/distance.py.

import { normals } from "./statistics.js";

export const SAMPLES = 300; // of D
const SEEDS = { eta: 1, nu: 2 }; // eta: the encoder's noise; nu: the directions

/** One noise of the encoder and one direction of Algorithm 2 per sample, the same for all images and models. */
export class Noise {
  constructor(latents, pixels) {
    this.eta = normals(SAMPLES * latents, SEEDS.eta);
    this.directions = unitRows(normals(SAMPLES * pixels, SEEDS.nu), pixels);
  }
}

function norm(values) {
  let sum = 0;
  for (const value of values) sum += value * value;
  return Math.sqrt(sum);
}

/** Scale every row to norm 1. A row of zeros remains zero. */
export function unitRows(values, width) {
  for (let start = 0; start < values.length; start += width) {
    const row = values.subarray(start, start + width);
    const length = norm(row) || 1;
    for (let i = 0; i < width; i++) row[i] /= length;
  }
  return values;
}

/** Directions of norm 1, one for all samples or one per sample, and the encoder's first layer applied to them. */
export class Directions {
  constructor(vae, rows) {
    this.rows = rows;
    this.number = rows.length / vae.pixels;
    // The layer is linear, so its outputs are computed once and only scaled at each step of the slider.
    this.slopes = withoutBias(vae.first(rows, this.number), vae.shared.bias);
  }
}

/**
 * Samples of D(x, delta) of Eq. 3 with delta = size * direction: || g(mu(x + delta) + eta * sigma(x)) - g(mu(x)) ||.
 * Sigma is that of the unperturbed x. Either one direction, the worst known, serves all samples, or each sample has a
 * direction of its own, as in Algorithm 2.
 *
 * `base` has the encoder's first layer at x, `centre` is g(mu(x)), and `unperturbed` has the samples of D(x, 0).
 */
export class Probe {
  constructor(vae, x, directions, noise) {
    Object.assign(this, { vae, x, directions, noise });
    this.base = vae.first(x, 1);
    this.sigma = vae.sigmaFrom(this.base, 1);
    const mu = vae.meanFrom(this.base, 1);
    this.centre = vae.decode(mu, 1);
    this.unperturbed = this.distances(vae.decode(this.latents(mu), SAMPLES));
  }

  /** Return what is shown of one size: all distances, and input and reconstruction for the first direction. */
  at(size) {
    const { vae, directions } = this;
    const mu = vae.meanFrom(shifted(this.base, directions.slopes, size), directions.number);
    const reconstructions = vae.decode(this.latents(mu), SAMPLES);
    return {
      input: this.x.map((value, i) => value + size * directions.rows[i]),
      reconstruction: vae.decode(mu.subarray(0, vae.latents), 1),
      reconstructions,
      distances: this.distances(reconstructions),
    };
  }

  /** Return mu + eta * sigma, one row per sample. There is one mu for all samples, or one per sample. */
  latents(mu) {
    const width = this.vae.latents;
    const z = new Float64Array(SAMPLES * width);
    for (let i = 0; i < SAMPLES; i++) {
      const start = mu.length === width ? 0 : i * width;
      for (let j = 0; j < width; j++) z[i * width + j] = mu[start + j] + this.noise.eta[i * width + j] * this.sigma[j];
    }
    return z;
  }

  /** Return the distance of each reconstruction, one per row, from the centre. */
  distances(reconstructions) {
    const width = this.vae.pixels;
    const out = new Float64Array(SAMPLES);
    for (let i = 0, at = 0; i < SAMPLES; i++) {
      let sum = 0;
      for (let j = 0; j < width; j++, at++) sum += (reconstructions[at] - this.centre[j]) ** 2;
      out[i] = Math.sqrt(sum);
    }
    return out;
  }
}

/** Subtract a layer's bias from its outputs, in place. */
function withoutBias(values, bias) {
  for (let i = 0; i < values.length; i++) values[i] -= bias[i % bias.length];
  return values;
}

/** Return the first layer's outputs at x + size * direction, one row per direction. */
function shifted(base, slopes, size) {
  return slopes.map((slope, i) => base[i % base.length] + size * slope);
}
