// The forward pass of both networks, as in model.py, for one image. Every method returns what it computed on the way.

/**
 * The Vision Transformer.
 *
 * It has no registers, distillation token or norm before the blocks; live.py refuses networks that have.
 *
 * `config` has imageSize, patchSize, width, depth, heads, hidden (of the MLP), classes, pool ("token" or "avg") and
 * prefix (1 with a class token, else 0). `weights` maps the names of the state dict to Float32Arrays.
 *
 * `off` is a Set of parts that are switched off: "h3.1" is head 1 of layer 3, "a3" the attention and "m3" the MLP of
 * layer 3. A head that is off adds nothing to its layer's sum over heads; attention or an MLP that is off adds nothing
 * to the tokens.
 */
class VisionTransformer {
  constructor(config, weights) {
    Object.assign(this, config);
    this.weights = weights;
    this.grid = this.imageSize / this.patchSize;
    this.patches = this.grid ** 2;
    this.tokens = this.patches + this.prefix;
    this.headWidth = this.width / this.heads;
    this.norm = this.pool === "avg" ? "fc_norm" : "norm";
  }

  /**
   * Normalized pixels (3 × size × size) -> {projected, tokens, blocks, pooled, final, logits}.
   *
   * `previous` is the result for the same pixels with other parts switched off; layers before `from` are taken from it.
   */
  forward(pixels, off = new Set(), previous = null, from = 0) {
    const projected = previous?.projected ?? this.project(pixels);
    const first = previous?.tokens[0] ?? this.embed(projected);
    const tokens = [first], blocks = [];
    for (let layer = 0; layer < this.depth; layer += 1) {
      blocks.push(previous && layer < from ? previous.blocks[layer] : this.block(tokens[layer], layer, off));
      tokens.push(blocks[layer].out);
    }
    return { projected, tokens, blocks, ...this.classify(tokens[this.depth]) };
  }

  /** Cut pixels into patches and project each: (patches × width), without the bias. */
  project(pixels) {
    const { imageSize, patchSize, grid, patches, width } = this, inner = 3 * patchSize ** 2;
    const cut = new Float32Array(patches * inner);
    for (let patch = 0, to = 0; patch < patches; patch += 1) {
      const top = Math.floor(patch / grid) * patchSize, left = (patch % grid) * patchSize;
      for (let channel = 0; channel < 3; channel += 1) {
        for (let y = 0; y < patchSize; y += 1) {
          for (let x = 0; x < patchSize; x += 1, to += 1) {
            cut[to] = pixels[(channel * imageSize + top + y) * imageSize + left + x];
          }
        }
      }
    }
    return linear(cut, this.weights["patch_embed.proj.weight"], null, patches, inner, width);
  }

  /** Projected patches -> tokens: the class token, if there is one, then the patches, each with its position. */
  embed(projected) {
    const { width, prefix, weights } = this, bias = weights["patch_embed.proj.bias"];
    return weights.pos_embed.map((position, index) => {
      const patch = index - prefix * width;
      return position + (patch < 0 ? weights.cls_token[index] : projected[patch] + bias[patch % width]);
    });
  }

  /** The weight or bias of a part of a block. */
  of(layer, name) {
    return this.weights[`blocks.${layer}.${name}`];
  }

  /**
   * One block, for the first `rows` tokens. If only the class token is classified, the last block computes only its
   * row: nothing reads the others.
   */
  block(x, layer, off, rows = layer === this.depth - 1 && this.pool === "token" ? 1 : this.tokens) {
    const { width, hidden } = this;
    const attention = this.attention(x, layer, rows, off);
    const middle = off.has(`a${layer + 1}`) ? x.slice(0, rows * width) : add(x, attention.out);
    const norm = layerNorm(middle, this.of(layer, "norm2.weight"), this.of(layer, "norm2.bias"));
    const inner = linear(
      norm.out, this.of(layer, "mlp.fc1.weight"), this.of(layer, "mlp.fc1.bias"), rows, width, hidden,
    );
    const active = gelu(inner);
    const mlp = linear(active, this.of(layer, "mlp.fc2.weight"), this.of(layer, "mlp.fc2.bias"), rows, hidden, width);
    const out = off.has(`m${layer + 1}`) ? middle : add(middle, mlp);
    return { rows, attention, middle, norm, inner, out };
  }

