"use strict";

// `data` holds what Python has computed, `state` what the user has selected. Everything on the page follows from them.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

const MEAN = 0, MAX = 1, FIRST_HEAD = 2; // positions of the head slider
const CLASS_TOKEN = "class", ALL_PATCHES = "all"; // values of state.token other than the index of a patch
const defaultToken = data.isVit && data.pool === "token" ? CLASS_TOKEN : ALL_PATCHES; // what the network's head reads
const patches = data.grid * data.grid;
const prefix = data.hasClassToken ? 1 : 0;
const tokens = patches + prefix;
const colors = palette(data.colors);
const differences = palette(data.differences);
const referenceScores = data.reference && floats(data.reference); // of a CNN: of an image in the mean color

const output = data.pool === "avg" ? "the mean of the patches" : "the class token";

const sumOfEvidence = data.isVit
  ? "this score, except for a part that belongs to no patch: "
    + `biases, positions${prefix ? ", class token" : ""} and softmax`
  : "the difference between this score and the score of an image in the mean color of the data set";

const METHODS = {
  attention: {
    name: "Attention", vit: true, layers: true, heads: true,
    meaning: "How strongly the selected token attends to every patch in one layer, and how strongly every patch "
      + "attends to it: in one head, or as the mean or maximum over all heads. Attention shows where a layer looks; "
      + "it does not show what raises or lowers the score.",
  },
  evidence: {
    name: data.evidenceMethod, classes: true, signed: true,
    meaning: "The score (logit) of the selected class, divided among the patches: red patches count for the class, "
      + `blue patches against it. The values of all patches add up to ${sumOfEvidence}.`,
  },
  rollout: {
    name: "Rollout", vit: true, layers: true,
    meaning: "The attention of all layers up to this one, multiplied together, with the residual connections counted "
      + `half: an estimate of how much of each patch has reached ${output}. It is the same for every class.`,
  },
  gradientRollout: {
    name: "Gradient rollout", vit: true, layers: true, classes: true,
    meaning: "The attention of all layers up to this one, counted only where more of it would raise the score of the "
      + "selected class: what this method counts as evidence for the class so far.",
  },
  gradCam: {
    name: "Grad-CAM", classes: true,
    meaning: `The ${data.isVit ? "input of the last block" : "output of the last ReLU"}, with each channel `
      + "weighted by how much it raises the score of the selected class: what this method counts as evidence for the "
      + "class.",
  },
  removal: {
    name: "Removal", classes: true, signed: true,
    meaning: "A measurement: each patch alone was replaced by the mean color of the data set, and the image was "
      + "classified again. Removing a red patch lowers the probability of the selected class; removing a blue patch "
      + "raises it.",
  },
};

const images = data.images.map((image) => ({
  ...image,
  pixels: bytes(image.pixels),
  scores: floats(image.scores),
  probabilities: floats(image.probabilities),
  removal: floats(image.removal),
  evidence: grids(image.evidence),
  gradCam: grids(image.gradCam),
  attention: image.attention && new Uint16Array(bytes(image.attention).buffer),
  rollout: image.rollout && grids(image.rollout),
  gradientRollout: image.gradientRollout && grids(image.gradientRollout),
  picture: picture(bytes(image.pixels)),
}));

const state = {
  image: 0,
  method: data.isVit ? "attention" : "evidence",
  layer: data.layers, // from 1
  head: MEAN,
  strength: 60,
  token: defaultToken,
  target: images[0].explained[0],
  removed: new Set(),
  timer: null,
};

// Numbers

function bytes(text) {
  const letters = atob(text), values = new Uint8Array(letters.length);
  for (let index = 0; index < letters.length; index += 1) values[index] = letters.charCodeAt(index);
  return values;
}

/** 256 colors in the byte order of ImageData on little-endian machines. */
function palette(text) {
  const parts = bytes(text);
  return Uint32Array.from({ length: 256 }, (_, step) => {
    const [red, green, blue] = parts.subarray(3 * step, 3 * step + 3);
    return (255 << 24) | (blue << 16) | (green << 8) | red;
  });
}

