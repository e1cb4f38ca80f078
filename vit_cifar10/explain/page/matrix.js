// Matrices as Float32Arrays, row by row.

let kernel = null; // from `makeKernel`, if the browser has SIMD

/** x · weightᵀ + bias, like PyTorch's F.linear: (rows × inner), (columns × inner), (columns) -> (rows × columns). */
function linear(x, weight, bias, rows, inner, columns) {
  const isFast = kernel && 4 * Math.ceil(inner / 4) * columns <= kernel.largest && inner <= kernel.longest;
  const out = (isFast ? productByKernel : productByLoops)(x, weight, rows, inner, columns);
  if (bias) {
    for (let row = 0, to = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1, to += 1) out[to] += bias[column];
    }
  }
  return out;
}

function productByLoops(x, weight, rows, inner, columns) {
  const out = new Float32Array(rows * columns);
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < columns; column += 1) {
      let sum = 0;
      for (let k = 0; k < inner; k += 1) sum += x[row * inner + k] * weight[column * inner + k];
      out[row * columns + column] = sum;
    }
  }
  return out;
}

/** The same by the kernel, as many rows at a time as fit into its memory. Rows are padded to a multiple of 4 floats. */
function productByKernel(x, weight, rows, inner, columns) {
  const { product, floats, wAt, xAt, outAt, rowFloats } = kernel;
  const padded = 4 * Math.ceil(inner / 4), stride = 2 * Math.ceil(columns / 2);
  const isInPlace = weight.buffer === floats.buffer && padded === inner;
  if (!isInPlace) copyRows(weight, 0, columns, inner, padded, floats, wAt);
  const w = isInPlace ? weight.byteOffset : 4 * wAt;
  const out = new Float32Array(rows * columns);
  const step = 4 * Math.max(1, Math.floor(rowFloats / Math.max(padded, stride) / 4));
  for (let row = 0; row < rows; row += step) {
    const count = Math.min(step, rows - row);
    copyRows(x, row, count, inner, padded, floats, xAt);
    product(4 * xAt, 4 * (xAt + count * padded), w, w + 4 * columns * padded, 4 * outAt, 4 * padded, 4 * stride);
    for (let index = 0; index < count; index += 1) {
      const start = outAt + index * stride;
      out.set(floats.subarray(start, start + columns), (row + index) * columns);
    }
  }
  return out;
}

/** Copy `count` rows of a matrix to other memory, each padded with zeros. */
function copyRows(matrix, first, count, width, padded, to, at) {
  if (width === padded) {
    to.set(matrix.subarray(first * width, (first + count) * width), at);
    return;
  }
  for (let row = 0; row < count; row += 1) {
    to.set(matrix.subarray((first + row) * width, (first + row + 1) * width), at + row * padded);
    to.fill(0, at + row * padded + width, at + (row + 1) * padded);
  }
}

/** x · y: (rows × inner) · (inner × columns) -> (rows × columns). */
function multiply(x, y, rows, inner, columns) {
  return linear(x, transpose(y, inner, columns), null, rows, inner, columns);
}

function transpose(x, rows, columns) {
  const out = new Float32Array(rows * columns);
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < columns; column += 1) out[column * rows + row] = x[row * columns + column];
  }
  return out;
}

/** The sum of two arrays; the shorter one ends first. */
function add(x, y) {
  const out = new Float32Array(Math.min(x.length, y.length));
  for (let index = 0; index < out.length; index += 1) out[index] = x[index] + y[index];
  return out;
}

/** Layer normalization of every row: {out, normalized, std}, where std has one value per row. */
function layerNorm(x, weight, bias) {
  const width = weight.length, rows = x.length / width;
  const out = new Float32Array(x.length), normalized = new Float32Array(x.length), std = new Float32Array(rows);
  for (let row = 0; row < rows; row += 1) {
    const start = row * width;
    let mean = 0, variance = 0;
    for (let k = 0; k < width; k += 1) mean += x[start + k] / width;
    for (let k = 0; k < width; k += 1) variance += (x[start + k] - mean) ** 2 / width;
    std[row] = Math.sqrt(variance + 1e-6);
    for (let k = 0; k < width; k += 1) {
      normalized[start + k] = (x[start + k] - mean) / std[row];
      out[start + k] = normalized[start + k] * weight[k] + bias[k];
    }
  }
  return { out, normalized, std };
}

/** Softmax of every row, in place. */
function softmax(x, columns) {
  for (let start = 0; start < x.length; start += columns) {
    let largest = -Infinity, sum = 0;
    for (let k = start; k < start + columns; k += 1) if (x[k] > largest) largest = x[k];
    for (let k = start; k < start + columns; k += 1) sum += x[k] = Math.exp(x[k] - largest);
    for (let k = start; k < start + columns; k += 1) x[k] /= sum;
  }
  return x;
}

/** The probability that a normal variable is below x, to 1e-7 (Abramowitz and Stegun, 7.1.26). */
function normalCdf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x) * Math.SQRT1_2);
  const polynomial = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  const tail = 0.5 * polynomial * Math.exp(-0.5 * x * x);
  return x < 0 ? tail : 1 - tail;
}

function gelu(x) {
  const out = new Float32Array(x.length);
  for (let index = 0; index < x.length; index += 1) out[index] = x[index] * normalCdf(x[index]);
  return out;
}
