// The connection to the worker that computes with the network.

const KEPT_ANSWERS = 30;

const live = {
  worker: null,
  answers: new Map(), // the latest answers, by what they are about
  number: 0, // of the newest task
  asked: null, // the newest task, until it is done: {answer, target, wantsRemoval}
  wholes: new Set(), // images whose answer for the untouched image is the worker's own
  walkNumber: 0, // of the newest question of the walk
  probes: [], // what waits for the probabilities of a state that the page does not show
  progress: 0, // of the removal of single patches: a fraction
  failure: "", // what the worker reported before it gave up
  config: null, // the sizes of the network
  isFast: null, // whether the browser has SIMD
};

/** Start the worker, and let it read the network. */
function startLive() {
  const source = new Blob([byId("worker").textContent], { type: "text/javascript" });
  live.worker = new Worker(URL.createObjectURL(source));
  live.worker.onmessage = ({ data: message }) => receive(message);
  live.worker.onerror = ({ message }) => fail(message);
  const { config, tensors, ...encoded } = JSON.parse(byId("network").textContent);
  live.config = config;
  const integers = new Int8Array(bytes(encoded.integers).buffer);
  const message = { kind: "load", config, tensors, integers, floats: floats(encoded.floats) };
  live.worker.postMessage(message, [message.integers.buffer, message.floats.buffer]);
}

/** Whether the image or the network differs from the original. */
function isEdited() {
  return state.removed.size > 0 || state.off.size > 0 || state.pixels !== null;
}

/** What the worker needs to know about the state. `isWhole` asks about the untouched image and network. */
function describeState(isWhole) {
  const isOriginal = isWhole || state.pixels === null;
  return {
    version: `${state.image} ${isOriginal ? 0 : state.version}`, // stands for the pixels
    removed: isWhole ? [] : [...state.removed].sort((a, b) => a - b),
    fill: isWhole ? "mean" : state.fill,
    off: isWhole ? [] : [...state.off].sort(),
  };
}

/**
 * Ask for what the page shows and does not know yet. Called after every drawing.
 *
 * The first task about an image is about the untouched image and network, to which everything else is compared.
 */
function ask() {
  const image = images[state.image], isWhole = !live.wholes.has(state.image);
  const about = describeState(isWhole), answered = findAnswer(about, isWhole);
  const target = image.whole ? state.target : null; // null: the predicted class
  const wantsRemoval = state.method === "removal" && !isWhole && !answered.removal;
  if (answered.scores && state.answer !== answered && !isWhole) {
    state.answer = answered;
    show();
  }
  if (live.asked && live.asked.answer === answered && live.asked.target === target
    && (live.asked.wantsRemoval || !wantsRemoval)) return;
  if (answered.scores && answered.explanations.has(target) && !wantsRemoval) {
    live.asked = null;
    live.number += 1; // answers to earlier tasks are ignored
    return;
  }
  live.number += 1;
  live.progress = 0;
  live.asked = { answer: answered, target, wantsRemoval };
  const pixels = (isWhole ? null : state.pixels) ?? image.pixels;
  live.worker.postMessage({ kind: "see", id: live.number, pixels, target, wantsRemoval, ...about });
}

/** The answer about a state, which is empty at first. `cause` says what has been changed. */
function findAnswer(about, isWhole) {
  const key = JSON.stringify(about);
  const found = live.answers.get(key) ?? {
    image: state.image, cause: isWhole ? "" : editName(), scores: null, removal: null, explanations: new Map(),
  };
  live.answers.delete(key);
  live.answers.set(key, found); // the latest come last
  if (live.answers.size > KEPT_ANSWERS) live.answers.delete(live.answers.keys().next().value);
  return found;
}

/** Take a part of an answer from the worker. */
function receive({ kind, id, ...part }) {
  if (kind === "ready") live.isFast = part.isFast;
  if (kind === "error") fail(part.message);
  if (kind === "probe") live.probes[id](part.probabilities);
  if (kind === "walk" && id === live.walkNumber) drawWalk(part);
  if (id !== live.number || !live.asked) return; // the state has changed since
  const { answer: answered } = live.asked;
  if (kind === "answer") {
    const { logits: scores, attention: weights, rollout, lens, seen, milliseconds } = part;
    const probabilities = softmaxOf(scores);
    Object.assign(answered, { scores, probabilities, attention: weights, rollout, lens, seen, milliseconds });
    if (!live.wholes.has(answered.image)) adoptWhole(answered);
    state.answer = answered;
    live.asked.target ??= state.target;
  } else if (kind === "explanation") {
    answered.explanations.set(part.target, part);
  } else if (kind === "removing") {
    live.progress = part.done;
  } else if (kind === "removal") {
    answered.removal = part.probabilities;
  } else if (kind === "done") {
    live.asked = null;
  }
  show();
}

/** Use the worker's answer for an untouched image, so that changes are compared within one arithmetic. */
function adoptWhole(answered) {
  const image = images[answered.image], isNew = !image.whole, order = orderOf(answered.probabilities);
  image.whole = answered;
  image.explained = order.slice(0, data.explainedClasses);
  live.wholes.add(answered.image);
  if (isNew) state.target = order.includes(image.target) ? image.target : order[0];
}

/** The class probabilities with some changes to the present state, such as {removed: [5]}, which is not shown. */
function probe(changes) {
  const pixels = state.pixels ?? images[state.image].pixels;
  live.worker.postMessage({ kind: "probe", id: live.probes.length, pixels, ...describeState(false), ...changes });
  return new Promise((resolve) => { live.probes.push(resolve); });
}

function fail(message) {
  live.failure = `The network has stopped (${message}). Reload the page.`;
  live.asked = null;
  byId("editing-note").textContent = live.failure;
}