function floats(text) {
  return new Float32Array(bytes(text).buffer);
}

function grids(packed) {
  return { side: packed.side, values: floats(packed.values) };
}

/** The selected token if it is a patch, otherwise null. */
function selectedPatch() {
  return typeof state.token === "number" ? state.token : null;
}

/** The index of a token in the attention matrices. */
function tokenIndex(token) {
  return token === CLASS_TOKEN ? 0 : token + prefix;
}

/** The attention from one token to another in a layer. `head` is a position of the head slider. */
function attention(layer, head, from, to) {
  const matrices = images[state.image].attention;
  const at = (number) => matrices[(((layer - 1) * data.heads + number) * tokens + from) * tokens + to] / 65535;
  if (head >= FIRST_HEAD) return at(head - FIRST_HEAD);
  let sum = 0, largest = 0;
  for (let number = 0; number < data.heads; number += 1) {
    const value = at(number);
    sum += value;
    largest = Math.max(largest, value);
  }
  return head === MEAN ? sum / data.heads : largest;
}

/** The attention from a token to every token or, unless `isFrom`, the reverse: {side, values, classToken}. */
function attentionOf(token, isFrom, layer = state.layer, head = state.head) {
  const pair = (other) => {
    if (token !== ALL_PATCHES) {
      const index = tokenIndex(token);
      return isFrom ? attention(layer, head, index, other) : attention(layer, head, other, index);
    }
    let sum = 0;
    for (let patch = 0; patch < patches; patch += 1) {
      sum += isFrom ? attention(layer, head, patch + prefix, other) : attention(layer, head, other, patch + prefix);
    }
    return sum / patches;
  };
  return {
    side: data.grid,
    values: Float32Array.from({ length: patches }, (_, patch) => pair(patch + prefix)),
    classToken: prefix ? pair(0) : null,
  };
}

/** One map of a stack of maps. */
function slice(maps, index) {
  const size = maps.side * maps.side;
  return { side: maps.side, values: maps.values.subarray(index * size, (index + 1) * size) };
}

/** How much the probability of the selected class falls without each patch. Negative values mean that it rises. */
function losses() {
  const { removal, probabilities } = images[state.image];
  const count = data.classes.length;
  const lost = (_, patch) => probabilities[state.target] - removal[patch * count + state.target];
  return { side: data.grid, values: Float32Array.from({ length: patches }, lost) };
}

/** The map on the main board: {side, values}. */
function mainMap() {
  const image = images[state.image];
  const explained = image.explained.indexOf(state.target);
  switch (state.method) {
    case "attention": return attentionOf(state.token, true);
    case "evidence": return slice(image.evidence, explained);
    case "rollout": return slice(image.rollout, state.layer - 1);
    case "gradientRollout": return slice(image.gradientRollout, explained * data.layers + state.layer - 1);
    case "gradCam": return slice(image.gradCam, explained);
    default: return losses();
  }
}

// Texts

const percent = (fraction) => `${(100 * fraction).toFixed(Math.abs(fraction) < 0.0995 ? 2 : 1)} %`;

/** A change of a probability, in percentage points. */
function points(change) {
  const size = Math.abs(100 * change).toFixed(2);
  const sign = size === "0.00" ? "" : change > 0 ? "+" : "−";
  return `${sign}${size} points`;
}

/** A part of a score, with its sign and at least two significant digits. */
function contribution(value) {
  const size = Math.abs(value), sign = value < 0 ? "−" : value > 0 ? "+" : "";
  return sign + (size > 0 && size < 0.0995 ? size.toPrecision(2) : size.toFixed(2));
}

/** The selected class as text. */
function targetName() {
  return `“${data.classes[state.target]}”`;
}

function patchName(patch) {
  return `row ${Math.floor(patch / data.grid) + 1}, column ${(patch % data.grid) + 1}`;
}

function tokenName(token) {
  return { [CLASS_TOKEN]: "the class token", [ALL_PATCHES]: "the average patch" }[token] ?? patchName(token);
}

