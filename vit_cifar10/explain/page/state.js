// What the user has selected, and every way to change it. Everything on the page follows from the data and the state.

const isLive = byId("network") !== null; // the page contains the network

const firstMethod = data.methods[0].key;

const state = {
  image: 0,
  method: firstMethod,
  layer: data.layers, // from 1
  head: MEAN,
  strength: 75, // of the map over the image, in percent; OPACITY in pictures.js
  ownScale: false, // whether each map has its own color scale
  token: defaultToken,
  hover: null, // the patch below the pointer or with the keyboard's focus
  tool: "remove", // what pressing or dragging on the image does; see TOOLS
  target: images[0].explained[0],
  removed: new Set(),
  timer: null,
  // The rest is for live pages only.
  answer: null, // what the network says about the image as it now is
  off: new Set(), // parts of the network that are switched off, such as "h3.1"; see network.js
  fill: "mean", // what replaces removed patches: "mean" or "blur"
  pixels: null, // of the image, if it has been painted on
  version: 0, // a number for these pixels; 0 for the original ones
  color: "#ff2020",
  brush: 2, // its radius in pixels
  card: null, // the open card; see CARDS
  guess: [], // the patches that the user has guessed; see cards.js
  step: null, // of the explanation of how the network works, or null if it is closed
};

function choose(changes) {
  if (state.timer) stop();
  change(changes);
}

const TOOLS = ["select", "remove", "paint"]; // "paint" is for live pages only

/** Select a patch, or clear the selection if it is selected already. */
function selectPatch(patch) {
  change({ token: state.token === patch ? defaultToken : patch });
}

function toggle(patch) {
  const removed = new Set(state.removed);
  if (!removed.delete(patch)) removed.add(patch);
  edit({ removed });
}

/** Show another image. What was changed on the last one can no longer be undone. */
function selectImage(index) {
  past.length = future.length = 0;
  choose(stateOfImage(index));
}

/** The changes of the state that show an image without changes to it. */
function stateOfImage(index) {
  const target = images[index].explained[0];
  const untouched = { removed: new Set(), pixels: null, version: 0, answer: null };
  return { image: index, token: defaultToken, hover: null, target, ...untouched };
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

const past = [], future = []; // what Undo and Redo restore
const EDITED = ["removed", "off", "fill", "pixels", "version"]; // the parts of the state that they restore

function snapshot() {
  return Object.fromEntries(EDITED.map((key) => [key, state[key]]));
}

/** Keep the present state for Undo. */
function remember() {
  past.push(snapshot());
  if (past.length > 200) past.shift();
  future.length = 0;
}

/** Change the image or the network, so that it can be undone. */
function edit(changes) {
  remember();
  if (isLive) byId("editing-note").textContent = "";
  choose(changes);
}

/** Restore the newest state of one list, and keep the present one in the other. */
function restore(from, to) {
  const kept = from.pop();
  if (!kept) return;
  to.push(snapshot());
  choose(kept);
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
