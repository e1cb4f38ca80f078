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

  for (const tool of TOOLS) byId(`tool-${tool}`).addEventListener("click", () => selectTool(tool));
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
  byId("play").addEventListener("click", () => (state.timer ? stop() : play()));
  byId("restore").addEventListener("click", () => {
    edit({ removed: new Set() });
    cells[selectedPatch() ?? 0].focus();
  });
  byId("export").addEventListener("click", save);
  byId("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme !== "dark"));
  document.addEventListener("keydown", shortcut);
  window.addEventListener("resize", show); // the chart fits its width

  drawScale(byId("other-scale"), false);
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
  const board = byId("patches");
  board.style.gridTemplate = `repeat(${data.grid}, 1fr) / repeat(${data.grid}, 1fr)`;
  let touched = null, row;
  for (let patch = 0; patch < patches; patch += 1) {
    if (patch % data.grid === 0) {
      row = document.createElement("div");
      row.setAttribute("role", "row");
      board.append(row);
    }
    const cell = button(row, "", (event) => {
      const isFirstTap = touched === patch; // a finger cannot hover, so its first tap only selects
      touched = null;
      if ((isFirstTap && state.tool !== "guess") || (isLive && isHandledByStroke(event))) return;
      if (state.tool === "select") selectPatch(patch);
      else if (state.tool === "guess") guess(patch);
      else toggle(patch);
    });
    cells.push(cell);
    cell.setAttribute("role", "gridcell");
    cell.dataset.patch = patch;
    cell.addEventListener("pointerenter", (event) => {
      if (event.pointerType === "mouse" && state.tool !== "select") change({ token: patch });
    });
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

/** Build the thumbnails, with one column per layer and one row per head. */
function buildOverview() {
  const table = byId("thumbnails");
  table.style.gridTemplateColumns = `max-content repeat(${data.layers}, minmax(0, 7rem))`;
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