function headName() {
  return { [MEAN]: "mean", [MAX]: "max" }[state.head] ?? `${state.head - FIRST_HEAD + 1} of ${data.heads}`;
}

/** The value of a patch as text, for all methods except attention. */
function valueName(map, patch) {
  if (map.side !== data.grid) { // Grad-CAM of a CNN has another grid
    const scale = map.side / data.grid;
    patch = Math.floor(Math.floor(patch / data.grid) * scale) * map.side + Math.floor((patch % data.grid) * scale);
  }
  const value = map.values[patch];
  if (state.method === "removal") return `${data.classes[state.target]} ${points(-value)}`;
  if (state.method === "evidence") return `${contribution(value)} of the score of ${targetName()}`;
  const maximum = Math.max(...map.values);
  return maximum > 0 ? `${Math.round((100 * value) / maximum)} % of the maximum` : "0";
}

function mainTitle(map) {
  const { name, classes } = METHODS[state.method];
  if (state.method === "attention") return `Attention from ${tokenName(state.token)}`;
  const isEmpty = !map.values.some((value) => value > 0 || (state.method === "evidence" && value < 0));
  const nothing = state.method === "removal" ? "no single removal lowers it" : "all values are 0";
  if (state.method === "evidence" && !isEmpty) return `${name}: for (red) and against (blue) ${targetName()}`;
  return `${name}${classes ? ` for ${targetName()}` : ""}${isEmpty ? `: ${nothing}` : ""}`;
}

/** A description of the boards. */
function readout(map, to) {
  const patch = selectedPatch();
  const sentences = [];
  if (state.method === "attention") {
    const strongest = ({ values }) => Array.from(values.keys()).sort((a, b) => values[b] - values[a]).slice(0, 3)
      .map((patch) => `${patchName(patch)} (${percent(values[patch])})`).join("; ");
    sentences.push(`${capital(tokenName(state.token))} attends most to ${strongest(map)}.`);
    if (map.classToken !== null) sentences.push(`Attention to the class token: ${percent(map.classToken)}.`);
    if (to) sentences.push(`It receives most attention from ${strongest(to)}.`);
  } else if (patch === null) {
    if (state.method === "evidence") {
      const sum = map.values.reduce((total, value) => total + value, 0);
      const score = contribution(images[state.image].scores[state.target]).replace("+", "");
      const reference = referenceScores
        ? `; the score of an image in the mean color is ${contribution(referenceScores[state.target]).replace("+", "")}`
        : "";
      sentences.push(`All patches together: ${contribution(sum)}. The score of ${targetName()} is ${score}${reference}.`);
    }
    sentences.push("Select a patch to read its value.");
  } else {
    sentences.push(`${capital(patchName(patch))}: ${valueName(map, patch)}.`);
  }
  const only = onlyRemoved();
  if (only !== null) {
    const { probabilities, explained } = images[state.image];
    const before = explained[0], without = withoutPatch(only), after = without.indexOf(Math.max(...without));
    const then = after === before ? "" : `; the prediction becomes ${data.classes[after]}, ${percent(without[after])}`;
    const effect = `${percent(probabilities[before])} → ${percent(without[before])}`;
    sentences.push(`Without ${patchName(only)}: ${data.classes[before]} ${effect}${then}.`);
  } else if (state.removed.size) {
    sentences.push(`${state.removed.size} patches are removed. Their joint effect was not measured.`);
  }
  return sentences.join(" ");
}

/** The removed patch if there is exactly one, otherwise null. */
function onlyRemoved() {
  return state.removed.size === 1 ? [...state.removed][0] : null;
}

/** The measured class probabilities without one patch. */
function withoutPatch(patch) {
  const count = data.classes.length;
  return images[state.image].removal.subarray(patch * count, (patch + 1) * count);
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

// Pictures

/** The image as a canvas with one canvas pixel per image pixel, in color or gray. */
function picture(pixels, isGray = false) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = data.imageSize;
  const content = new ImageData(data.imageSize, data.imageSize);
  for (let pixel = 0; pixel < data.imageSize ** 2; pixel += 1) {
    const color = pixels.subarray(3 * pixel, 3 * pixel + 3);
    const mean = (color[0] + color[1] + color[2]) / 3;
    content.data.set(isGray ? [mean, mean, mean, 255] : [...color, 255], 4 * pixel);
  }
  canvas.getContext("2d").putImageData(content, 0, 0);
  return canvas;
}

