// The package's VAE (vaerobust/model.py) in plain JavaScript, for many rows at a time.
//
// A matrix is a flat array, row after row. The weights are those that ship, in half precision. All sums are in double
// precision: browsers compute it as fast as single precision, and its rounding errors are negligible here.

/** A table with the value of each half-precision number, by its 16 bits. Not all browsers have a Float16Array yet. */
const HALVES = Float64Array.from({ length: 65536 }, (_, bits) => {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = (bits & 1023) / 1024;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + fraction) * 2 ** (exponent - 15) : fraction * 2 ** -14);
});

/** Read ``count`` half-precision numbers, stored as little-endian, on any processor. */
export function readHalves(view, offset, count) {
  const out = new Float64Array(count);
  for (let i = 0; i < count; i++) out[i] = HALVES[view.getUint16(offset + 2 * i, true)];
  return out;
}

/** Return the columns in which some row is not 0. */
function usedColumns(values, rows, width) {
  const used = new Uint8Array(width);
  for (let i = 0; i < rows; i++) {
    for (let j = 0, at = i * width; j < width; j++, at++) if (values[at] !== 0) used[j] = 1;
  }
  return Uint16Array.from(used.keys()).filter((j) => used[j]);
}

/** Return some columns of a matrix. */
function takeColumns(values, rows, width, columns) {
  const out = new Float64Array(rows * columns.length);
  for (let i = 0, at = 0; i < rows; i++) {
    for (let j = 0; j < columns.length; j++) out[at++] = values[i * width + columns[j]];
  }
  return out;
}

/**
 * Return x w' + bias, with x (rows, k) and w (m, k), where m is a multiple of 4. Sums are computed in blocks of 4 by 4,
 * which stay in registers; this is more than twice as fast as a plain loop.
 */
function multiply(x, rows, k, w, bias) {
  const m = bias.length;
  const out = new Float64Array(rows * m);
  for (let i = 0; i < rows; i += 4) {
    // The last block repeats the last row where it has fewer than 4.
    const x0 = i * k, x1 = Math.min(i + 1, rows - 1) * k, x2 = Math.min(i + 2, rows - 1) * k;
    const x3 = Math.min(i + 3, rows - 1) * k;
    for (let j = 0; j < m; j += 4) {
      const w0 = j * k, w1 = w0 + k, w2 = w1 + k, w3 = w2 + k;
      let a0 = bias[j], a1 = bias[j + 1], a2 = bias[j + 2], a3 = bias[j + 3];
      let b0 = a0, b1 = a1, b2 = a2, b3 = a3, c0 = a0, c1 = a1, c2 = a2, c3 = a3, d0 = a0, d1 = a1, d2 = a2, d3 = a3;
      for (let l = 0; l < k; l++) {
        const a = x[x0 + l], b = x[x1 + l], c = x[x2 + l], d = x[x3 + l];
        const p = w[w0 + l], q = w[w1 + l], r = w[w2 + l], s = w[w3 + l];
        a0 += a * p; a1 += a * q; a2 += a * r; a3 += a * s;
        b0 += b * p; b1 += b * q; b2 += b * r; b3 += b * s;
        c0 += c * p; c1 += c * q; c2 += c * r; c3 += c * s;
        d0 += d * p; d1 += d * q; d2 += d * r; d3 += d * s;
      }
      let at = i * m + j;
      out[at] = a0; out[at + 1] = a1; out[at + 2] = a2; out[at + 3] = a3;
      if (i + 1 < rows) { at += m; out[at] = b0; out[at + 1] = b1; out[at + 2] = b2; out[at + 3] = b3; }
      if (i + 2 < rows) { at += m; out[at] = c0; out[at + 1] = c1; out[at + 2] = c2; out[at + 3] = c3; }
      if (i + 3 < rows) { at += m; out[at] = d0; out[at + 1] = d1; out[at + 2] = d2; out[at + 3] = d3; }
    }
  }
  return out;
}

/** Apply a linear layer to any number of rows. */
function linear(layer, x, rows) {
  // Around one image many hidden units are 0 for every sample. Leaving them out saves a third of the time.
  const used = usedColumns(x, rows, layer.inputs);
  if (used.length === layer.inputs) return multiply(x, rows, layer.inputs, layer.weight, layer.bias);
  const [some, weight] = [
    takeColumns(x, rows, layer.inputs, used), takeColumns(layer.weight, layer.outputs, layer.inputs, used),
  ];
  return multiply(some, rows, used.length, weight, layer.bias);
}

/** Set negative values to 0, in place. */
function relu(values) {
  for (let i = 0; i < values.length; i++) if (!(values[i] > 0)) values[i] = 0;
  return values;
}

/** Apply a perceptron: linear layers with a ReLU between any two. */
function perceptron(layers, x, rows) {
  return layers.reduce((values, layer, i) => linear(layer, i ? relu(values) : values, rows), x);
}

const softplus = (value) => (value > 20 ? value : Math.log1p(Math.exp(value)));
const sigmoid = (value) => 1 / (1 + Math.exp(-value));

/** The model: encoder and decoder as in the paper's Appendix F. */
export class Vae {
  /**
   * @param {ArrayBuffer} content  of a model's file.
   * @param {Array} tensors  names and shapes of its tensors, in the order of the file.
   * @param {number} tau  offset of sigma.
   */
  constructor(content, tensors, tau) {
    const view = new DataView(content);
    let offset = 0;
    this.tau = tau;
    this.tensors = {};
    for (const [name, ...shape] of tensors) {
      const count = shape.reduce((product, size) => product * size, 1);
      this.tensors[name] = readHalves(view, offset, count);
      offset += 2 * count;
    }
    this.shared = this.layer("encoder_shared");
    this.mean = this.layers("encoder_mu", [0, 2]);
    this.scale = this.layers("encoder_sigma", [0, 2]);
    this.decoder = this.layers("decoder", [0, 2, 4]);
    this.latents = this.mean.at(-1).outputs;
    this.pixels = this.decoder.at(-1).outputs;
  }

  /** Return a linear layer of the file. The weight has the shape (outputs, inputs). */
  layer(name) {
    const [weight, bias] = [this.tensors[`${name}.weight`], this.tensors[`${name}.bias`]];
    return { weight, bias, outputs: bias.length, inputs: weight.length / bias.length };
  }

  /** Return linear layers by their places in a torch Sequential, in which the other places are ReLUs. */
  layers(name, places) {
    return places.map((place) => this.layer(`${name}.${place}`));
  }

  /** Return the outputs of the first layer before its ReLU, which are linear in the pixels: (rows, hidden). */
  first(x, rows) {
    return linear(this.shared, x, rows);
  }

  /** Return mu from the first layer's outputs: (rows, latents). */
  meanFrom(first, rows) {
    return perceptron(this.mean, relu(first.slice()), rows);
  }

  /** Return sigma from the first layer's outputs: (rows, latents). */
  sigmaFrom(first, rows) {
    return perceptron(this.scale, relu(first.slice()), rows).map((value) => softplus(value) + this.tau);
  }

  /** Return the mean reconstruction g(z): (rows, pixels). */
  decode(z, rows) {
    const out = perceptron(this.decoder, z, rows);
    for (let i = 0; i < out.length; i++) out[i] = sigmoid(out[i]);
    return out;
  }
}
