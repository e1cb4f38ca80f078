// The backward pass of both networks: gradients of one logit with respect to attention and activations, not weights.

/**
 * The two sets of rules for the backward pass of a ViT. The gradient of AttnLRP treats the standard deviation of a
 * layer norm as a constant, takes the slope of a GELU from 0, and halves what passes through a product of two matrices.
 */
const GRADIENT = {
  share: 1,
  normSlope(gradient, norm, weight) {
    return normBackward(gradient, norm, weight, true);
  },
  geluSlope: (x) => normalCdf(x) + (x * Math.exp(-0.5 * x * x)) / Math.sqrt(2 * Math.PI),
};
const ATTN_LRP = {
  share: 0.5,
  normSlope(gradient, norm, weight) {
    return normBackward(gradient, norm, weight, false);
  },
  geluSlope: (x) => normalCdf(x),
};

/** The gradient of a layer norm's input. Without `variesStd`, the standard deviation counts as a constant. */
function normBackward(gradient, { normalized, std }, weight, variesStd) {
  const width = weight.length, out = new Float32Array(gradient.length);
  for (let start = 0; start < gradient.length; start += width) {
    let mean = 0, along = 0;
    for (let k = 0; k < width; k += 1) {
      const value = gradient[start + k] * weight[k];
      mean += value / width;
      if (variesStd) along += (value * normalized[start + k]) / width;
    }
    for (let k = 0; k < width; k += 1) {
      const value = gradient[start + k] * weight[k];
      out[start + k] = (value - mean - normalized[start + k] * along) / std[start / width];
    }
  }
  return out;
}

/** The gradient of a logit with respect to what a ViT's head reads: (width). */
function pooledGradient(vit, trace, target, rules) {
  const row = vit.weights["head.weight"].subarray(target * vit.width, (target + 1) * vit.width);
  return rules.normSlope(row, trace.final, vit.weights[`${vit.norm}.weight`]);
}

/**
 * The gradients of a logit of a ViT. `trace` is from its forward pass.
 *
 * Returns {attention: one list of heads per layer, (tokens × tokens) each, or null if the head is off;
 * lastNorm: of the output of the last block's first norm; embedding: of the first block's input}.
 */
function vitGradients(vit, trace, target, off, rules) {
  const { width, tokens, prefix, patches, depth } = vit;
  const pooled = pooledGradient(vit, trace, target, rules);
  let gradient = pooled, lastNorm = null;
  if (vit.pool === "avg") {
    gradient = new Float32Array(tokens * width);
    for (let k = prefix * width; k < gradient.length; k += 1) gradient[k] = pooled[k % width] / patches;
  }
  const attention = [];
  for (let layer = depth - 1; layer >= 0; layer -= 1) {
    const below = blockBackward(vit, trace.blocks[layer], layer, gradient, off, rules);
    attention.unshift(below.heads);
    lastNorm ??= below.norm;
    gradient = below.gradient;
  }
  return { attention, lastNorm, embedding: gradient };
}

function blockBackward(vit, block, layer, gradient, off, rules) {
  const { width, hidden } = vit, { rows } = block;
  let middle = gradient;
  if (!off.has(`m${layer + 1}`)) {
    const inner = multiply(gradient, vit.of(layer, "mlp.fc2.weight"), rows, width, hidden)
      .map((value, index) => value * rules.geluSlope(block.inner[index]));
    const normed = multiply(inner, vit.of(layer, "mlp.fc1.weight"), rows, hidden, width);
    middle = add(gradient, rules.normSlope(normed, block.norm, vit.of(layer, "norm2.weight")));
  }
  const whole = new Float32Array(vit.tokens * width); // tokens that the last block did not need have gradient 0
  whole.set(middle);
  if (off.has(`a${layer + 1}`)) {
    return { heads: Array(vit.heads).fill(null), norm: whole.map(() => 0), gradient: whole };
  }
  const { heads, norm } = attentionBackward(vit, block, layer, middle, off, rules);
  const passed = rules.normSlope(norm, block.attention.norm, vit.of(layer, "norm1.weight"));
  return { heads, norm, gradient: add(whole, passed) };
}