/**
 * The opacity of a signed value. Colors near 0 are white and would hide the image, so these values are more transparent
 * than large ones. At 100 %, all values are opaque.
 */
function signedOpacity(value, maximum, opacity) {
  const fraction = maximum > 0 ? Math.abs(value) / maximum : 0;
  return opacity ** (0.5 + 3 * (1 - Math.sqrt(fraction)));
}

/** The color of a value. Colors follow the square root, as in the GIFs, or are linear if values can be negative. */
function color(value, maximum, isSigned) {
  const fraction = maximum > 0 ? Math.min(1, Math.max(isSigned ? -1 : 0, value / maximum)) : 0;
  return isSigned ? differences[Math.round(127.5 + 127.5 * fraction)] : colors[Math.round(255 * Math.sqrt(fraction))];
}

const overlay = document.createElement("canvas");

function paintMap(canvas, map, maximum, isSigned = false, opacity = 1) {
  if (canvas.width !== map.side) canvas.width = canvas.height = map.side;
  const content = new ImageData(map.side, map.side), cells = new Uint32Array(content.data.buffer);
  map.values.forEach((value, cell) => {
    const alpha = isSigned ? signedOpacity(value, maximum, opacity) : opacity;
    cells[cell] = (color(value, maximum, isSigned) & 0xffffff) | (Math.round(255 * alpha) << 24);
  });
  canvas.getContext("2d").putImageData(content, 0, 0);
}

function drawBoard(canvas, map, maximum, isSigned = false) {
  const size = Math.max(480, data.imageSize);
  if (canvas.width !== size) canvas.width = canvas.height = size;
  const image = images[state.image];
  image.gray ??= picture(image.pixels, true);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  const opacity = state.strength / 100;
  paintMap(overlay, map, maximum, isSigned, opacity);
  for (const [layer, alpha] of [[image.picture, 1], [image.gray, Math.min(1, 2 * opacity)], [overlay, 1]]) {
    context.globalAlpha = alpha;
    context.drawImage(layer, 0, 0, size, size);
  }
  context.globalAlpha = 1;
  const cell = size / data.grid;
  context.strokeStyle = "rgb(255 255 255 / 25%)";
  context.lineWidth = 1;
  context.beginPath();
  for (let line = 1; line < data.grid; line += 1) {
    context.moveTo(line * cell, 0); context.lineTo(line * cell, size);
    context.moveTo(0, line * cell); context.lineTo(size, line * cell);
  }
  context.stroke();
  for (const patch of state.removed) drawRemoved(context, patch, cell);
  if (selectedPatch() !== null) outline(context, selectedPatch(), cell);
}

function drawScale(canvas, isSigned) {
  canvas.width = 256;
  canvas.height = 1;
  const content = new ImageData(256, 1), cells = new Uint32Array(content.data.buffer);
  for (let step = 0; step < 256; step += 1) cells[step] = isSigned ? differences[step] : color(step / 255, 1);
  canvas.getContext("2d").putImageData(content, 0, 0);
}

function drawRemoved(context, patch, cell) {
  const x = (patch % data.grid) * cell, y = Math.floor(patch / data.grid) * cell;
  context.fillStyle = "rgb(120 120 120)";
  context.fillRect(x, y, cell, cell);
  context.strokeStyle = "rgb(255 255 255)";
  context.lineWidth = 2;
  context.beginPath();
  context.moveTo(x + cell * 0.25, y + cell * 0.25); context.lineTo(x + cell * 0.75, y + cell * 0.75);
  context.moveTo(x + cell * 0.75, y + cell * 0.25); context.lineTo(x + cell * 0.25, y + cell * 0.75);
  context.stroke();
}