  /** Attention of one layer: {norm, heads: [{query, key, value, weights}], merged, out}. */
  attention(x, layer, rows, off) {
    const { tokens, width, headWidth } = this, scale = headWidth ** -0.5;
    const norm = layerNorm(x, this.of(layer, "norm1.weight"), this.of(layer, "norm1.bias"));
    const qkv = linear(
      norm.out, this.of(layer, "attn.qkv.weight"), this.of(layer, "attn.qkv.bias"), tokens, width, 3 * width,
    );
    const merged = new Float32Array(rows * width), heads = [];
    for (let head = 0; head < this.heads; head += 1) {
      const start = head * headWidth;
      const [query, key, value] = [0, 1, 2].map((part) => this.columns(qkv, 3 * width, part * width + start));
      const scores = linear(query, key, null, tokens, headWidth, tokens).map((score) => score * scale);
      const weights = softmax(scores, tokens);
      heads.push({ query, key, value, weights });
      if (off.has(`h${layer + 1}.${head + 1}`)) continue;
      const mixed = multiply(weights, value, rows, tokens, headWidth);
      this.setColumns(merged, width, start, mixed);
    }
    const out = linear(
      merged, this.of(layer, "attn.proj.weight"), this.of(layer, "attn.proj.bias"), rows, width, width,
    );
    return { norm, heads, merged, out };
  }

  /** `headWidth` columns of a matrix, from column `start` on. */
  columns(matrix, width, start) {
    const rows = matrix.length / width, out = new Float32Array(rows * this.headWidth);
    for (let row = 0; row < rows; row += 1) {
      out.set(matrix.subarray(row * width + start, row * width + start + this.headWidth), row * this.headWidth);
    }
    return out;
  }

  /** The reverse of `columns`. */
  setColumns(matrix, width, start, values) {
    for (let row = 0; row < values.length / this.headWidth; row += 1) {
      matrix.set(values.subarray(row * this.headWidth, (row + 1) * this.headWidth), row * width + start);
    }
  }

  /** What the head reads of a matrix with one row per token: the class token's row, or the mean of the patches'. */
  pooled(matrix, width = this.width) {
    const { prefix, patches } = this;
    if (this.pool === "token") return matrix.slice(0, width);
    const mean = new Float32Array(width);
    for (let index = prefix * width; index < matrix.length; index += 1) mean[index % width] += matrix[index] / patches;
    return mean;
  }

  /** Tokens after any block -> {final, logits}: the final norm and the head. */
  classify(tokens) {
    const { weights, width, classes } = this, pooled = this.pooled(tokens);
    const final = layerNorm(pooled, weights[`${this.norm}.weight`], weights[`${this.norm}.bias`]);
    const logits = linear(final.out, weights["head.weight"], weights["head.bias"], 1, width, classes);
    return { final, logits };
  }
}

/**
 * A CNN: a list of layers, one after another, as `describe_layers` in live.py writes them.
 *
 * Maps are (size · size × channels). A trace has the input of every layer and, of the last one, the output.
 */
class ConvNet {
  constructor(config, weights) {
    Object.assign(this, config);
    this.grid = Math.floor(this.imageSize / 4);
    this.layers = config.layers.map((layer) => ({ ...layer, ...LAYERS[layer.kind].prepare?.(layer, weights) }));
  }

  /** Normalized pixels (3 × size × size) -> {maps: [{values, size, channels}], places, logits}. */
  forward(pixels) {
    const { imageSize } = this;
    const maps = [{ values: transpose(pixels, 3, imageSize ** 2), size: imageSize, channels: 3 }], places = [];
    this.layers.forEach((layer, index) => {
      const { place, ...map } = LAYERS[layer.kind].forward(maps[index], layer);
      maps.push(map);
      places.push(place);
    });
    return { maps, places, logits: maps[maps.length - 1].values.map((value) => value * this.logitScale) };
  }
}