function attentionBackward(vit, { rows, attention }, layer, gradient, off, rules) {
  const { tokens, width, headWidth } = vit, scale = headWidth ** -0.5;
  const merged = multiply(gradient, vit.of(layer, "attn.proj.weight"), rows, width, width);
  const qkv = new Float32Array(tokens * 3 * width);
  const heads = attention.heads.map(({ query, key, value, weights }, head) => {
    if (off.has(`h${layer + 1}.${head + 1}`)) return null;
    const mixed = vit.columns(merged, width, head * headWidth).map((entry) => entry * rules.share);
    const ofWeights = new Float32Array(tokens * tokens);
    ofWeights.set(linear(mixed, value, null, rows, headWidth, tokens));
    const used = weights.subarray(0, rows * tokens);
    const scores = softmaxBackward(ofWeights, used, tokens).map((entry) => entry * scale * rules.share);
    const parts = [
      multiply(scores, key, rows, tokens, headWidth),
      multiply(transpose(scores, rows, tokens), query.subarray(0, rows * headWidth), tokens, rows, headWidth),
      multiply(transpose(used, rows, tokens), mixed, tokens, rows, headWidth),
    ];
    parts.forEach((values, part) => vit.setColumns(qkv, 3 * width, part * width + head * headWidth, values));
    return ofWeights;
  });
  return { heads, norm: multiply(qkv, vit.of(layer, "attn.qkv.weight"), tokens, 3 * width, width) };
}

function softmaxBackward(gradient, weights, columns) {
  const out = new Float32Array(weights.length);
  for (let start = 0; start < weights.length; start += columns) {
    let along = 0;
    for (let k = start; k < start + columns; k += 1) along += gradient[k] * weights[k];
    for (let k = start; k < start + columns; k += 1) out[k] = weights[k] * (gradient[k] - along);
  }
  return out;
}

// Maps: Float32Arrays with one value per patch

/** The row of the output token in a matrix (tokens × tokens), without the column of the class token. */
function outputRow(vit, matrix) {
  const { tokens, prefix, patches } = vit;
  const first = vit.pool === "token" ? 0 : prefix, count = vit.pool === "token" ? 1 : patches;
  return Float32Array.from({ length: patches }, (_, patch) => {
    let sum = 0;
    for (let row = first; row < first + count; row += 1) sum += matrix[row * tokens + prefix + patch];
    return sum / count;
  });
}

function identity(size) {
  const out = new Float32Array(size * size);
  for (let index = 0; index < size; index += 1) out[index * size + index] = 1;
  return out;
}

/** Attention rollout up to every layer. Heads that are off count as 0. */
function rollout(vit, trace, off) {
  const { tokens, heads } = vit, one = identity(tokens);
  let product = one;
  return trace.blocks.map(({ attention }, layer) => {
    const mixed = one.map((value) => value / 2);
    attention.heads.forEach(({ weights }, head) => {
      if (off.has(`a${layer + 1}`) || off.has(`h${layer + 1}.${head + 1}`)) return;
      for (let index = 0; index < mixed.length; index += 1) mixed[index] += weights[index] / heads / 2;
    });
    for (let start = 0; start < mixed.length; start += tokens) {
      const sum = mixed.subarray(start, start + tokens).reduce((total, value) => total + value, 0);
      for (let index = start; index < start + tokens; index += 1) mixed[index] /= sum;
    }
    product = multiply(mixed, product, tokens, tokens, tokens);
    return outputRow(vit, product);
  });
}

/** Gradient rollout up to every layer. `gradients` is from `vitGradients`. */
function gradientRollout(vit, trace, gradients) {
  const { tokens, heads } = vit, one = identity(tokens), start = outputRow(vit, one);
  let relevance = one;
  return trace.blocks.map(({ attention }, layer) => {
    const positive = new Float32Array(tokens * tokens);
    gradients.attention[layer].forEach((gradient, head) => {
      if (!gradient) return;
      const { weights } = attention.heads[head];
      for (let k = 0; k < positive.length; k += 1) positive[k] += Math.max(0, gradient[k] * weights[k]) / heads;
    });
    relevance = add(relevance, multiply(positive, relevance, tokens, tokens, tokens));
    return outputRow(vit, relevance).map((value, patch) => value - start[patch]);
  });
}

