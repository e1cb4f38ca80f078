// All texts that depend on the data or the state.

const output = {
  avg: "the mean of the patches", distilled: "the class token and the distillation token",
}[data.pool] ?? "the class token";
const otherTokens = `${data.hasClassToken ? ", class token" : ""}${prefix > data.hasClassToken ? ", registers" : ""}`;

// What has a part of a score that AttnLRP gives to no patch.
const elsewhere = `biases, positions${otherTokens} and softmax`;

const sumOfEvidence = data.isVit
  ? `this score, except for a part that belongs to no patch: ${elsewhere}`
  : "the difference between this score and the score of an image in the mean color of the data set";

// What the maps show, where the table of methods in Python does not say enough.
const MEANINGS = {
  attention: "How strongly the selected token attends to every patch in one layer, and how strongly every patch "
    + "attends to it: in one head, or as the mean or maximum over all heads. Attention shows where a layer looks; "
    + "it does not show what raises or lowers the score.",
  evidence: "The score (logit) of the selected class, divided among the patches: red patches count for the class, "
    + `blue patches against it. The values of all patches add up to ${sumOfEvidence}.`,
  rollout: "The attention of all layers up to this one, multiplied together, with the residual connections counted "
    + `half: an estimate of how much of each patch has reached ${output}. It is the same for every class. In late `
    + "layers, it is often nearly the same for every patch, too.",
  gradientRollout: "The attention of all layers up to this one, counted only where more of it would raise the score of the "
    + "selected class: what this method counts as evidence for the class so far.",
  gradCam: `The ${data.isVit ? "input of the last block" : "output of a late layer"}, with each channel `
    + "weighted by how much it raises the score of the selected class: what this method counts as evidence for the "
    + "class.",
};

// The methods by their keys, and a measurement, which every page has.
const METHODS = {
  ...Object.fromEntries(data.methods.map((method) => [
    method.key, { ...method, meaning: MEANINGS[method.key] ?? method.meaning },
  ])),
  removal: {
    name: "Removal", classes: true, signed: true,
    meaning: "A measurement: each patch alone is removed from the image as it is shown, and the image is classified "
      + "again. Removing a red patch lowers the probability of the selected class; removing a blue patch raises it."
      + (isLive ? "" : " A removed patch has the mean color of the data set."),
  },
};

/** Whether a map says what speaks for and against the selected class. */
function showsEvidence() {
  return METHODS[state.method].signed && state.method !== "removal";
}

const percent = (fraction) => `${(100 * fraction).toFixed(Math.abs(fraction) < 0.0995 ? 2 : 1)} %`;

/** A probability before and after a change, with as many decimals as needed to tell them apart from 0. */
const moved = (before, after) => `${percent(before).replace(" %", "")} → ${percent(after)}`;

/** A probability in whole percent, without the sign. */
function rounded(fraction) {
  if (fraction > 0 && fraction < 0.005) return "<1";
  return fraction < 1 && fraction > 0.995 ? ">99" : Math.round(100 * fraction);
}

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
  if (showsEvidence()) return contribution(value);
  const maximum = scaleOf(map);
  return maximum > 0 ? `${Math.round((100 * value) / maximum)} % of the maximum` : "0";
}

function mainTitle(map) {
  const { name, classes } = METHODS[state.method];
  if (state.method === "attention") return `Attention from ${tokenName(state.token)}`;
  if (map.isPending) return `${name} is being computed`;
  const isEmpty = !map.values.some((value) => value > 0 || (showsEvidence() && value < 0));
  const nothing = state.method === "removal" ? "no single removal lowers it" : "all values are 0";
  if (showsEvidence() && !isEmpty) return `${name}: for (red) and against (blue) ${targetName()}`;
  return `${name}${classes ? ` for ${targetName()}` : ""}${isEmpty ? `: ${nothing}` : ""}`;
}

/** A description of the boards. */
function readout(map, to) {
  const patch = state.hover ?? selectedPatch();
  const sentences = [];
  if (map.isPending) return "";
  if (state.method === "attention") {
    if (state.hover !== null) sentences.push(`${capital(patchName(patch))}: ${percent(map.values[patch])}.`);
    if (state.off.has(`a${state.layer}`)) sentences.push("The attention of this layer is off, so it has no effect.");
    if (state.off.has(`h${state.layer}.${state.head - FIRST_HEAD + 1}`)) {
      sentences.push("This head is off, so its attention has no effect.");
    }
    const strongest = ({ values }) => orderOf(values).slice(0, 3)
      .map((patch) => `${patchName(patch)} (${percent(values[patch])})`).join("; ");
    sentences.push(`${capital(tokenName(state.token))} attends most to ${strongest(map)}.`);
    if (map.classToken !== null) sentences.push(`Attention to the class token: ${percent(map.classToken)}.`);
    if (to) sentences.push(`It receives most attention from ${strongest(to)}.`);
  } else if (patch === null) {
    if (state.method === "evidence") {
      const sum = map.values.reduce((total, value) => total + value, 0), score = answer().scores[state.target];
      const rest = data.isVit ? `everything else (${elsewhere})` : "an image in the mean color";
      sentences.push(`All patches together: ${contribution(sum)}; ${rest}: ${contribution(score - sum)}; `
        + `the score of ${targetName()}: ${contribution(score)}.`);
    }
    sentences.push("Point at a patch to read its value.");
  } else {
    sentences.push(`${capital(patchName(patch))}: ${valueName(map, patch)}.`);
  }
  if (comparison()) {
    sentences.push(effectText(comparison()));
  } else if (state.removed.size && !isLive) {
    sentences.push(`${state.removed.size} patches are removed. Their joint effect was not measured.`);
  }
  return sentences.join(" ");
}

