// Live pages of a ViT: how the network works, in six steps, with the numbers of the image on the page.
//
// The steps follow what the head reads, `output`, through one layer and head, and one patch that it attends to.

const READ = data.hasClassToken && data.pool === "token"
  ? " One more token, the class token, belongs to no patch: it gathers information from the patches, and the prediction "
    + "is read from it."
  : ` The prediction is read from ${output}.`;
const MEAN_NOTE = data.pool === "avg" ? " Each patch has its own; shown is the mean of all patches." : "";

const STEPS = [
  {
    title: "Patches become tokens",
    text: ({ size }) => `The image is cut into ${patches} patches of ${size} × ${size} pixels. The ${3 * size * size} `
      + `numbers of each patch are multiplied by one matrix. The result is its token: ${live.config.width} numbers.`
      + READ,
    draw({ patch, projected }) {
      addPicture("the patch, enlarged", (canvas) => drawPatch(canvas, patch), true);
      addStrip("its token: red numbers are positive, blue ones negative", projected);
    },
  },
  {
    title: "Positions",
    text: () => "Attention alone would not know where a patch was. So the network adds a learned vector to each token, "
      + "a different one for each position. The map compares the vector of this position with all others.",
    draw({ similarity }) {
      addMap("similarity, from −1 to 1", similarity, 1, true);
    },
  },
  {
    title: "Queries and keys",
    text: ({ head, length }) => "A LayerNorm and three matrices make a query, a key and a value from each token: "
      + `${length} numbers each in head ${head} of layer ${state.layer}. A score is the sum of the products of a query `
      + `and a key, divided by √${length}.${MEAN_NOTE}`,
    draw({ name, query, key, products, scores }) {
      const shown = scores.subarray(prefix), largest = Math.max(...shown.map(Math.abs));
      const sum = products.reduce((total, product) => total + product, 0);
      addNumbers(`query of ${output}`, query);
      addNumbers(`× key of ${name}`, key);
      addStrip(`= products / √${query.length}; their sum is the score, ${contribution(sum)}`, products);
      addMap(`scores, ${rangeOf(largest)}`, shown, largest, true);
    },
  },
  {
    title: "Attention",
    text: ({ head }) => `The softmax turns the scores into fractions that add up to 100 %: the attention of layer `
      + `${state.layer}, head ${head}. The head's output is the mean of all tokens' values, weighted by these `
      + `fractions.${MEAN_NOTE}${prefix ? " The class token gets its share, too." : ""}`,
    draw({ weights, mixed }) {
      const shown = weights.subarray(prefix), largest = Math.max(...shown);
      addMap(`attention, up to ${percent(largest)}`, shown, largest, false);
      addNumbers("the head's output", mixed);
    },
  },
  {
    title: "What a layer adds",
    text: () => `Layer ${state.layer} adds two vectors to ${output}: what its heads have gathered from all tokens, and `
      + "what its MLP, a small network that sees one token at a time, computes. A LayerNorm precedes each of them. The "
      + "other layers do the same with other weights.",
    draw({ before, gathered, made, after }) {
      const largest = Math.max(...after.map(Math.abs));
      addStrip(`${output} before layer ${state.layer}, ${rangeOf(largest)}`, before, largest);
      addStrip("+ from the heads", gathered, largest);
      addStrip("+ from the MLP", made, largest);
      addStrip(`= ${output} after layer ${state.layer}`, after, largest);
    },
  },
  {
    title: "From token to prediction",
    text: () => `After layer ${data.layers}, a last LayerNorm brings the numbers of ${output} to mean 0 and a common `
      + "spread, then scales and shifts each. One more matrix, the head, makes one score for each class. The softmax "
      + "turns the scores into probabilities.",
    draw({ last, final, logits }) {
      addNumbers("before the LayerNorm", last);
      addNumbers("after the LayerNorm", final);
      addScores(logits);
    },
  },
];

function buildWalk() {
  byId("explain").hidden = false;
  byId("explain").addEventListener("click", () => (state.step === null ? openWalk(0) : change({ step: null })));
  STEPS.forEach(({ title }, step) => {
    const choice = button(byId("walk-steps"), step + 1, () => change({ step }));
    choice.setAttribute("role", "radio");
    choice.setAttribute("aria-label", title);
    choice.title = title;
  });
  byId("walk-steps").addEventListener("keydown", moveAmong);
  byId("walk-back").addEventListener("click", () => change({ step: state.step - 1 }));
  byId("walk-next").addEventListener("click", () => change({ step: state.step + 1 }));
}

