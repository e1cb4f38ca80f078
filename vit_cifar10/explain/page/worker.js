// The network's own thread: it classifies what the page sends, and answers in parts, the fastest first.
//
// A new task stops the one before: between two parts, the thread looks whether one has come.

let network = null, isVit = true, mean = null, std = null;
let reference = null; // of a CNN: the forward pass of an image in the mean color
let task = null, isWorking = false;
let last = { key: null, off: null, trace: null }; // the last forward pass

onmessage = ({ data: message }) => {
  if (message.kind === "load") {
    load(message);
    return;
  }
  if (message.kind === "walk") {
    const { trace } = see(message);
    postMessage({ kind: "walk", id: message.id, ...walk(trace, message) });
    return;
  }
  if (message.kind === "probe") {
    postMessage({ kind: "probe", id: message.id, probabilities: softmax(see(message).trace.logits.slice(), network.classes) });
    return;
  }
  task = message;
  if (!isWorking) work();
};

/** Decode the weights: matrices of 8-bit integers with one scale per row, everything else as 32-bit floats. */
function load({ config, tensors, integers, floats }) {
  isVit = config.isVit;
  ({ mean, std } = config);
  const sizes = tensors.map(({ rows, columns }) => rows * columns);
  const kept = sizes.reduce((sum, size) => sum + size, 0);
  const largest = Math.max(...sizes, isVit ? ((config.imageSize / config.patchSize) ** 2 + 4) ** 2 : 0);
  kernel = makeKernel(kept, largest);
  const memory = kernel ? kernel.floats : new Float32Array(kept), weights = {};
  let at = 0, integer = 0, float = 0;
  for (const { name, rows, columns, isRounded } of tensors) {
    const values = memory.subarray(at, at + rows * columns);
    if (isRounded) {
      for (let index = 0; index < values.length; index += 1) {
        values[index] = integers[integer + index] * floats[float + Math.floor(index / columns)];
      }
      integer += values.length;
      float += rows;
    } else {
      values.set(floats.subarray(float, float + values.length));
      float += values.length;
    }
    weights[name] = values;
    at += values.length;
  }
  network = isVit ? new VisionTransformer(config, weights) : new ConvNet(config, weights);
  if (!isVit) reference = network.forward(new Float32Array(3 * config.imageSize ** 2));
  postMessage({ kind: "ready", isFast: kernel !== null });
}

/** Work on the newest task until it is done or replaced. */
async function work() {
  isWorking = true;
  while (task) {
    const current = task, parts = answers(current);
    while (task === current) {
      let part;
      try {
        part = parts.next();
      } catch (error) { // such as too little memory
        part = { value: { kind: "error", message: String(error) }, done: true };
      }
      if (part.done) task = null;
      if (part.value) postMessage({ id: current.id, ...part.value });
      await nextMessage();
    }
  }
  isWorking = false;
}

/** Let messages arrive that are waiting. A timer would wait for milliseconds. */
function nextMessage() {
  return new Promise((resolve) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => {
      channel.port1.close();
      resolve();
    };
    channel.port2.postMessage(null);
  });
}

/** The parts of the answer to a task: {pixels, version, removed, fill, off, target, wantsRemoval}. */
function* answers(current) {
  const { pixels, fill, off, target, wantsRemoval } = current, parts = new Set(off), started = performance.now();
  const { inputs, trace } = see(current);
  const answer = { kind: "answer", logits: trace.logits, seen: current.removed.length ? toPixels(inputs) : null };
  if (isVit) {
    answer.attention = allWeights(trace);
    answer.rollout = join(rollout(network, trace, parts));
    answer.lens = join(logitLens(network, trace));
  }
  yield { ...answer, milliseconds: performance.now() - started };
  const explained = target ?? trace.logits.indexOf(Math.max(...trace.logits));
  yield { kind: "explanation", target: explained, ...explain(trace, inputs, explained, parts) };
  if (wantsRemoval) yield* removals(inputs, pixels, fill, parts);
  return { kind: "done" };
}

