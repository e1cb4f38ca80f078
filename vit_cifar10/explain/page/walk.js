// Live pages of a ViT: how the network works, in six steps, with the numbers of the image on the page.

const CLASS_TOKEN_TEXT = " One more token, the class token, belongs to no patch: it gathers information, and the "
  + "prediction is read from it.";

const STEPS = [
  {
    title: "Patches become tokens",
    text: ({ patch, size }) => `The image is cut into ${patches} patches of ${size} × ${size} pixels. The `
      + `${3 * size * size} numbers of each patch are multiplied by one matrix. The result is its token: `
      + `${live.config.width} numbers.${prefix ? CLASS_TOKEN_TEXT : ""}`,
    draw({ patch, projected }) {
      addImageWith(patch);
      addPicture(`the patch in ${patchName(patch)}`, (canvas) => drawPatch(canvas, patch), true);
      addStrip("its token", projected);
    },
  },
  {
    title: "Positions",
    text: () => "One learned vector per position is added to the tokens, because attention alone would not know where "
      + "a patch was. The map shows how similar the vectors of other positions are to that of the selected patch.",
    draw({ patch, similarity }) {
      addImageWith(patch);
      addMap(`similarity to the position in ${patchName(patch)}, from −1 (blue) to 1 (red)`, similarity, 1, true);
    },
  },
  {
    title: "Queries and keys",
    text: ({ head, query }) => `In layer ${state.layer}, head ${head}, every token makes a query and a key of `
      + `${query.length} numbers each. A score is the product of this token's query and another token's key, divided `
      + `by the square root of ${query.length}.`,
    draw({ name, scores }) {
      addImageWith(walkPatch());
      const shown = scores.subarray(prefix), largest = Math.max(...shown.map(Math.abs));
      const range = `from ${contribution(-largest)} (blue) to ${contribution(largest)} (red)`;
      addMap(`scores of ${name}, ${range}`, shown, largest, true);
    },
  },
  {
    title: "Attention",
    text: ({ head }) => `The softmax turns the scores into fractions that add up to 100 %: the attention of layer `
      + `${state.layer}, head ${head}. Each head then takes the weighted mean of the tokens' values.`,
    draw({ name, weights }) {
      addImageWith(walkPatch());
      const shown = weights.subarray(prefix), largest = Math.max(...shown);
      addMap(`attention of ${name}, from 0 to ${percent(largest)}`, shown, largest, false);
    },
  },
  {
    title: "What a layer adds",
    text: () => `Layer ${state.layer} changes a token by adding to it: first what the attention has gathered from all `
      + "tokens, then what the MLP, a small network that sees only this token, makes of the sum.",
    draw({ streamName, before, gathered, made, after }) {
      const largest = Math.max(...after.map(Math.abs));
      for (const [label, values] of [
        ["before", before], ["from the attention", gathered], ["from the MLP", made], ["after", after],
      ]) {
        addStrip(`${streamName}, ${label} (length ${Math.hypot(...values).toFixed(1)})`, values, largest);
      }
    },
  },
  {
    title: "From token to prediction",
    text: () => `After the last layer, ${output} is normalized and multiplied by one more matrix. This gives one score `
      + "per class, and the softmax turns the scores into probabilities.",
    draw({ final, logits }) {
      addStrip(`${output}, normalized`, final);
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
}

/** Ask the worker for the numbers of the open step. */
function askForWalk() {
  byId("walk").hidden = state.step === null;
  byId("explain").setAttribute("aria-expanded", state.step !== null);
  if (state.step === null || !state.answer) return;
  live.walkNumber += 1; // answers to earlier questions are ignored
  const head = Math.max(0, state.head - FIRST_HEAD); // without a selected head, the first
  const pixels = state.pixels ?? images[state.image].pixels, token = walkToken();
  const question = { pixels, ...describeState(false), layer: state.layer - 1, head, token, patch: walkPatch() ?? 0 };
  live.worker.postMessage({ kind: "walk", id: live.walkNumber, ...question });
}

/** The patch that the walk follows, or null if it follows the class token. */
function walkPatch() {
  return walkToken() < prefix ? null : walkToken() - prefix;
}

/** The token whose attention the walk follows, as an index. */
function walkToken() {
  return state.token === ALL_PATCHES ? prefix : tokenIndex(state.token);
}

function drawWalk(numbers) {
  if (state.step === null) return;
  const step = STEPS[state.step], picture = byId("walk-picture");
  const nameOf = (token) => tokenName(token < prefix ? CLASS_TOKEN : token - prefix);
  const all = {
    ...numbers,
    head: Math.max(1, state.head - FIRST_HEAD + 1),
    size: data.imageSize / data.grid,
    name: nameOf(walkToken()),
    streamName: nameOf(numbers.streamToken),
  };
  [...byId("walk-steps").children].forEach((choice, index) => {
    choice.setAttribute("aria-checked", index === state.step);
    choice.tabIndex = index === state.step ? 0 : -1;
  });
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

/** The image, with a patch outlined if it is not null. */
function addImageWith(patch) {
  addPicture("the image", (canvas) => {
    const side = 224, context = canvas.getContext("2d");
    canvas.width = canvas.height = side;
    context.imageSmoothingEnabled = false;
    context.drawImage(shownPicture().color, 0, 0, side, side);
    if (patch !== null) outline(context, patch, side / data.grid);
  }, true);
}

function addMap(caption, values, maximum, isSigned) {
  addPicture(caption, (canvas) => paintMap(canvas, { side: data.grid, values }, maximum, isSigned), true);
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
    item.textContent = `${data.classes[index]}: score ${score}, ${percent(probabilities[index])}`;
    list.append(item);
  }
  byId("walk-picture").append(list);
}