/** Grad-CAM: activation and gradient are (cells × channels), in the order of the cells. */
function gradCam(activation, gradient, channels) {
  const cells = activation.length / channels, weights = new Float32Array(channels);
  for (let k = 0; k < gradient.length; k += 1) weights[k % channels] += gradient[k] / cells;
  return Float32Array.from({ length: cells }, (_, cell) => {
    let sum = 0;
    for (let k = 0; k < channels; k += 1) sum += weights[k] * activation[cell * channels + k];
    return Math.max(0, sum);
  });
}

function vitGradCam(vit, trace, gradients) {
  const skipped = vit.prefix * vit.width, { norm } = trace.blocks[vit.depth - 1].attention;
  return gradCam(norm.out.subarray(skipped), gradients.lastNorm.subarray(skipped), vit.width);
}

function attnLrp(vit, trace, target, off) {
  const { embedding } = vitGradients(vit, trace, target, off, ATTN_LRP), { width, prefix } = vit;
  return Float32Array.from({ length: vit.patches }, (_, patch) => {
    const from = (patch + prefix) * width;
    let sum = 0;
    for (let k = 0; k < width; k += 1) sum += embedding[from + k] * trace.projected[patch * width + k];
    return sum;
  });
}

/** The logits after the embedding and after every layer, by the final norm and the head: depth + 1 arrays. */
function logitLens(vit, trace) {
  return trace.tokens.map((tokens) => vit.classify(tokens).logits);
}

/** The logit of a class in each patch after every layer, if their mean is classified: see patch_logits in lens.py. */
function patchLogits(vit, trace, target) {
  const { width, prefix, patches, weights } = vit;
  const row = weights["head.weight"].subarray(target * width, (target + 1) * width);
  const scale = weights[`${vit.norm}.weight`].map((value, k) => value * row[k]);
  const shift = weights[`${vit.norm}.bias`], bias = weights["head.bias"][target];
  const constant = shift.reduce((sum, value, k) => sum + value * row[k], bias);
  return trace.tokens.slice(1).map((tokens) => {
    const [std] = vit.classify(tokens).final.std;
    return Float32Array.from({ length: patches }, (_, patch) => {
      const token = tokens.subarray((patch + prefix) * width, (patch + prefix + 1) * width);
      const mean = token.reduce((sum, value) => sum + value, 0) / width;
      return token.reduce((sum, value, k) => sum + ((value - mean) / std) * scale[k], constant);
    });
  });
}

/** How far each head's output moves a logit directly, with the final norm's standard deviation as a constant. */
function headContributions(vit, trace, target, off) {
  const { width, headWidth, prefix, heads } = vit;
  const direction = pooledGradient(vit, trace, target, ATTN_LRP);
  return trace.blocks.map(({ rows, attention }, layer) => {
    const back = multiply(direction, vit.of(layer, "attn.proj.weight"), 1, width, width);
    const first = vit.pool === "token" ? 0 : prefix, count = vit.pool === "token" ? 1 : rows - prefix;
    return Float32Array.from({ length: heads }, (_, head) => {
      if (off.has(`a${layer + 1}`)) return 0;
      let sum = 0;
      for (let row = first; row < first + count; row += 1) {
        for (let k = head * headWidth; k < (head + 1) * headWidth; k += 1) {
          sum += attention.merged[row * width + k] * back[k];
        }
      }
      return sum / count;
    });
  });
}

// The CNNs

const TIE = 1e-5; // relative to the largest value of a layer: see first_largest in propagation.py
const NEAR = 1e-3; // between inputs that are closer, an activation's slope is its derivative: see propagation.py

const SLOPES = {
  relu: { of: (x) => Math.max(0, x), derivative: (x) => (x > 0 ? 1 : 0) },
  gelu: { of: (x) => x * normalCdf(x), derivative: GRADIENT.geluSlope },
};

/**
 * A backward pass of a CNN: the gradient of a logit with respect to the input of layer `last`.
 *
 * With `reference`, the trace of a reference image, the rules are DeepLIFT's.
 */
