// The parts of the page that are built once, and what happens when they are used.

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
    buildImage(image, index);
  }

  for (const [key, method] of Object.entries(METHODS)) {
    const choice = button(byId("methods"), method.name, () => choose({ method: key }));
    choice.setAttribute("role", "radio");
    choice.dataset.method = key;
  }
  byId("methods").addEventListener("keydown", moveAmong);

  for (const tool of TOOLS) byId(`tool-${tool}`).addEventListener("click", () => change({ tool }));
  byId("tools").addEventListener("keydown", moveAmong);
  buildPatches();
  buildMap();
  if (data.isVit) {
    const names = [...(data.hasClassToken ? [CLASS_TOKEN] : []), ...(data.pool === "avg" ? [ALL_PATCHES] : [])];
    for (const token of names) {
      const choice = button(byId("tokens"), "", () => change({ token }));
      choice.dataset.token = token;
    }
    buildOverview();
  }
  byId("overview").hidden = byId("decision").hidden = !data.isVit;

  byId("layer").max = Math.max(1, data.layers);
  byId("head").max = FIRST_HEAD + data.heads - 1;
  byId("layer").addEventListener("input", () => change({ layer: Number(byId("layer").value) }));
  byId("head").addEventListener("input", () => change({ head: Number(byId("head").value) }));
  byId("strength").addEventListener("input", () => change({ strength: Number(byId("strength").value) }));
  byId("own-scale").addEventListener("change", () => change({ ownScale: byId("own-scale").checked }));
  byId("other").addEventListener("toggle", show);
  byId("play").addEventListener("click", () => (state.timer ? stop() : play()));
  byId("restore").addEventListener("click", () => {
    edit({ removed: new Set() });
    cells[selectedPatch() ?? 0].focus();
  });
  byId("export").addEventListener("click", save);
  byId("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme !== "dark"));
  document.addEventListener("keydown", shortcut);
  window.addEventListener("resize", show); // the chart fits its width

  byId("known").textContent = knownText();
  byId("origin").textContent = originText();
  byId("layer-keys").hidden = !data.isVit;
  if (isLive) buildEditing();
}

/** Add the button that selects an image. */
function buildImage(image, index) {
  const choice = button(byId("images"), "", () => selectImage(index));
  const small = picture(image.pixels);
  small.setAttribute("aria-hidden", "true");
  choice.append(small, image.name);
  byId("gallery").hidden = !isLive && images.length < 2;
}

const cells = []; // one button per patch

function buildPatches() {
  const grid = byId("patches");
  grid.style.gridTemplate = `repeat(${data.grid}, 1fr) / repeat(${data.grid}, 1fr)`;
  let row;
  for (let patch = 0; patch < patches; patch += 1) {
    if (patch % data.grid === 0) {
      row = document.createElement("div");
      row.setAttribute("role", "row");
      grid.append(row);
    }
    const cell = button(row, "", () => {});
    cells.push(cell);
    cell.setAttribute("role", "gridcell");
    cell.addEventListener("focus", () => cell.matches(":focus-visible") && point(patch));
    cell.addEventListener("blur", () => point(null));
  }
  rove(grid, cells, data.grid);
  grid.addEventListener("keydown", (event) => event.key.toLowerCase() === "r" && announce());
  for (const board of boards) {
    board.addEventListener("pointermove", (event) => point(patchAt(placeOf(event))));
    board.addEventListener("pointerleave", () => point(null));
    board.addEventListener("click", (event) => {
      if (isLive && isHandledByStroke(event)) return;
      const cell = cells.indexOf(event.target), patch = cell < 0 ? patchAt(placeOf(event)) : cell;
      if (patch === null) return;
      if (state.tool === "select") selectPatch(patch);
      else if (state.tool === "guess") guess(patch);
      else toggle(patch);
    });
  }
}

const boards = [byId("photo-board"), byId("main-board")]; // both respond to the pointer

/** The place of the pointer on a board, each coordinate from 0 to 1 inside it. */
function placeOf(event) {
  const { left, top, width, height } = event.currentTarget.getBoundingClientRect();
  return { x: (event.clientX - left) / width, y: (event.clientY - top) / height };
}

/** The patch at a place, or null outside the image. */
function patchAt({ x, y }) {
  const isInside = x >= 0 && x < 1 && y >= 0 && y < 1;
  return isInside ? Math.floor(y * data.grid) * data.grid + Math.floor(x * data.grid) : null;
}

/** Outline a patch and show its value, without selecting it. */
function point(patch) {
  if (patch !== state.hover) change({ hover: patch });
}

/** Let screen readers read the description of the map. They read it only on demand. */
function announce() {
  byId("announcement").textContent = "";
  setTimeout(() => { byId("announcement").textContent = byId("readout").textContent; }, 100);
}

/** Let the arrow keys move among the buttons of a grid. The Tab key reaches only one, the last that had the focus. */
function rove(grid, buttons, columns) {
  const reach = (reached) => buttons.forEach((choice) => { choice.tabIndex = choice === reached ? 0 : -1; });
  reach(buttons[0]);
  grid.addEventListener("focusin", (event) => reach(event.target));
  grid.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = buttons.indexOf(document.activeElement);
    const isAtSide = Math.abs(step) === 1 && Math.floor((at + step) / columns) !== Math.floor(at / columns);
    if (!isAtSide) buttons[at + step]?.focus();
  });
}

/** Build the thumbnails, with one column per layer and one row per head. */
function buildOverview() {
  const table = byId("thumbnails");
  table.style.gridTemplateColumns = `max-content repeat(${data.layers}, minmax(var(--least), 7rem))`;
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
      choice.append(document.createElement("canvas"), document.createElement("span"));
    }
  }
  rove(table, [...table.querySelectorAll("button")], data.layers);
}

/** Move between radio buttons with the arrow keys. */
function moveAmong(event) {
  const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const choices = [...event.currentTarget.children].filter((choice) => !choice.hidden);
  const next = choices[(choices.indexOf(document.activeElement) + step + choices.length) % choices.length];
  next.click();
  next.focus();
}

function shortcut(event) {
  const isTyped = event.getModifierState("AltGraph") || !(event.ctrlKey || event.metaKey);
  if (!isTyped) {
    if (isLive) editingShortcut(event);
    return;
  }
  const clamp = (value, minimum, maximum) => Math.min(maximum, Math.max(minimum, value));
  const step = { "[": [-1, 0], "]": [1, 0], ",": [0, -1], ".": [0, 1] }[event.key];
  if (event.key === "Escape") change({ token: defaultToken });
  if (step && data.isVit) {
    const layer = clamp(state.layer + step[0], 1, data.layers);
    change({ layer, head: clamp(state.head + step[1], 0, data.heads + 1) });
  }
}
