// Live pages: changing the image and the network, and the address that restores the changes.

const PARTS = ["head", "attention", "mlp"]; // what can be switched off in the selected layer

function buildEditing() {
  for (const id of ["editing", "tool-paint", "own"]) byId(id).hidden = false;
  byId("switches").hidden = !data.isVit;
  for (const [name, read] of [["color", String], ["brush", Number]]) {
    byId(name).addEventListener("input", () => change({ [name]: read(byId(name).value) }));
  }
  byId("fill").addEventListener("change", () => edit({ fill: byId("fill").value }));
  byId("undo").addEventListener("click", () => restore(past, future));
  byId("redo").addEventListener("click", () => restore(future, past));
  byId("reset").addEventListener("click", () => {
    edit({ removed: new Set(), off: new Set(), fill: "mean", pixels: null, version: 0 });
  });
  byId("open").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", () => {
    openImage(byId("file").files[0]);
    byId("file").value = ""; // so that the same file can be opened again
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    openImage(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => openImage(event.clipboardData.files[0]));
  for (const board of boards) {
    board.addEventListener("pointerdown", startStroke);
    board.addEventListener("pointermove", continueStroke);
  }
  for (const name of ["pointerup", "pointercancel"]) document.addEventListener(name, () => { stroke = null; });
  for (const part of PARTS) {
    byId(`switch-${part}`).addEventListener("click", () => toggleSwitch(partOf(part)));
  }
  window.addEventListener("hashchange", () => location.hash.slice(1) !== address() && readAddress());
  if (data.isVit) buildWalk();
  buildCards();
  startLive();
}

function editingShortcut(event) {
  const key = event.key.toLowerCase();
  if (key !== "z" && key !== "y") return;
  event.preventDefault();
  if (key === "y" || event.shiftKey) restore(future, past);
  else restore(past, future);
}

// Images of the user's own

/** Add an image file to the page and show it. */
async function openImage(file) {
  if (!file) return;
  let pixels;
  try {
    pixels = await readImage(file);
  } catch (error) {
    byId("editing-note").textContent = `${file.name || "The file"} is not an image that this browser can read.`;
    return;
  }
  byId("editing-note").textContent = "";
  selectImage(addImage(pixels, file.name || "pasted image"));
}

/** Add an image to the page, unless it is there already, and return its number. */
function addImage(pixels, name) {
  const isSame = (image) => image.name === name && image.pixels.every((value, index) => value === pixels[index]);
  const found = images.findIndex(isSame);
  if (found >= 0) return found;
  images.push({ name, label: "your image", explained: images[0].explained, pixels, whole: null });
  buildImage(images.at(-1), images.length - 1);
  return images.length - 1;
}

// Switches

/** The switch of a part of the selected layer: "h3.1", "a3" or "m3". Without a selected head, there is none for it. */
function partOf(part) {
  if (part === "head") return state.head >= FIRST_HEAD ? `h${state.layer}.${state.head - FIRST_HEAD + 1}` : null;
  return `${part[0]}${state.layer}`;
}

function toggleSwitch(name) {
  const off = new Set(state.off);
  if (!off.delete(name)) off.add(name);
  edit({ off });
}

function switchName(name) {
  const [layer, head] = name.slice(1).split(".");
  const ofLayer = `of layer ${layer}`;
  return { h: `head ${head} ${ofLayer}`, a: `the attention ${ofLayer}`, m: `the MLP ${ofLayer}` }[name[0]];
}

function drawEditing() {
  byId("painting").hidden = state.tool !== "paint";
  byId("filling").hidden = state.removed.size === 0;
  byId("progress").hidden = !live.asked?.wantsRemoval;
  byId("progress").value = live.progress;
  byId("color").value = state.color;
  byId("brush").value = state.brush;
  byId("fill").value = state.fill;
  byId("undo").disabled = past.length === 0;
  byId("redo").disabled = future.length === 0;
  byId("reset").disabled = !isEdited() && state.fill === "mean";
  for (const part of PARTS) {
    const name = partOf(part), control = byId(`switch-${part}`);
    control.hidden = name === null;
    if (name === null) continue;
    control.setAttribute("aria-pressed", state.off.has(name));
    control.textContent = `${capital(switchName(name))}${state.off.has(name) ? ": off" : ""}`;
  }
  drawSwitchedOff();
  for (const choice of byId("thumbnails").querySelectorAll("button")) {
    const { layer, head } = choice.dataset;
    choice.classList.toggle("off", state.off.has(`a${layer}`) || state.off.has(`h${layer}.${head - FIRST_HEAD + 1}`));
  }
  writeAddress();
}

/** One button for each part that is off and has no button above. They are only replaced if they change. */
function drawSwitchedOff() {
  const above = PARTS.map(partOf), list = byId("switched-off");
  const names = [...state.off].filter((name) => !above.includes(name)).sort();
  if (list.dataset.names === names.join()) return;
  list.dataset.names = names.join();
  list.replaceChildren();
  for (const name of names) {
    button(list, `${switchName(name)} ×`, () => toggleSwitch(name)).title = "Switch on again";
  }
}

/** What has been changed, as the end of a sentence. */
function editName() {
  const parts = [];
  if (state.pixels) parts.push("with your painting");
  if (state.removed.size === 1) parts.push(`without ${patchName([...state.removed][0])}`);
  if (state.removed.size > 1) parts.push(`without ${state.removed.size} patches`);
  if (state.off.size === 1) parts.push(`without ${switchName([...state.off][0])}`);
  if (state.off.size > 1) parts.push(`without ${state.off.size} parts of the network`);
  return parts.join(", ");
}

function liveNote() {
  if (live.failure) return live.failure;
  if (!state.answer) return "The network is being loaded …";
  const time = Math.max(1, Math.round(state.answer.milliseconds));
  return `Select a class to see which patches speak for and against it. The network took ${time} ms.`;
}