function cnnBackward(cnn, trace, reference, target, last) {
  let gradient = new Float32Array(cnn.classes);
  gradient[target] = cnn.logitScale;
  for (let index = cnn.layers.length - 1; index >= last; index -= 1) {
    const layer = cnn.layers[index], ours = trace.maps[index], theirs = reference?.maps[index];
    if (layer.kind === "linear") {
      const flat = multiply(gradient, layer.weight, 1, layer.outputs, layer.weight.length / layer.outputs);
      gradient = transpose(flat, ours.channels, ours.size ** 2);
    } else if (layer.kind === "pool") {
      gradient = reference
        ? poolBackward(ours, theirs, layer.side, gradient)
        : scatter(gradient, trace.places[index], ours.values.length);
    } else if (layer.kind === "norm") {
      gradient = gradient.map((value, k) => value * layer.scale[k % ours.channels]);
    } else if (layer.kind === "convolution") {
      gradient = convolutionBackward(gradient, layer, ours.size);
    } else {
      const slope = SLOPES[layer.kind];
      gradient = gradient.map((value, k) => (
        value * secant(slope, ours.values[k], theirs ? theirs.values[k] : ours.values[k])));
    }
  }
  return gradient;
}

/** The slope of an activation between two inputs. */
function secant({ of, derivative }, input, other) {
  if (Math.abs(input - other) < NEAR) return derivative((input + other) / 2);
  return (of(input) - of(other)) / (input - other);
}

function cnnGradCam(cnn, trace, target) {
  const at = cnn.gradCamLayer + 1, { values, channels } = trace.maps[at];
  return gradCam(values, cnnBackward(cnn, trace, null, target, at), channels);
}

/** DeepLIFT (the rescale rule) against a reference. Both traces are from the forward pass. One value per cell. */
function deepLift(cnn, trace, reference, pixels, target) {
  return sumOverCells(cnn, cnnBackward(cnn, trace, reference, target, 0), pixels);
}

function scatter(gradient, place, length) {
  const out = new Float32Array(length);
  gradient.forEach((value, index) => { out[place[index]] += value; });
  return out;
}

function largestValue(values) {
  return values.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
}

/** A rising maximum is due to the image's largest value, a falling one to the reference's largest. */
function poolBackward(ours, theirs, side, gradient) {
  const out = new Float32Array(ours.values.length);
  const [places, others] = [ours, theirs].map((map) => maxPool(map, side, TIE * largestValue(map.values)).place);
  const [outputs, referenceOutputs] = [ours, theirs].map((map) => maxPool(map, side).values);
  gradient.forEach((value, index) => {
    const output = outputs[index], referenceOutput = referenceOutputs[index];
    const larger = Math.max(output, referenceOutput);
    for (const [place, change] of [[places[index], larger - referenceOutput], [others[index], output - larger]]) {
      const difference = ours.values[place] - theirs.values[place];
      if (difference !== 0) out[place] += (value * change) / difference;
    }
  });
  return out;
}

function convolutionBackward(gradient, { kernel, inputs, outputs, side, padding }, size) {
  const pixels = gradient.length / outputs, spread = multiply(gradient, kernel, pixels, outputs, side ** 2 * inputs);
  const out = new Float32Array(size * size * inputs);
  for (let pixel = 0, from = 0; pixel < pixels; pixel += 1) {
    for (let place = 0; place < side ** 2; place += 1, from += inputs) {
      const to = neighbor(pixel, place, size, side, padding) * inputs;
      if (to < 0) continue;
      for (let channel = 0; channel < inputs; channel += 1) out[to + channel] += spread[from + channel];
    }
  }
  return out;
}

/** Gradient (pixels × 3) times normalized pixels (3 × size × size), summed over each cell. */
function sumOverCells({ imageSize, grid }, gradient, pixels) {
  const out = new Float32Array(grid * grid), cell = (place) => Math.floor((place * grid) / imageSize);
  for (let pixel = 0; pixel < imageSize ** 2; pixel += 1) {
    const at = cell(Math.floor(pixel / imageSize)) * grid + cell(pixel % imageSize);
    for (let channel = 0; channel < 3; channel += 1) {
      out[at] += gradient[pixel * 3 + channel] * pixels[channel * imageSize ** 2 + pixel];
    }
  }
  return out;
}
