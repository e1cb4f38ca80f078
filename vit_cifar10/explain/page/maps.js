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
function attention(matrices, layer, head, from, to) {
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
function attentionOf(token, isFrom, layer = state.layer, head = state.head, matrices = answer().attention) {
  const at = (from, to) => attention(matrices, layer, head, from, to);
  const pair = (other) => {
    if (token !== ALL_PATCHES) {
      const index = tokenIndex(token);
      return isFrom ? at(index, other) : at(other, index);
    }
    let sum = 0;
    for (let patch = 0; patch < patches; patch += 1) {
      sum += isFrom ? at(patch + prefix, other) : at(other, patch + prefix);
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
  const { heads, layers } = METHODS[state.method];
  if (heads) return attentionOf(state.token, true);
  const values = valuesIn(answer());
  return values && (layers ? slice(values, state.layer - 1, data.layers) : slice(values, 0, 1));
}

/** The values of the method in an answer, of all layers, or null if they have not been computed yet. */
function valuesIn(shown) {
  if (state.method === "removal") return shown.removal && losses(shown).values;
  const maps = METHODS[state.method].classes ? shown.explanations.get(state.target) : shown;
  return maps?.[state.method] ?? null;
}

/**
 * The value at the end of the color scale. Unless the user wants each map to have its own scale, it is that of the
 * untouched image over all layers and heads, so that the colors of maps can be compared, also after a change.
 */
function scaleOf(map, isFrom = true) {
  const { heads, layers, signed } = METHODS[state.method];
  const largest = (values) => values.reduce((most, value) => Math.max(most, signed ? Math.abs(value) : value), 0);
  if (layers && state.ownScale) return largest(map.values);
  const { whole } = images[state.image];
  return heads ? largestAttention(whole, isFrom) : largest(valuesIn(whole) ?? map.values);
}

const largestKnown = new WeakMap(); // for each answer: by token and direction

/** The largest attention from the selected token to any patch, or the reverse, over all layers and heads. */
function largestAttention(whole, isFrom) {
  if (!largestKnown.has(whole)) largestKnown.set(whole, {});
  const known = largestKnown.get(whole), key = `${state.token} ${isFrom}`;
  if (!(key in known)) {
    known[key] = 0;
    for (let layer = 1; layer <= data.layers; layer += 1) {
      for (let head = FIRST_HEAD; head < FIRST_HEAD + data.heads; head += 1) {
        known[key] = Math.max(known[key], ...attentionOf(state.token, isFrom, layer, head, whole.attention).values);
      }
    }
  }
  return known[key];
}

/** What the board shows while its map is being computed. */
function emptyMap() {
  return { side: data.grid, values: new Float32Array(patches), isPending: true };
}