function outline(context, patch, cell) {
  const x = (patch % data.grid) * cell, y = Math.floor(patch / data.grid) * cell;
  for (const [style, width] of [["rgb(0 0 0)", 6], ["rgb(255 255 255)", 3]]) {
    context.strokeStyle = style;
    context.lineWidth = width;
    context.strokeRect(x + 2, y + 2, cell - 4, cell - 4);
  }
}

// The page

function button(parent, text, action) {
  const element = document.createElement("button");
  element.type = "button";
  element.textContent = text;
  element.addEventListener("click", action);
  parent.append(element);
  return element;
}

/** Build the parts of the page that do not depend on the state. */
function build() {
  for (const [index, image] of images.entries()) {
    const initial = { image: index, token: defaultToken, target: image.explained[0] };
    const choice = button(byId("images"), "", () => choose({ ...initial, removed: new Set() }));
    const small = picture(image.pixels);
    small.setAttribute("aria-hidden", "true");
    choice.append(small, image.name);
  }
  byId("images").hidden = images.length < 2;

  for (const [key, method] of Object.entries(METHODS)) {
    if (method.vit && !data.isVit) continue;
    const choice = button(byId("methods"), method.name, () => choose({ method: key }));
    choice.setAttribute("role", "radio");
    choice.dataset.method = key;
  }
  byId("methods").addEventListener("keydown", moveAmong);

  buildPatches();
  if (data.isVit) {
    const names = [...(data.hasClassToken ? [CLASS_TOKEN] : []), ...(data.pool === "avg" ? [ALL_PATCHES] : [])];
    for (const token of names) {
      const choice = button(byId("tokens"), "", () => change({ token }));
      choice.dataset.token = token;
    }
    buildOverview();
  }
  byId("overview").hidden = !data.isVit;

  byId("layer").max = Math.max(1, data.layers);
  byId("head").max = FIRST_HEAD + data.heads - 1;
  byId("layer").addEventListener("input", () => change({ layer: Number(byId("layer").value) }));
  byId("head").addEventListener("input", () => change({ head: Number(byId("head").value) }));
  byId("strength").addEventListener("input", () => change({ strength: Number(byId("strength").value) }));
  byId("play").addEventListener("click", () => (state.timer ? stop() : play()));
  byId("restore").addEventListener("click", () => {
    change({ removed: new Set() });
    cells[selectedPatch() ?? 0].focus();
  });
  byId("export").addEventListener("click", save);
  byId("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme !== "dark"));
  document.addEventListener("keydown", shortcut);

  drawScale(byId("other-scale"), false);
}

const cells = []; // one button per patch

function buildPatches() {
  const board = byId("patches");
  board.style.gridTemplate = `repeat(${data.grid}, 1fr) / repeat(${data.grid}, 1fr)`;
  let touched = null, row;
  for (let patch = 0; patch < patches; patch += 1) {
    if (patch % data.grid === 0) {
      row = document.createElement("div");
      row.setAttribute("role", "row");
      board.append(row);
    }
    const cell = button(row, "", () => {
      const isFirstTap = touched === patch; // a finger cannot hover, so its first tap only selects
      touched = null;
      if (!isFirstTap) toggle(patch);
    });
    cells.push(cell);
    cell.setAttribute("role", "gridcell");
    cell.dataset.patch = patch;
    cell.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && change({ token: patch }));
    cell.addEventListener("pointerdown", (event) => {
      touched = event.pointerType !== "mouse" && state.token !== patch ? patch : null;
      if (touched !== null) change({ token: patch });
    });
    cell.addEventListener("pointercancel", () => { touched = null; });
    cell.addEventListener("focus", () => cell.matches(":focus-visible") && change({ token: patch }));
  }
  board.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -data.grid, ArrowDown: data.grid }[event.key];
    if (!step) return;
    event.preventDefault();
    const patch = cells.indexOf(document.activeElement);
    const isAtSide = Math.abs(step) === 1 && Math.floor((patch + step) / data.grid) !== Math.floor(patch / data.grid);
    if (!isAtSide && patch + step >= 0 && patch + step < patches) cells[patch + step].focus();
  });
}

