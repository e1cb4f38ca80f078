// The maps that the boards show, from the data and the state: {side, values}.

/** The answer that the page shows: the live one, if there is one, or that for the untouched image. */
function answer() {
  return state.answer ?? images[state.image].whole;
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
  const matrices = answer().attention;
  const at = (number) => matrices[(((layer - 1) * data.heads + number) * tokens + from) * tokens + to];
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
    classToken: data.hasClassToken ? pair(0) : null,
  };
}

/** One square map of a stack of maps. */
function slice(values, index, count) {
  const size = values.length / count;
  return { side: Math.sqrt(size), values: values.subarray(index * size, (index + 1) * size) };
}

/** How much the probability of the selected class falls without each patch. Negative values mean that it rises. */
function losses({ removal, probabilities }) {
  const lost = (_, patch) => probabilities[state.target] - removal[patch * data.classes.length + state.target];
  return { side: data.grid, values: Float32Array.from({ length: patches }, lost) };
}

/** The map on the main board, {side, values}, or null if it has not been computed yet. */
function mainMap() {
  const shown = answer(), { classes, layers } = METHODS[state.method];
  if (state.method === "attention") return attentionOf(state.token, true);
  if (state.method === "removal") return shown.removal ? losses(shown) : null;
  const maps = classes ? shown.explanations.get(state.target) : shown;
  if (!maps) return null;
  return layers ? slice(maps[state.method], state.layer - 1, data.layers) : slice(maps[state.method], 0, 1);
}

/** What the board shows while its map is being computed. */
function emptyMap() {
  return { side: data.grid, values: new Float32Array(patches), isPending: true };
}