/** Remove each patch of an image in turn. Between two patches, other messages may arrive. */
function* removals(inputs, pixels, fill, off) {
  const patches = network.grid ** 2, probabilities = new Float32Array(patches * network.classes);
  const filling = fillingOf(normalize(pixels), fill);
  let reported = performance.now();
  for (let patch = 0; patch < patches; patch += 1) {
    const without = withoutPatches(inputs, [patch], filling);
    probabilities.set(softmax(network.forward(without, off).logits, network.classes), patch * network.classes);
    const isDue = performance.now() - reported > 100;
    if (isDue) reported = performance.now();
    yield isDue ? { kind: "removing", done: (patch + 1) / patches } : null;
  }
  yield { kind: "removal", probabilities };
}

/** The inputs and the forward pass for a state: {inputs, trace}. */
function see({ pixels, version, removed, fill, off }) {
  const key = `${version} ${fill} ${removed.join()}`;
  const whole = normalize(pixels);
  const inputs = last.key === key ? last.inputs : withoutPatches(whole, removed, fillingOf(whole, fill));
  return { inputs, trace: forward(inputs, key, new Set(off)) };
}

/** The forward pass, from the first layer whose switches have changed since the last one. */
function forward(inputs, key, off) {
  let trace;
  if (last.key !== key) {
    trace = network.forward(inputs, off);
  } else { // a CNN has no switches
    const layers = symmetricDifference(off, last.off).map((part) => Number.parseInt(part.slice(1), 10) - 1);
    trace = layers.length ? network.forward(inputs, off, last.trace, Math.min(...layers)) : last.trace;
  }
  last = { key, inputs, off, trace };
  return trace;
}

function symmetricDifference(one, other) {
  return [...one].filter((value) => !other.has(value)).concat([...other].filter((value) => !one.has(value)));
}

/** All explanations of a class that need gradients. */
function explain(trace, inputs, target, off) {
  if (!isVit) {
    return {
      gradCam: cnnGradCam(network, trace, target),
      evidence: deepLift(network, trace, reference, inputs, target),
    };
  }
  const gradients = vitGradients(network, trace, target, off, GRADIENT);
  return {
    gradientRollout: join(gradientRollout(network, trace, gradients)),
    gradCam: vitGradCam(network, trace, gradients),
    evidence: attnLrp(network, trace, target, off),
    ...(network.pool === "avg" && { patchLogits: join(patchLogits(network, trace, target)) }),
    contributions: join(headContributions(network, trace, target, off)),
  };
}

/**
 * The numbers of the walk through a ViT. It follows what the head reads, which is the class token or the mean of the
 * patches, and one patch, through one layer and head. The mean of the scores is the score of the mean query.
 */
function walk(trace, { layer, head, patch, off }) {
  const { width, prefix, patches, tokens, headWidth, depth } = network;
  const block = network.block(trace.tokens[layer], layer, new Set(off), tokens);
  const row = (matrix, index, columns = width) => matrix.slice(index * columns, (index + 1) * columns);
  const position = (index) => row(network.weights.pos_embed, index + prefix);
  const { query, key, value, weights } = block.attention.heads[head], scale = headWidth ** -0.5;
  const [before, middle, after] = [trace.tokens[layer], block.middle, block.out].map((matrix) => network.pooled(matrix));
  const asked = network.pooled(query, headWidth), offered = row(key, patch + prefix, headWidth);
  const fractions = network.pooled(weights, tokens);
  return {
    patch,
    projected: row(trace.tokens[0], patch + prefix).map((part, index) => part - position(patch)[index]),
    similarity: Float32Array.from({ length: patches }, (_, other) => cosine(position(patch), position(other))),
    query: asked,
    key: offered,
    products: asked.map((part, index) => part * offered[index] * scale),
    scores: linear(asked, key, null, 1, headWidth, tokens).map((score) => score * scale),
    weights: fractions,
    mixed: multiply(fractions, value, 1, tokens, headWidth),
    before,
    gathered: middle.map((part, index) => part - before[index]),
    made: after.map((part, index) => part - middle[index]),
    after,
    last: network.pooled(trace.tokens[depth]),
    final: trace.final.out,
    logits: trace.logits,
  };
}

