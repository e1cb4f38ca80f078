// Live pages of a ViT: how the network works, in six steps, with the numbers of the image on the page.

const CLASS_TOKEN_TEXT = " One more token, the class token, belongs to no patch: it gathers information from the "
  + "patches, and the prediction is read from it.";

const UNREAD = " After the last layer, however, only the class token is read.";

const STEPS = [
  {
    title: "Patches become tokens",
    text: ({ patch, size }) => `The image is cut into ${patches} patches of ${size} × ${size} pixels. The `
      + `${3 * size * size} numbers of each patch are multiplied by one matrix. The result is its token: `
      + `${live.config.width} numbers.${data.hasClassToken ? CLASS_TOKEN_TEXT : ""}`,
    draw({ patch, projected }) {
      addImageWith(patch);
      addPicture("the patch, enlarged", (canvas) => drawPatch(canvas, patch), true);
      addNumbers("its token", projected);
    },
  },
  {
    title: "Positions",
    text: () => "Attention alone would not know where a patch was. So the network adds a learned vector to each token, "
      + "a different one for each position. The map compares the vector of this position with all others.",
    draw({ patch, similarity }) {
      addImageWith(patch);
      addMap(`similarity to the position in ${patchName(patch)}, from −1 (blue) to 1 (red)`, similarity, 1, true);
    },
  },
  {
    title: "Queries and keys",
    text: ({ head, query }) => `Layer ${state.layer} makes a query, a key and a value from each token, `
      + `${live.config.width} numbers each. Its ${data.heads} heads share them: ${query.length} numbers per head. In `
      + `head ${head}, a score is the product of this token's query and another token's key, divided by the square `
      + `root of ${query.length}.`,
    draw({ patch, name, scores }) {
      addImageWith(patch);
      const shown = scores.subarray(prefix), largest = Math.max(...shown.map(Math.abs));
      addMap(`scores of ${name}, ${rangeOf(largest)}`, shown, largest, true);
    },
  },
  {
    title: "Attention",
    text: ({ head }) => `The softmax turns the scores into fractions that add up to 100 %: the attention of layer `
      + `${state.layer}, head ${head}. The head's output is the mean of all tokens' values, weighted by these `
      + "fractions.",
    draw({ patch, name, weights }) {
      addImageWith(patch);
      const shown = weights.subarray(prefix), largest = Math.max(...shown);
      addMap(`attention of ${name}, from 0 to ${percent(largest)}`, shown, largest, false);
    },
  },
  {
    title: "What a layer adds",
    text: () => `Layer ${state.layer} adds two vectors to the token: what its heads have gathered from all tokens, and `
      + "what its MLP, a small network that sees only this token, computes from the sum."
      + (state.layer === data.layers && data.pool === "token" ? UNREAD : ""),
    draw({ before, gathered, made, after }) {
      const largest = Math.max(...after.map(Math.abs));
      addStrip(`the token before layer ${state.layer}: ${before.length} numbers, ${rangeOf(largest)}`, before, largest);
      addStrip("+ from the heads", gathered, largest);
      addStrip("+ from the MLP", made, largest);
      addStrip(`= the token after layer ${state.layer}`, after, largest);
    },
  },
  {
    title: "From token to prediction",
    text: () => `After the last layer, ${output} is normalized and multiplied by one more matrix. This gives one score `
      + "per class, and the softmax turns the scores into probabilities.",
    draw({ final, logits }) {
      addNumbers(`${output}, normalized`, final);
      addScores(logits);
    },
  },
];

function buildWalk() {
  byId("explain").hidden = false;
  byId("explain").addEventListener("click", () => {
    change({ step: state.step === null ? 0 : null });
    if (state.step !== null) setTimeout(() => byId("walk").scrollIntoView({ block: "nearest" }), 100);
  });
  STEPS.forEach(({ title }, step) => {
    const choice = button(byId("walk-steps"), `${step + 1}. ${title}`, () => change({ step }));
    choice.setAttribute("role", "radio");
  });
  byId("walk-steps").addEventListener("keydown", moveAmong);
  byId("walk-back").addEventListener("click", () => change({ step: state.step - 1 }));
  byId("walk-next").addEventListener("click", () => change({ step: state.step + 1 }));
}

/** Ask the worker for the numbers of the open step. */
function askForWalk() {
  byId("walk").hidden = state.step === null;
  byId("explain").setAttribute("aria-expanded", state.step !== null);
  if (state.step === null || !state.answer) return;
  live.walkNumber += 1; // answers to earlier questions are ignored
  const head = Math.max(0, state.head - FIRST_HEAD); // without a selected head, the first
  const pixels = state.pixels ?? images[state.image].pixels;
  const question = { pixels, ...describeState(false), layer: state.layer - 1, head, patch: walkPatch() };
  live.worker.postMessage({ kind: "walk", id: live.walkNumber, ...question });
}

/** The patch that the walk follows: the selected one or, without one, the patch with most attention in the layer. */
function walkPatch() {
  return selectedPatch() ?? largestOf(attentionOf(state.token, true, state.layer, MEAN).values);
}

function drawWalk(numbers) {
  if (state.step === null) return;
  const step = STEPS[state.step], picture = byId("walk-picture");
  const all = {
    ...numbers,
    head: Math.max(1, state.head - FIRST_HEAD + 1),
    size: data.imageSize / data.grid,
    name: `the patch in ${patchName(numbers.patch)}`,
  };
  [...byId("walk-steps").children].forEach((choice, index) => markRadio(choice, index === state.step));
  byId("walk-back").disabled = state.step === 0;
  byId("walk-next").disabled = state.step === STEPS.length - 1;
  const reason = selectedPatch() === null ? `, to which ${tokenName(state.token)} attends most in this layer` : "";
  byId("walk-note").textContent = `These steps follow ${all.name}${reason}. Select another patch to follow it.`;
  byId("walk-text").textContent = step.text(all);
  picture.replaceChildren();
  step.draw(all);
}

// Pictures

function addPicture(caption, draw, isSmall = false) {
  const figure = document.createElement("figure"), canvas = document.createElement("canvas");
  figure.append(Object.assign(document.createElement("figcaption"), { textContent: caption }), canvas);
  figure.className = isSmall ? "small" : "";
  byId("walk-picture").append(figure);
  draw(canvas);
}

/** The image, with a patch outlined. */
function addImageWith(patch) {
  addPicture("the image", (canvas) => {
    const side = 224, context = canvas.getContext("2d");
    canvas.width = canvas.height = side;
    context.imageSmoothingEnabled = false;
    context.drawImage(shownPicture().color, 0, 0, side, side);
    outline(context, patch, side / data.grid);
  }, true);
}

function addMap(caption, values, maximum, isSigned) {
  addPicture(caption, (canvas) => paintMap(canvas, { side: data.grid, values }, maximum, isSigned), true);
}

/** The meaning of the colors of signed values, as text. */
function rangeOf(maximum) {
  return `from ${contribution(-maximum)} (blue) to ${contribution(maximum)} (red)`;
}

/** Numbers as a strip of colors, with their number and range. */
function addNumbers(caption, values) {
  const maximum = Math.max(...values.map(Math.abs));
  addStrip(`${caption}: ${values.length} numbers, ${rangeOf(maximum)}`, values, maximum);
}

/** Numbers as a strip of colors: positive ones red, negative ones blue. */
function addStrip(caption, values, maximum) {
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
    item.textContent = `${data.classes[index]}: score ${score}, ${percent(probabilities[index])}`;
    list.append(item);
  }
  byId("walk-picture").append(list);
}