/**
 * The probabilities before and after what the user has changed, {before, after, cause}, or null if nothing is known.
 */
function comparison() {
  const before = images[state.image].whole.probabilities;
  if (isLive) {
    return state.answer?.cause ? { before, after: state.answer.probabilities, cause: state.answer.cause } : null;
  }
  if (state.removed.size !== 1) return null;
  const [patch] = state.removed, count = data.classes.length;
  const after = images[state.image].whole.removal.subarray(patch * count, (patch + 1) * count);
  return { before, after, cause: `without ${patchName(patch)}` };
}

/** What a change does: "Without row 4, column 4: still deer, 81.7 → 78.8 %." */
function effectText({ before, after, cause }) {
  const was = largestOf(before), is = largestOf(after), change = `${data.classes[was]}, ${moved(before[was], after[was])}`;
  const then = was === is ? `still ${change}` : `${change}; now ${data.classes[is]}, ${percent(after[is])}`;
  return `${capital(cause)}: ${then}.`;
}

/** The indices of values, that of the largest value first. */
const orderOf = (values) => Array.from(values.keys()).sort((a, b) => values[b] - values[a]);

const largestOf = (values) => values.indexOf(Math.max(...values));

const capital = (text) => text[0].toUpperCase() + text.slice(1);

/** The prediction in a line, before and after what the user has changed: "deer 82 → 69 %". */
function headline({ whole }) {
  const before = whole.probabilities, after = comparison()?.after ?? before, was = largestOf(before), is = largestOf(after);
  const first = `${data.classes[was]} ${rounded(before[was])}`;
  if (after === before) return `${first} %`;
  return was === is ? `${first} → ${rounded(after[is])} %` : `${first} % → ${data.classes[is]} ${rounded(after[is])} %`;
}

/** What a press on the image does, by tool. */
const HINTS = {
  remove: "Press a patch to remove it.",
  select: `Press a patch to ${data.isVit ? "see where it looks" : "select it"}.`,
  paint: "Drag over the image to paint.",
  guess: "Press the patches that you think matter most.",
};

function knownText() {
  const count = data.classes.length;
  return `It knows only these ${count} classes; anything else gets one of them.`;
}

/** What the change does, if there is one, and what the user can do next. */
function removalNote() {
  return [comparison() && effectText(comparison()), isLive ? liveNote() : measuredNote()].filter(Boolean).join(" ");
}

function measuredNote() {
  return {
    0: "Select a class to explain it.",
    1: "Measured with this patch replaced by the mean color of the data set.",
  }[state.removed.size] ?? `Only single removals were measured. The effect of removing these ${state.removed.size} `
    + "patches together is unknown, so the bars show the whole image.";
}

function softmaxOf(scores) {
  const largest = Math.max(...scores), powers = scores.map((score) => Math.exp(score - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

/** When the network decides: the first layer from which on its final prediction leads. */
function lensText(layers) {
  const final = largestOf(layers[data.layers]);
  let first = data.layers;
  while (first > 0 && largestOf(layers[first - 1]) === final) first -= 1;
  const since = first === 0 ? "from the start" : `from layer ${first} on`;
  return `What the network would predict if it stopped early. Here, its last step, which normally follows layer `
    + `${data.layers}, is applied to ${output} after each layer. “${data.classes[final]}” leads ${since}.`;
}

function contributionText(moves) {
  if (!moves) return "";
  const order = orderOf(moves);
  const name = (index) => {
    const layer = Math.floor(index / data.heads) + 1, head = (index % data.heads) + 1;
    return `layer ${layer}, head ${head} (${contribution(moves[index])})`;
  };
  const largest = moves[order[0]] > 0 ? ` Strongest push up: ${name(order[0])}.` : "";
  const smallest = moves[order.at(-1)] < 0 ? ` Strongest push down: ${name(order.at(-1))}.` : "";
  return `The bar below each map shows how far the head's output moves the score (logit) of ${targetName()} directly, `
    + "as if no later layer reacted to it: red to the right raises the score, blue to the left lowers it."
    + `${largest}${smallest}`;
}

/** Where the numbers come from. */
function originText() {
  const rounded = data.images.some((image) => image.attentionScales)
    ? " To keep the page small, attention is rounded to 8 bits, by less than 0.4 % of the largest value from a token."
    : "";
  if (!isLive) return `All numbers were computed when this page was written.${rounded}`;
  const { change, tested, before, after } = data.rounding;
  const accuracy = tested
    ? ` It classifies ${percent(after / tested)} of ${tested} test images correctly, and with its original weights `
      + `${percent(before / tested)}.`
    : "";
  return "All numbers are computed in this page, by the network that it contains. To keep the page small, the weights "
    + "are rounded to 8 bits each. For the images that came with the page, this changes the class probabilities by at "
    + `most ${points(change).replace("+", "")}.${accuracy}`;
}