/** Build the thumbnails, with one column per layer and one row per head. */
function buildOverview() {
  const table = byId("thumbnails");
  table.style.gridTemplateColumns = `max-content repeat(${data.layers}, minmax(0, 5rem))`;
  const label = (text) => {
    const element = document.createElement("span");
    element.textContent = text;
    table.append(element);
  };
  label("");
  for (let layer = 1; layer <= data.layers; layer += 1) label(layer);
  for (let head = 0; head < data.heads; head += 1) {
    label(head + 1);
    for (let layer = 1; layer <= data.layers; layer += 1) {
      const choice = button(table, "", () => choose({ method: "attention", layer, head: head + FIRST_HEAD }));
      choice.setAttribute("aria-label", `layer ${layer}, head ${head + 1}`);
      choice.dataset.layer = layer;
      choice.dataset.head = head + FIRST_HEAD;
      choice.append(document.createElement("canvas"));
    }
  }
}

/** Move between radio buttons with the arrow keys. */
function moveAmong(event) {
  const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const choices = [...event.currentTarget.children];
  const next = choices[(choices.indexOf(document.activeElement) + step + choices.length) % choices.length];
  next.click();
  next.focus();
}

function shortcut(event) {
  const isTyped = event.getModifierState("AltGraph") || !(event.ctrlKey || event.metaKey);
  if (!isTyped) return;
  const clamp = (value, minimum, maximum) => Math.min(maximum, Math.max(minimum, value));
  const step = { "[": [-1, 0], "]": [1, 0], ",": [0, -1], ".": [0, 1] }[event.key];
  if (event.key === "Escape") change({ token: defaultToken });
  if (step && data.isVit) {
    const layer = clamp(state.layer + step[0], 1, data.layers);
    change({ layer, head: clamp(state.head + step[1], 0, data.heads + 1) });
  }
}

/** Change the state and stop playing. */
function choose(changes) {
  if (state.timer) stop();
  change(changes);
}

function toggle(patch) {
  const removed = new Set(state.removed);
  if (!removed.delete(patch)) removed.add(patch);
  change({ removed, token: patch });
}

function play() {
  if (state.layer === data.layers) change({ layer: 1 });
  state.timer = setInterval(() => {
    if (state.layer < data.layers) change({ layer: state.layer + 1 });
    if (state.layer === data.layers) stop();
  }, 700);
  show();
}

function stop() {
  clearInterval(state.timer);
  change({ timer: null });
}

function setTheme(isDark) {
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  byId("theme").setAttribute("aria-pressed", isDark);
}

function change(changes) {
  Object.assign(state, changes);
  show();
}

let isScheduled = false;

/** Schedule one drawing before the next frame, however often the state changes until then. */
function show() {
  if (isScheduled) return;
  isScheduled = true;
  requestAnimationFrame(() => {
    isScheduled = false;
    draw();
  });
}

function draw() {
  const image = images[state.image], method = METHODS[state.method];
  const predicted = image.explained[0];
  const confidence = percent(image.probabilities[predicted]);
  byId("title").textContent = `${image.name}: predicted ${data.classes[predicted]}, ${confidence}`;
  const small = byId("image");
  small.width = small.height = data.imageSize;
  small.getContext("2d").drawImage(image.picture, 0, 0);
  small.setAttribute("aria-label", `${image.name}, as the network sees it`);
  byId("subtitle").textContent = [image.label, data.network].filter(Boolean).join(" · ");
  [...byId("images").children].forEach((choice, index) => choice.setAttribute("aria-pressed", index === state.image));
  for (const choice of byId("methods").children) {
    const isSelected = choice.dataset.method === state.method;
    choice.setAttribute("aria-checked", isSelected);
    choice.tabIndex = isSelected ? 0 : -1;
  }
  byId("meaning").textContent = method.meaning;
  byId("layer-part").hidden = !method.layers;
  byId("play").hidden = !method.layers || data.layers < 2;
  byId("head-part").hidden = !method.heads;
  const sliders = {
    layer: `${state.layer} of ${data.layers}`, head: headName(), strength: `${state.strength} %`,
  };
  for (const [name, text] of Object.entries(sliders)) {
    byId(name).value = state[name];
    byId(name).setAttribute("aria-valuetext", text);
    byId(`${name}-name`).textContent = text;
  }
  byId("play").textContent = state.timer ? "Pause" : "Play the layers";
  drawMaps(method);
  drawClasses(image);
  if (data.isVit) drawOverview();
}

