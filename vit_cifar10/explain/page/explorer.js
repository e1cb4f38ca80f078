"use strict";

// What Python has measured, and what the reader has chosen; everything on the page is drawn from these two.

const data = JSON.parse(document.getElementById("data").textContent);
const by = (id) => document.getElementById(id);

const MEAN = 0, MAX = 1, FIRST_HEAD = 2; // places of the head slider
const CLASS_TOKEN = "class", ALL_PATCHES = "all"; // what can be chosen beside a patch, which is its number
const home = data.isVit && data.pool === "token" ? CLASS_TOKEN : ALL_PATCHES; // what the network decides from
const patches = data.grid * data.grid;
const prefix = data.hasClassToken ? 1 : 0;
const tokens = patches + prefix;
const colors = palette(data.colors);
const differences = palette(data.differences);

const output = data.pool === "avg" ? "the mean of the patches" : "the class token"; // what the head reads

const METHODS = {
  attention: {
    name: "Attention", vit: true, layers: true, heads: true,
    meaning: "How much the chosen token takes from every patch in one layer, and how much every patch takes from it: in "
      + "one head, or as the mean or the largest of all heads. It shows where a layer looks, not what decides.",
  },
  rollout: {
    name: "Rollout", vit: true, layers: true,
    meaning: "The attention of all layers up to this one, multiplied, with what is passed on unchanged counted half: "
      + `what has reached ${output} after this layer. It is the same for every class.`,
  },
  gradientRollout: {
    name: "Gradient rollout", vit: true, layers: true, classes: true,
    meaning: "The attention of all layers up to this one, added up where more of it would raise the chosen class's "
      + "score: what speaks for that class, up to this layer.",
  },
  gradCam: {
    name: "Grad-CAM", classes: true,
    meaning: `${data.isVit ? "What the last block reads" : "What the last convolution gives"}, each channel weighted by how `
      + "much it raises the chosen class's score.",
  },
  removal: {
    name: "Removal", classes: true,
    meaning: "Measured, not inferred: each patch alone was replaced by the data set's mean colour and the network asked "
      + "again. Red patches lower the chosen class's probability when they go, blue ones raise it.",
  },
};

const images = data.images.map((image) => ({
  ...image,
  pixels: bytes(image.pixels),
  probabilities: floats(image.probabilities),
  removal: floats(image.removal),
  gradCam: grids(image.gradCam),
  attention: image.attention && new Uint16Array(bytes(image.attention).buffer),
  rollout: image.rollout && grids(image.rollout),
  gradientRollout: image.gradientRollout && grids(image.gradientRollout),
  picture: picture(bytes(image.pixels)),
}));

