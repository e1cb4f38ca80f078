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

  /** What the head reads: the class token, or the mean of the patches. */
  pooled(tokens) {
    const { width, prefix, patches } = this;
    if (this.pool === "token") return tokens.slice(0, width);
    const mean = new Float32Array(width);
    for (let index = prefix * width; index < tokens.length; index += 1) mean[index % width] += tokens[index] / patches;
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

/** The CNN: four stages of convolution, batch normalization, ReLU and max pooling, then two linear layers. */
class SimpleCNN {
  constructor(config, weights) {
    Object.assign(this, config);
    this.weights = weights;
    this.grid = Math.floor(this.imageSize / 4);
    this.stages = [0, 1, 2, 3].map((stage) => this.prepare(`features.${stage}`));
  }

  /** A stage's kernel (out × 3 · 3 · in), and the scale and shift of its batch normalization. */
  prepare(name) {
    const [weight, gamma, beta, mean, variance] = ["0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
      .map((part) => this.weights[`${name}.${part}`]);
    const outputs = gamma.length, inputs = weight.length / outputs / 9;
    const kernel = new Float32Array(weight.length);
    for (let index = 0; index < weight.length; index += 1) { // (out, in, 3, 3) -> (out, 3, 3, in)
      const place = index % 9, input = Math.floor(index / 9) % inputs, output = Math.floor(index / 9 / inputs);
      kernel[(output * 9 + place) * inputs + input] = weight[index];
    }
    const scale = gamma.map((value, channel) => value / Math.sqrt(variance[channel] + 1e-5));
    const shift = beta.map((value, channel) => value - mean[channel] * scale[channel]);
    return { kernel, scale, shift, inputs, outputs };
  }

  /** Normalized pixels (3 × size × size) -> {stages, hidden, logits}. Maps are (size · size × channels). */
  forward(pixels) {
    let size = this.imageSize, x = transpose(pixels, 3, size * size);
    const stages = this.stages.map((stage) => {
      const { kernel, scale, shift, inputs, outputs } = stage;
      const convolved = linear(neighbors(x, size, inputs), kernel, null, size * size, 9 * inputs, outputs);
      const normed = convolved.map((value, index) => value * scale[index % outputs] + shift[index % outputs]);
      const active = normed.map((value) => Math.max(0, value));
      const { values, places } = maxPool(active, size, outputs);
      const result = { size, normed, active, places };
      size = Math.floor(size / 2);
      x = values;
      return result;
    });
    const channels = this.stages[3].outputs;
    const flat = transpose(x, size * size, channels); // as PyTorch orders it: channel by channel
    const { weights, classes } = this, units = weights["classifier.1.bias"].length;
    const hidden = linear(flat, weights["classifier.1.weight"], weights["classifier.1.bias"], 1, flat.length, units);
    const active = hidden.map((value) => Math.max(0, value));
    const logits = linear(active, weights["classifier.4.weight"], weights["classifier.4.bias"], 1, units, classes);
    return { stages, hidden, logits };
  }
}

/** The 3 × 3 neighbors of every pixel, 0 outside the image: (size · size × 9 · channels). */
function neighbors(x, size, channels) {
  const out = new Float32Array(size * size * 9 * channels);
  for (let pixel = 0, to = 0; pixel < size * size; pixel += 1) {
    for (let place = 0; place < 9; place += 1, to += channels) {
      const row = Math.floor(pixel / size) + Math.floor(place / 3) - 1, column = (pixel % size) + (place % 3) - 1;
      if (row < 0 || row >= size || column < 0 || column >= size) continue;
      const from = (row * size + column) * channels;
      out.set(x.subarray(from, from + channels), to);
    }
  }
  return out;
}

/** 2 × 2 max pooling: {values, places}, where `places` are the indices of the largest values. */
function maxPool(x, size, channels) {
  const half = Math.floor(size / 2);
  const values = new Float32Array(half * half * channels), places = new Int32Array(values.length);
  for (let index = 0; index < values.length; index += 1) {
    const channel = index % channels, cell = Math.floor(index / channels);
    const corner = (2 * Math.floor(cell / half) * size + 2 * (cell % half)) * channels + channel;
    let best = corner;
    for (const place of [corner + channels, corner + size * channels, corner + (size + 1) * channels]) {
      if (x[place] > x[best]) best = place;
    }
    values[index] = x[best];
    places[index] = best;
  }
  return { values, places };
}