function drawMaps(method) {
  const map = mainMap(), isAttention = state.method === "attention", isSigned = Boolean(method.signed);
  const to = isAttention && state.token !== ALL_PATCHES ? attentionOf(state.token, false) : null;
  const largest = (values) => values.reduce((max, value) => Math.max(max, isSigned ? Math.abs(value) : value), 0);
  const maximum = largest(map.values);
  byId("main").parentElement.classList.toggle("single", !to);
  byId("other").hidden = !to;
  byId("main-title").textContent = mainTitle(map);
  drawBoard(byId("main-canvas"), map, maximum, isSigned);
  drawScale(byId("main-scale"), isSigned);
  const ends = {
    attention: ["0", percent(maximum)],
    evidence: [`against: ${contribution(-maximum)}`, `for: ${contribution(maximum)}`],
    removal: [`without it: ${points(maximum)}`, `without it: ${points(-maximum)}`],
  };
  [byId("main-least").textContent, byId("main-most").textContent] = ends[state.method] ?? ["0", "maximum"];
  if (to) {
    byId("other-title").textContent = `Attention to ${tokenName(state.token)}`;
    drawBoard(byId("other-canvas"), to, largest(to.values));
    byId("other-most").textContent = percent(largest(to.values));
    byId("other-token").textContent = to.classToken === null ? "" : `class token: ${percent(to.classToken)}`;
  }
  byId("tokens").hidden = !isAttention;
  for (const choice of byId("tokens").children) {
    choice.setAttribute("aria-pressed", choice.dataset.token === state.token);
    const isClassToken = choice.dataset.token === CLASS_TOKEN;
    choice.textContent = isClassToken ? `class token: ${percent(map.classToken ?? 0)}` : "the average patch";
  }
  byId("readout").textContent = readout(map, to);
  const tabbable = selectedPatch() ?? 0;
  cells.forEach((cell, patch) => {
    cell.tabIndex = patch === tabbable ? 0 : -1;
    cell.setAttribute("aria-label", `${patchName(patch)}${state.removed.has(patch) ? ", removed" : ""}`);
  });
}

/** Draw the class probabilities of the whole image or, if exactly one patch is removed, of the image without it. */
function drawClasses(image) {
  const list = byId("classes"), only = onlyRemoved(), isMeasured = only !== null;
  const shown = isMeasured ? withoutPatch(only) : image.probabilities;
  if (list.children.length !== image.explained.length) {
    list.replaceChildren();
    image.explained.forEach(() => {
      const choice = button(list, "", () => {
        const isSameForAll = !METHODS[state.method].classes; // then show one that is not
        choose({ target: Number(choice.dataset.class), method: isSameForAll ? "evidence" : state.method });
      });
      for (const className of ["bar", "before", "", ""]) {
        choice.append(Object.assign(document.createElement("span"), { className }));
      }
    });
  }
  let rest = 1;
  image.explained.forEach((index, row) => {
    const choice = list.children[row];
    const [bar, before, name, value] = choice.children;
    choice.dataset.class = index;
    choice.setAttribute("aria-pressed", index === state.target);
    bar.style.width = `${100 * shown[index]}%`;
    before.hidden = !isMeasured;
    before.style.left = `min(${100 * image.probabilities[index]}%, 100% - 2px)`;
    name.textContent = data.classes[index];
    value.textContent = (isMeasured ? `${percent(image.probabilities[index])} → ` : "") + percent(shown[index]);
    rest -= shown[index];
  });
  const others = data.classes.length - image.explained.length;
  byId("rest").hidden = others === 0;
  byId("rest").textContent = `These are the ${image.explained.length} most probable of ${data.classes.length} classes. `
    + `The others add up to ${percent(Math.max(0, rest))}.`;
  byId("answers-title").textContent = isMeasured ? `Probabilities without ${patchName(only)}` : "Class probabilities";
  byId("restore").hidden = state.removed.size === 0;
  byId("removal-note").textContent = {
    0: "Select a class to explain it. Click a patch to remove it.",
    1: "Measured with this patch replaced by the mean color of the data set.",
  }[state.removed.size] ?? `Only single removals were measured. The effect of removing these ${state.removed.size} `
    + "patches together is unknown, so the bars show the whole image.";
}