const state = {
  image: 0,
  method: data.isVit ? "attention" : "gradCam",
  layer: data.layers, // from 1
  head: MEAN,
  strength: 60,
  token: home,
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

/** 256 colours as ImageData holds them, on all machines of today. */
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

/** The chosen token if it is a patch, or null. */
function chosenPatch() {
  return typeof state.token === "number" ? state.token : null;
}

/** A token's place in the attention matrices. */
function place(token) {
  return token === CLASS_TOKEN ? 0 : token + prefix;
}

/** A layer's attention from one token to another, over the heads as the slider says, or in one head. */
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

/** The attention that the chosen token pays to every token, or gets from it: {patches, classToken}. */
function attentionOf(token, isFrom, layer = state.layer, head = state.head) {
  const pair = (other) => {
    if (token !== ALL_PATCHES) {
      return isFrom ? attention(layer, head, place(token), other) : attention(layer, head, other, place(token));
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

/** The part of a stack of maps that belongs to one class and layer. */
function slice(maps, index) {
  const size = maps.side * maps.side;
  return { side: maps.side, values: maps.values.subarray(index * size, (index + 1) * size) };
}

/** How much of the chosen class's probability is lost with each patch; less than 0 where it rises. */
function losses() {
  const { removal, probabilities } = images[state.image];
  const count = data.classes.length;
  const lost = (_, patch) => probabilities[state.target] - removal[patch * count + state.target];
  return { side: data.grid, values: Float32Array.from({ length: patches }, lost) };
}

/** What the main board shows: {side, values}. */
function mainMap() {
  const image = images[state.image];
  const explained = image.explained.indexOf(state.target);
  switch (state.method) {
    case "attention": return attentionOf(state.token, true);
    case "rollout": return slice(image.rollout, state.layer - 1);
    case "gradientRollout": return slice(image.gradientRollout, explained * data.layers + state.layer - 1);
    case "gradCam": return slice(image.gradCam, explained);
    default: return losses();
  }
}

// Words

const percent = (share) => `${(100 * share).toFixed(Math.abs(share) < 0.0995 ? 2 : 1)} %`;

/** A change of a probability, which is not a percentage of it. */
function points(change) {
  const size = Math.abs(100 * change).toFixed(2);
  const sign = size === "0.00" ? "" : change > 0 ? "+" : "−";
  return `${sign}${size} points`;
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

/** The value of a patch in a map of any method but attention. */
function valueName(map, patch) {
  if (map.side !== data.grid) { // Grad-CAM of a CNN has cells of its own
    const scale = map.side / data.grid;
    patch = Math.floor(Math.floor(patch / data.grid) * scale) * map.side + Math.floor((patch % data.grid) * scale);
  }
  const value = map.values[patch];
  if (state.method === "removal") return `${data.classes[state.target]} ${points(-value)}`;
  const most = Math.max(...map.values);
  return most > 0 ? `${Math.round((100 * value) / most)} % of the largest` : "nothing";
}

/** What the boards show, in words. */
function readout(map, to) {
  const where = chosenPatch();
  const sentences = [];
  if (state.method === "attention") {
    const strongest = (some) => Array.from(some.values.keys()).sort((a, b) => some.values[b] - some.values[a]).slice(0, 3)
      .map((patch) => `${patchName(patch)} (${percent(some.values[patch])})`).join("; ");
    sentences.push(`${capital(tokenName(state.token))} takes most from ${strongest(map)}.`);
    if (map.classToken !== null) sentences.push(`From the class token: ${percent(map.classToken)}.`);
    if (to) sentences.push(`Most is taken from it by ${strongest(to)}.`);
  } else {
    sentences.push(where === null ? "Choose a patch to read its value." : `${capital(patchName(where))}: ${valueName(map, where)}.`);
  }
  const only = onlyRemoved();
  if (only !== null) {
    const { probabilities, explained } = images[state.image];
    const before = explained[0], without = withoutPatch(only), after = without.indexOf(Math.max(...without));
    const then = after === before ? "" : `; ${data.classes[after]} becomes likeliest, ${percent(without[after])}`;
    sentences.push(`Without ${patchName(only)}: ${data.classes[before]} ${percent(probabilities[before])} → ${percent(without[before])}${then}.`);
  } else if (state.removed.size) {
    sentences.push(`${state.removed.size} patches removed: what they do together was not measured.`);
  }
  return sentences.join(" ");
}

/** The one patch that is removed, or null. */
function onlyRemoved() {
  return state.removed.size === 1 ? [...state.removed][0] : null;
}

/** The measured probabilities without one patch. */
function withoutPatch(patch) {
  const count = data.classes.length;
  return images[state.image].removal.subarray(patch * count, (patch + 1) * count);
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

// Pictures

/** The image as a canvas of its own pixels, in colour or grey. */
function picture(pixels, isGrey = false) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = data.imageSize;
  const content = new ImageData(data.imageSize, data.imageSize);
  for (let pixel = 0; pixel < data.imageSize ** 2; pixel += 1) {
    const color = pixels.subarray(3 * pixel, 3 * pixel + 3);
    const mean = (color[0] + color[1] + color[2]) / 3;
    content.data.set(isGrey ? [mean, mean, mean, 255] : [...color, 255], 4 * pixel);
  }
  canvas.getContext("2d").putImageData(content, 0, 0);
  return canvas;
}

/** A value as a colour; small ones are lifted by a square root, as in the GIFs. Those of removals have a sign. */
function color(value, most, isSigned) {
  const share = most > 0 ? Math.min(1, Math.max(isSigned ? -1 : 0, value / most)) : 0;
  return isSigned ? differences[Math.round(127.5 + 127.5 * share)] : colors[Math.round(255 * Math.sqrt(share))];
}

const overlay = document.createElement("canvas");

function paintMap(canvas, map, most, isSigned = false) {
  if (canvas.width !== map.side) canvas.width = canvas.height = map.side;
  const content = new ImageData(map.side, map.side), cells = new Uint32Array(content.data.buffer);
  map.values.forEach((value, cell) => { cells[cell] = color(value, most, isSigned); });
  canvas.getContext("2d").putImageData(content, 0, 0);
}

function drawBoard(canvas, map, most, isSigned = false) {
  const size = Math.max(480, data.imageSize);
  if (canvas.width !== size) canvas.width = canvas.height = size;
  const image = images[state.image];
  image.grey ??= picture(image.pixels, true);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  const opacity = state.strength / 100;
  paintMap(overlay, map, most, isSigned);
  for (const [layer, alpha] of [[image.picture, 1], [image.grey, Math.min(1, 2 * opacity)], [overlay, opacity]]) {
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
  if (chosenPatch() !== null) outline(context, chosenPatch(), cell);
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

/** Build what does not change with the state. */
function build() {
  for (const [index, image] of images.entries()) {
    const choice = button(by("images"), "", () => choose({ image: index, token: home, target: image.explained[0], removed: new Set() }));
    const small = picture(image.pixels);
    small.setAttribute("aria-hidden", "true");
    choice.append(small, image.name);
  }
  by("images").hidden = images.length < 2;

  for (const [key, method] of Object.entries(METHODS)) {
    if (method.vit && !data.isVit) continue;
    const choice = button(by("methods"), method.name, () => choose({ method: key }));
    choice.setAttribute("role", "radio");
    choice.dataset.method = key;
  }
  by("methods").addEventListener("keydown", moveAmong);

  buildPatches();
  if (data.isVit) {
    const names = [...(data.hasClassToken ? [CLASS_TOKEN] : []), ...(data.pool === "avg" ? [ALL_PATCHES] : [])];
    for (const token of names) {
      const choice = button(by("tokens"), "", () => change({ token }));
      choice.dataset.token = token;
    }
    buildOverview();
  }
  by("overview").hidden = !data.isVit;

  by("layer").max = Math.max(1, data.layers);
  by("head").max = FIRST_HEAD + data.heads - 1;
  by("layer").addEventListener("input", () => change({ layer: Number(by("layer").value) }));
  by("head").addEventListener("input", () => change({ head: Number(by("head").value) }));
  by("strength").addEventListener("input", () => change({ strength: Number(by("strength").value) }));
  by("play").addEventListener("click", () => (state.timer ? stop() : play()));
  by("restore").addEventListener("click", () => {
    change({ removed: new Set() });
    cells[chosenPatch() ?? 0].focus();
  });
  by("export").addEventListener("click", save);
  by("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme !== "dark"));
  document.addEventListener("keydown", shortcut);

  drawScale(by("other-scale"), false);
}

const cells = []; // the patches' buttons

function buildPatches() {
  const board = by("patches");
  board.style.gridTemplate = `repeat(${data.grid}, 1fr) / repeat(${data.grid}, 1fr)`;
  let touched = null, row;
  for (let patch = 0; patch < patches; patch += 1) {
    if (patch % data.grid === 0) {
      row = document.createElement("div");
      row.setAttribute("role", "row");
      board.append(row);
    }
    const cell = button(row, "", () => {
      const isFirstTap = touched === patch; // a finger cannot hover: its first tap only chooses
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

/** Thumbnails, a column a layer and a row a head. */
function buildOverview() {
  const table = by("thumbnails");
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

/** The arrow keys among radio buttons. */
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
  const within = (value, least, most) => Math.min(most, Math.max(least, value));
  const step = { "[": [-1, 0], "]": [1, 0], ",": [0, -1], ".": [0, 1] }[event.key];
  if (event.key === "Escape") change({ token: home });
  if (step && data.isVit) {
    change({ layer: within(state.layer + step[0], 1, data.layers), head: within(state.head + step[1], 0, data.heads + 1) });
  }
}

/** A change that Play should not run on through. */
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
  by("theme").setAttribute("aria-pressed", isDark);
}

function change(changes) {
  Object.assign(state, changes);
  show();
}

let isDue = false;

/** Draw once before the next frame, however often the state changes until then. */
function show() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    draw();
  });
}

function draw() {
  const image = images[state.image], method = METHODS[state.method];
  const likeliest = image.explained[0];
  by("title").textContent = `${image.name}: predicted ${data.classes[likeliest]}, ${percent(image.probabilities[likeliest])}`;
  const small = by("image");
  small.width = small.height = data.imageSize;
  small.getContext("2d").drawImage(image.picture, 0, 0);
  small.setAttribute("aria-label", `${image.name}, as the network sees it`);
  by("subtitle").textContent = [image.label, data.network].filter(Boolean).join(" · ");
  [...by("images").children].forEach((choice, index) => choice.setAttribute("aria-pressed", index === state.image));
  for (const choice of by("methods").children) {
    const isChosen = choice.dataset.method === state.method;
    choice.setAttribute("aria-checked", isChosen);
    choice.tabIndex = isChosen ? 0 : -1;
  }
  by("meaning").textContent = method.meaning;
  by("layer-part").hidden = !method.layers;
  by("play").hidden = !method.layers || data.layers < 2;
  by("head-part").hidden = !method.heads;
  const sliders = {
    layer: `${state.layer} of ${data.layers}`, head: headName(), strength: `${state.strength} %`,
  };
  for (const [name, text] of Object.entries(sliders)) {
    by(name).value = state[name];
    by(name).setAttribute("aria-valuetext", text);
    by(`${name}-name`).textContent = text;
  }
  by("play").textContent = state.timer ? "Pause" : "Play the layers";
  drawMaps(method);
  drawClasses(image);
  if (data.isVit) drawOverview();
}

function drawMaps(method) {
  const map = mainMap(), isAttention = state.method === "attention", isSigned = state.method === "removal";
  const to = isAttention && state.token !== ALL_PATCHES ? attentionOf(state.token, false) : null;
  const largest = (values) => values.reduce((most, value) => Math.max(most, isSigned ? Math.abs(value) : value), 0);
  const most = largest(map.values);
  by("main").parentElement.classList.toggle("single", !to);
  by("other").hidden = !to;
  const isEmpty = !map.values.some((value) => value > 0);
  const nothing = { gradientRollout: "nothing speaks for it", gradCam: "nothing speaks for it", removal: "no single removal lowers it" };
  by("main-title").textContent = isAttention
    ? `Attention from ${tokenName(state.token)}`
    : `${method.name}${method.classes ? ` for “${data.classes[state.target]}”` : ""}${isEmpty ? `: ${nothing[state.method]}` : ""}`;
  drawBoard(by("main-canvas"), map, most, isSigned);
  drawScale(by("main-scale"), isSigned);
  by("main-least").textContent = isSigned ? points(most) : "0";
  by("main-most").textContent = { attention: percent(most), removal: points(-most) }[state.method] ?? "largest";
  if (to) {
    by("other-title").textContent = `Attention to ${tokenName(state.token)}`;
    drawBoard(by("other-canvas"), to, largest(to.values));
    by("other-most").textContent = percent(largest(to.values));
    by("other-token").textContent = to.classToken === null ? "" : `class token: ${percent(to.classToken)}`;
  }
  by("tokens").hidden = !isAttention;
  for (const choice of by("tokens").children) {
    choice.setAttribute("aria-pressed", choice.dataset.token === state.token);
    choice.textContent = choice.dataset.token === CLASS_TOKEN ? `class token: ${percent(map.classToken ?? 0)}` : "the average patch";
  }
  by("readout").textContent = readout(map, to);
  const tabbable = chosenPatch() ?? 0;
  cells.forEach((cell, patch) => {
    cell.tabIndex = patch === tabbable ? 0 : -1;
    cell.setAttribute("aria-label", `${patchName(patch)}${state.removed.has(patch) ? ", removed" : ""}`);
  });
}

/** Probability bars, of the image as it is or without the one patch that is removed. */
function drawClasses(image) {
  const list = by("classes"), only = onlyRemoved(), isMeasured = only !== null;
  const shown = isMeasured ? withoutPatch(only) : image.probabilities;
  if (list.children.length !== image.explained.length) {
    list.replaceChildren();
    image.explained.forEach(() => {
      const choice = button(list, "", () => {
        const method = data.isVit && !METHODS[state.method].classes ? "gradientRollout" : state.method; // one that tells classes apart
        choose({ target: Number(choice.dataset.class), method });
      });
      for (const name of ["bar", "before", "", ""]) choice.append(Object.assign(document.createElement("span"), { className: name }));
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
    value.textContent = isMeasured ? `${percent(image.probabilities[index])} → ${percent(shown[index])}` : percent(shown[index]);
    rest -= shown[index];
  });
  const others = data.classes.length - image.explained.length;
  by("rest").hidden = others === 0;
  by("rest").textContent = `These are the ${image.explained.length} likeliest of ${data.classes.length}; the other ${others} together: ${percent(Math.max(0, rest))}.`;
  by("answers-title").textContent = isMeasured ? `What it says without ${patchName(only)}` : "What the network says";
  by("restore").hidden = state.removed.size === 0;
  by("removal-note").textContent = {
    0: "Choose a class to see what speaks for it, click a patch to remove it.",
    1: "Measured with that patch replaced by the data set's mean colour.",
  }[state.removed.size] ?? `Only single removals were measured: what the network would say without these ${state.removed.size} `
    + "patches together is not known here. The bars are those of the whole image.";
}

function drawOverview() {
  by("overview-note").textContent = `Where ${tokenName(state.token)} looks: a column a layer, a row a head, each scaled to its own largest.`;
  for (const choice of by("thumbnails").querySelectorAll("button")) {
    const layer = Number(choice.dataset.layer), head = Number(choice.dataset.head);
    const map = attentionOf(state.token, true, layer, head);
    paintMap(choice.firstChild, map, Math.max(...map.values));
    choice.setAttribute("aria-pressed", state.method === "attention" && layer === state.layer && head === state.head);
  }
}

/** The boards with their captions and scales, and the likeliest classes, as a picture to keep. */
function save() {
  const shown = ["main", "other"].slice(0, by("other").hidden ? 1 : 2);
  const size = by("main-canvas").width, margin = 24, line = 26, side = 260;
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
  const parts = [method.name, method.layers && `layer ${state.layer} of ${data.layers}`, method.heads && `head ${headName()}`];
  write(by("title").textContent, margin, line + 4, whole, "bold 20px sans-serif");
  write(`${parts.filter(Boolean).join(", ")} · ${by("subtitle").textContent}`, margin, 2 * line + 4, whole);
  context.imageSmoothingEnabled = false;
  shown.forEach((name, index) => {
    const x = margin + index * (size + margin), below = top + size + 8;
    write(by(`${name}-title`).textContent, x, top - 8, size);
    context.drawImage(by(`${name}-canvas`), x, top);
    context.drawImage(by(`${name}-scale`), x, below, size, 10);
    context.textAlign = "right";
    write(by(`${name}-most`).textContent, x + size, below + line + 4, size / 2, "13px sans-serif");
    context.textAlign = "left";
    write(name === "main" ? by("main-least").textContent : "0", x, below + line + 4, size / 2, "13px sans-serif");
  });
  [...by("classes").children].forEach((choice, row) => {
    const [, , name, value] = choice.children, x = margin + shown.length * (size + margin), y = top + 14 + row * line;
    write(name.textContent, x, y, side * 0.45);
    write(value.textContent, x + side * 0.5, y, side * 0.5);
  });
  write(by("readout").textContent, margin, canvas.height - line, whole, "14px sans-serif");
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
by("page").hidden = false;

// For the console, and for tests: the numbers behind what is shown.
window.explorer = { state, change, mainMap, attentionOf };