function cosine(one, other) {
  const product = (x, y) => x.reduce((sum, value, index) => sum + value * y[index], 0);
  return product(one, other) / Math.sqrt(product(one, one) * product(other, other));
}

/** The attention of all layers and heads in one array. */
function allWeights(trace) {
  return join(trace.blocks.flatMap(({ attention }) => attention.heads.map(({ weights }) => weights)));
}

function join(arrays) {
  const out = new Float32Array(arrays.reduce((sum, array) => sum + array.length, 0));
  let at = 0;
  for (const array of arrays) {
    out.set(array, at);
    at += array.length;
  }
  return out;
}

/** Pixels (size · size × 3) from 0 to 255 -> normalized (3 × size · size). */
function normalize(pixels) {
  const area = pixels.length / 3, out = new Float32Array(pixels.length);
  for (let index = 0; index < out.length; index += 1) {
    const channel = index % 3;
    out[channel * area + Math.floor(index / 3)] = (pixels[index] / 255 - mean[channel]) / std[channel];
  }
  return out;
}

/** The reverse of `normalize`. */
function toPixels(inputs) {
  const area = inputs.length / 3, out = new Uint8ClampedArray(inputs.length);
  for (let index = 0; index < out.length; index += 1) {
    const channel = index % 3;
    out[index] = 255 * (inputs[channel * area + Math.floor(index / 3)] * std[channel] + mean[channel]);
  }
  return out;
}

/** What replaces removed patches of an image: a blurred copy, or null for the mean color. */
function fillingOf(inputs, fill) {
  return fill === "blur" ? blurred(inputs, network.imageSize) : null;
}

/** Normalized pixels with some patches replaced by those of `filling` or, if it is null, by the mean color (0). */
function withoutPatches(inputs, removed, filling) {
  if (!removed.length) return inputs;
  const size = network.imageSize, { grid } = network, gone = new Set(removed), out = inputs.slice();
  const cell = (place) => Math.floor((place * grid) / size);
  for (let index = 0; index < out.length; index += 1) {
    const pixel = index % (size * size);
    if (gone.has(cell(Math.floor(pixel / size)) * grid + cell(pixel % size))) out[index] = filling ? filling[index] : 0;
  }
  return out;
}

const blurs = { of: null, result: null };

/** A Gaussian blur with a standard deviation of an eighth of the side, mirrored at the border, as in removal.py. */
function blurred(inputs, size) {
  if (blurs.of && blurs.of.every((value, index) => value === inputs[index])) return blurs.result;
  const sigma = size / 8, radius = Math.ceil(1.5 * sigma);
  const bell = (_, index) => Math.exp(-0.5 * ((index - radius) / sigma) ** 2);
  const kernelOf = Float64Array.from({ length: 2 * radius + 1 }, bell);
  const total = kernelOf.reduce((sum, value) => sum + value, 0);
  const mirror = (place) => (place < 0 ? -place : place >= size ? 2 * size - 2 - place : place);
  const along = (from, step, stride) => { // blur every line of `size` values that are `step` apart
    const out = new Float32Array(from.length);
    for (let start = 0; start < from.length; start += size * size) {
      for (let line = 0; line < size; line += 1) {
        for (let place = 0; place < size; place += 1) {
          let sum = 0;
          for (let offset = -radius; offset <= radius; offset += 1) {
            sum += kernelOf[offset + radius] * from[start + line * stride + mirror(place + offset) * step];
          }
          out[start + line * stride + place * step] = sum / total;
        }
      }
    }
    return out;
  };
  Object.assign(blurs, { of: inputs, result: along(along(inputs, 1, size), size, 1) });
  return blurs.result;
}