function drawOverview() {
  byId("overview-note").textContent = `Attention from ${tokenName(state.token)}: one column per layer, `
    + "one row per head. Each map is scaled to its own maximum.";
  for (const choice of byId("thumbnails").querySelectorAll("button")) {
    const layer = Number(choice.dataset.layer), head = Number(choice.dataset.head);
    const map = attentionOf(state.token, true, layer, head);
    paintMap(choice.firstChild, map, Math.max(...map.values));
    choice.setAttribute("aria-pressed", state.method === "attention" && layer === state.layer && head === state.head);
  }
}

/** Save the boards, with their captions and scales, and the class probabilities as a PNG file. */
function save() {
  const shown = ["main", "other"].slice(0, byId("other").hidden ? 1 : 2);
  const size = byId("main-canvas").width, margin = 24, line = 26, side = 260;
  const canvas = document.createElement("canvas");
  canvas.width = shown.length * (size + margin) + side + 2 * margin;
  canvas.height = size + 8.5 * line;
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const write = (text, x, y, width, font = "15px sans-serif") => {
    context.font = font;
    let fitting = text;
    while (fitting.length > 1 && context.measureText(fitting).width > width) fitting = `${fitting.slice(0, -2)}…`;
    context.fillText(fitting, x, y);
  };
  context.fillStyle = style.getPropertyValue("--panel");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = style.getPropertyValue("--ink");
  const method = METHODS[state.method], whole = canvas.width - 2 * margin, top = 3.8 * line;
  const layer = method.layers && `layer ${state.layer} of ${data.layers}`;
  const parts = [method.name, layer, method.heads && `head ${headName()}`];
  write(byId("title").textContent, margin, line + 4, whole, "bold 20px sans-serif");
  write(`${parts.filter(Boolean).join(", ")} · ${byId("subtitle").textContent}`, margin, 2 * line + 4, whole);
  context.imageSmoothingEnabled = false;
  shown.forEach((name, index) => {
    const x = margin + index * (size + margin), below = top + size + 8;
    write(byId(`${name}-title`).textContent, x, top - 8, size);
    context.drawImage(byId(`${name}-canvas`), x, top);
    context.drawImage(byId(`${name}-scale`), x, below, size, 10);
    context.textAlign = "right";
    write(byId(`${name}-most`).textContent, x + size, below + line + 4, size / 2, "13px sans-serif");
    context.textAlign = "left";
    write(name === "main" ? byId("main-least").textContent : "0", x, below + line + 4, size / 2, "13px sans-serif");
  });
  [...byId("classes").children].forEach((choice, row) => {
    const [, , name, value] = choice.children, x = margin + shown.length * (size + margin), y = top + 14 + row * line;
    write(name.textContent, x, y, side * 0.45);
    write(value.textContent, x + side * 0.5, y, side * 0.5);
  });
  write(byId("readout").textContent, margin, canvas.height - line, whole, "14px sans-serif");
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${images[state.image].name.replace(/[^\w.-]+/g, "-").slice(0, 60)}-${state.method}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

setTheme(matchMedia("(prefers-color-scheme: dark)").matches);
build();
draw();
byId("page").hidden = false;

// For the console and the tests.
window.explorer = { state, change, mainMap, attentionOf };