/** What each kind of layer prepares from the weights, and its forward pass: {values, size, channels}. */
const LAYERS = {
  convolution: {
    /** The kernel, (out, in, side, side) -> (out, side, side, in). */
    prepare({ name, side, outputs }, weights) {
      const weight = weights[`${name}.weight`], bias = weights[`${name}.bias`] ?? null, area = side ** 2;
      const inputs = weight.length / outputs / area;
      const kernel = new Float32Array(weight.length);
      for (let index = 0; index < weight.length; index += 1) {
        const place = index % area, input = Math.floor(index / area) % inputs;
        kernel[(Math.floor(index / area / inputs) * area + place) * inputs + input] = weight[index];
      }
      return { kernel, bias, inputs };
    },
    forward({ values, size }, { kernel, bias, inputs, outputs, side, padding }) {
      const out = size + 2 * padding - side + 1, cut = neighbors(values, size, inputs, side, padding);
      const convolved = linear(cut, kernel, bias, out ** 2, side ** 2 * inputs, outputs);
      return { values: convolved, size: out, channels: outputs };
    },
  },
  norm: {
    prepare({ name, eps }, weights) {
      const [gamma, beta, mean, variance] = ["weight", "bias", "running_mean", "running_var"]
        .map((part) => weights[`${name}.${part}`]);
      const scale = gamma.map((value, channel) => value / Math.sqrt(variance[channel] + eps));
      return { scale, shift: beta.map((value, channel) => value - mean[channel] * scale[channel]) };
    },
    forward: ({ values, size, channels }, { scale, shift }) => ({
      values: values.map((value, index) => value * scale[index % channels] + shift[index % channels]), size, channels,
    }),
  },
  relu: { forward: (map) => ({ ...map, values: map.values.map((value) => Math.max(0, value)) }) },
  gelu: { forward: (map) => ({ ...map, values: gelu(map.values) }) },
  pool: { forward: (map, { side }) => maxPool(map, side) },
  linear: {
    prepare: ({ name }, weights) => ({ weight: weights[`${name}.weight`], bias: weights[`${name}.bias`] ?? null }),
    forward({ values, size, channels }, { weight, bias, outputs }) {
      const flat = transpose(values, size ** 2, channels); // as PyTorch orders it: channel by channel
      return { values: linear(flat, weight, bias, 1, flat.length, outputs), size: 1, channels: outputs };
    },
  },
};

/** The side × side neighbors of every pixel, 0 outside the image: (pixels × side · side · channels). */
function neighbors(x, size, channels, side, padding) {
  const out = size + 2 * padding - side + 1, result = new Float32Array(out ** 2 * side ** 2 * channels);
  for (let pixel = 0, to = 0; pixel < out ** 2; pixel += 1) {
    for (let place = 0; place < side ** 2; place += 1, to += channels) {
      const from = neighbor(pixel, place, size, side, padding) * channels;
      if (from >= 0) result.set(x.subarray(from, from + channels), to);
    }
  }
  return result;
}

/** The pixel of a map that a place of a kernel reads for an output pixel, or -1 outside the map. */
function neighbor(pixel, place, size, side, padding) {
  const out = size + 2 * padding - side + 1;
  const row = Math.floor(pixel / out) + Math.floor(place / side) - padding;
  const column = (pixel % out) + (place % side) - padding;
  return row < 0 || row >= size || column < 0 || column >= size ? -1 : row * size + column;
}

/**
 * Max pooling: {values, size, channels, place}, where `place` has the indices of the largest values. With a tolerance,
 * they are the indices of the first values that are as large, except for a difference of at most the tolerance.
 */
function maxPool({ values, size, channels }, side, tolerance = 0) {
  const out = Math.floor(size / side), largest = new Float32Array(out ** 2 * channels);
  const place = new Int32Array(largest.length);
  for (let index = 0; index < largest.length; index += 1) {
    const channel = index % channels, cell = Math.floor(index / channels);
    const corner = (side * Math.floor(cell / out) * size + side * (cell % out)) * channels + channel;
    const at = (within) => corner + (Math.floor(within / side) * size + (within % side)) * channels;
    let best = corner;
    for (let within = 1; within < side ** 2; within += 1) if (values[at(within)] > values[best]) best = at(within);
    largest[index] = values[best];
    let first = 0;
    while (tolerance && values[at(first)] < values[best] - tolerance) first += 1;
    place[index] = tolerance ? at(first) : best;
  }
  return { values: largest, size: out, channels, place };
}
