// What browsers do not offer: noise from a seed, exact binomial intervals, medians and checksums.

/** Return a source of uniform numbers in (0, 1) from a 32-bit seed: "mulberry32", equal in all browsers. */
function uniforms(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32 + 2 ** -33; // never 0, whose logarithm is infinite
  };
}

/** Return standard normal numbers, by the method of Box and Muller. Equal seeds give every reader the same numbers. */
export function normals(count, seed) {
  const uniform = uniforms(seed);
  const out = new Float64Array(count);
  for (let i = 0; i < count; i += 2) {
    const length = Math.sqrt(-2 * Math.log(uniform()));
    const angle = 2 * Math.PI * uniform();
    out[i] = length * Math.cos(angle);
    if (i + 1 < count) out[i + 1] = length * Math.sin(angle);
  }
  return out;
}

/** Return P(X >= k) for X binomial with n trials of probability p, 1 <= k <= n, 0 < p < 1. */
function upperTail(k, n, p) {
  let term = n * Math.log1p(-p); // log P(X = i), beginning with i = 0
  let sum = 0;
  for (let i = 1; i <= n; i++) {
    term += Math.log((n - i + 1) / i) + Math.log(p) - Math.log1p(-p);
    if (i >= k) sum += Math.exp(term);
  }
  return sum;
}

/** Return the p at which P(X >= k) = tail. It is found by bisection, since the upper tail grows with p. */
function whereUpperTailIs(tail, k, n) {
  let [low, high] = [0, 1];
  for (let i = 0; i < 60; i++) {
    const middle = (low + high) / 2;
    if (upperTail(k, n, middle) < tail) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

/** Return the exact two-sided interval of a binomial proportion (Clopper and Pearson): [low, high]. */
export function clopperPearson(k, n, confidence) {
  const tail = (1 - confidence) / 2;
  const low = k === 0 ? 0 : whereUpperTailIs(tail, k, n);
  const high = k === n ? 1 : whereUpperTailIs(1 - tail, k + 1, n);
  return [low, high];
}

export function median(values) {
  const ordered = Float64Array.from(values).sort();
  const middle = ordered.length >> 1;
  return ordered.length % 2 ? ordered[middle] : (ordered[middle - 1] + ordered[middle]) / 2;
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** Return the CRC-32 of some bytes, as zlib does. Pages that are served without TLS have no crypto.subtle. */
export function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ CRC_TABLE[(crc ^ byte) & 0xff];
  return (crc ^ 0xffffffff) >>> 0;
}