/** Open the walk at a step. It starts in a middle layer: after the last one, most tokens are not read. */
function openWalk(step) {
  const isMoved = state.step === null && state.layer === data.layers;
  const layer = isMoved ? Math.ceil(data.layers / 2) : state.layer;
  change({ step, card: null, layer, head: Math.max(FIRST_HEAD, state.head), method: "attention" });
  byId("walk").hidden = false;
  byId("walk-title").focus();
}

/** The number of the head that the walk follows, from 1: without a selected head, the first. */
const walkHead = () => Math.max(1, state.head - FIRST_HEAD + 1);

/** The patch that the walk follows: the selected one or, without one, the patch with most attention in this head. */
function walkPatch() {
  return selectedPatch() ?? largestOf(attentionOf(defaultToken, true, state.layer, FIRST_HEAD + walkHead() - 1).values);
}

/** Show the text of the open step, and ask the worker for its numbers. */
function askForWalk() {
  byId("walk").hidden = state.step === null;
  byId("explain").setAttribute("aria-expanded", state.step !== null);
  if (state.step === null || !state.answer) return;
  const step = STEPS[state.step];
  const facts = { head: walkHead(), size: data.imageSize / data.grid, length: live.config.width / data.heads };
  byId("walk-title").textContent = `${state.step + 1}. ${step.title}`;
  byId("walk-text").textContent = step.text(facts);
  [...byId("walk-steps").children].forEach((choice, index) => markRadio(choice, index === state.step));
  byId("walk-back").disabled = state.step === 0;
  byId("walk-next").disabled = state.step === STEPS.length - 1;
  live.walkNumber += 1; // answers to earlier questions are ignored
  const pixels = state.pixels ?? images[state.image].pixels;
  const about = { ...describeState(false), layer: state.layer - 1, head: walkHead() - 1, patch: walkPatch() };
  live.worker.postMessage({ kind: "walk", id: live.walkNumber, pixels, ...about });
}

function drawWalk(numbers) {
  if (state.step === null) return;
  byId("walk-picture").replaceChildren();
  STEPS[state.step].draw({ ...numbers, name: patchName(numbers.patch) });
}

// Pictures

function addPicture(caption, draw, isSmall = false) {
  const figure = document.createElement("figure"), canvas = document.createElement("canvas");
  figure.append(Object.assign(document.createElement("figcaption"), { textContent: caption }), canvas);
  figure.className = isSmall ? "small" : "";
  byId("walk-picture").append(figure);
  draw(canvas);
}

function addMap(caption, values, maximum, isSigned) {
  addPicture(caption, (canvas) => paintMap(canvas, { side: data.grid, values }, maximum, isSigned), true);
}

/** The range of the colors of signed values, as text. */
function rangeOf(maximum) {
  return `up to ±${contribution(maximum).slice(1)}`;
}

/** Numbers as a strip of colors, with their number and range. */
function addNumbers(caption, values) {
  const maximum = Math.max(...values.map(Math.abs));
  addStrip(`${caption}: ${values.length} numbers ${rangeOf(maximum)}`, values, maximum);
}

/** Numbers as a strip of colors: positive ones red, negative ones blue. */
function addStrip(caption, values, maximum = Math.max(...values.map(Math.abs))) {
  addPicture(caption, (canvas) => {
    canvas.width = values.length;
    canvas.height = 1;
    const content = new ImageData(values.length, 1), cells = new Uint32Array(content.data.buffer);
    values.forEach((value, cell) => { cells[cell] = color(value, maximum, true); });
    canvas.getContext("2d").putImageData(content, 0, 0);
  });
}

/** The patch, enlarged. */
function drawPatch(canvas, patch) {
  const size = data.imageSize / data.grid;
  const left = (patch % data.grid) * size, top = Math.floor(patch / data.grid) * size;
  canvas.width = canvas.height = size;
  canvas.getContext("2d").drawImage(shownPicture().color, -left, -top);
}

function addScores(logits) {
  const list = document.createElement("ol"), probabilities = softmaxOf(logits);
  for (const index of images[state.image].explained) {
    const item = document.createElement("li"), score = contribution(logits[index]).replace("+", "");
    item.textContent = `${data.classes[index]} ${score}: ${percent(probabilities[index])}`;
    list.append(item);
  }
  byId("walk-picture").append(list);
}
