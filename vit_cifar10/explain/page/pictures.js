// Drawing on canvases.

const CONTRAST = 0.35, OPACITY = 0.75, MEDIUM_GRAY = 127.5; // as in plots/overlay.py

/** The image as a canvas with one canvas pixel per image pixel: in color or, for below a map, in gray of low contrast. */
function picture(pixels, isGray = false) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = data.imageSize;
  const content = new ImageData(data.imageSize, data.imageSize);
  for (let pixel = 0; pixel < data.imageSize ** 2; pixel += 1) {
    const color = pixels.subarray(3 * pixel, 3 * pixel + 3);
    const gray = MEDIUM_GRAY + CONTRAST * ((color[0] + color[1] + color[2]) / 3 - MEDIUM_GRAY);
    content.data.set(isGray ? [gray, gray, gray, 255] : [...color, 255], 4 * pixel);
  }
  canvas.getContext("2d").putImageData(content, 0, 0);
  return canvas;
}

/**
 * The opacity of a value. Signed values near 0 are white and would hide the image, so they are more transparent than
 * large ones. `opacity` is that of the slider: OPACITY gives the colors of the GIFs, and 1 makes all values opaque.
 */
function opacityOf(value, maximum, isSigned, opacity) {
  if (!isSigned) return opacity;
  const fraction = maximum > 0 ? Math.min(1, Math.abs(value) / maximum) : 0, alpha = 0.08 + 0.77 * Math.sqrt(fraction);
  return opacity < OPACITY ? (alpha * opacity) / OPACITY : alpha + ((1 - alpha) * (opacity - OPACITY)) / (1 - OPACITY);
}

/** The color of a value. Colors follow the square root, as in the GIFs, or are linear if values can be negative. */
function color(value, maximum, isSigned) {
  const fraction = maximum > 0 ? Math.min(1, Math.max(isSigned ? -1 : 0, value / maximum)) : 0;
  return isSigned ? differences[Math.round(127.5 + 127.5 * fraction)] : colors[Math.round(255 * Math.sqrt(fraction))];
}

const overlay = document.createElement("canvas");

function paintMap(canvas, map, maximum, isSigned = false, opacity = 1) {
  const { side, rows = side, values } = map;
  if (canvas.width !== side || canvas.height !== rows) Object.assign(canvas, { width: side, height: rows });
  const content = new ImageData(side, rows), cells = new Uint32Array(content.data.buffer);
  values.forEach((value, cell) => {
    const alpha = opacityOf(value, maximum, isSigned, opacity);
    cells[cell] = (color(value, maximum, isSigned) & 0xffffff) | (Math.round(255 * alpha) << 24);
  });
  canvas.getContext("2d").putImageData(content, 0, 0);
}

const pictures = new Map(); // of the last pixels that were shown

/** The pixels that the network sees instead of removed patches, with the rest of the image, or null if unknown. */
function seenPixels() {
  return state.removed.size ? state.answer?.seen ?? null : null;
}

/** The image as it now is, in color and in gray of low contrast. */
function shownPicture() {
  const pixels = seenPixels() ?? state.pixels ?? images[state.image].pixels;
  if (!pictures.has(pixels)) {
    pictures.clear();
    pictures.set(pixels, { color: picture(pixels), gray: picture(pixels, true) });
  }
  return pictures.get(pixels);
}

/** Draw the image on a board. */
function drawImage(canvas, image) {
  const size = Math.max(480, data.imageSize);
  if (canvas.width !== size) canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(image, 0, 0, size, size);
  return context;
}

/** Draw the photo, in color, with what is removed and selected. */
function drawPhoto() {
  const context = drawImage(byId("photo-canvas"), shownPicture().color);
  markPatches(context);
}

/** Draw a map over the image in gray. Removed patches keep their gray. */
function drawBoard(canvas, map, maximum, isSigned = false) {
  const { gray } = shownPicture(), context = drawImage(canvas, gray), size = canvas.width, cell = size / data.grid;
  paintMap(overlay, map, maximum, isSigned, state.tool === "guess" ? 0 : state.strength / 100);
  context.drawImage(overlay, 0, 0, size, size);
  context.strokeStyle = "rgb(255 255 255 / 25%)";
  context.lineWidth = 1;
  context.beginPath();
  for (let line = 1; line < data.grid; line += 1) {
    context.moveTo(line * cell, 0); context.lineTo(line * cell, size);
    context.moveTo(0, line * cell); context.lineTo(size, line * cell);
  }
  context.stroke();
  markPatches(context, gray);
}

/** Hatch the removed patches, and outline the selected one and the one below the pointer. */
function markPatches(context, image = null) {
  const size = context.canvas.width, cell = size / data.grid;
  context.save();
  context.beginPath();
  for (const patch of state.removed) {
    context.rect((patch % data.grid) * cell, Math.floor(patch / data.grid) * cell, cell, cell);
  }
  context.clip();
  if (image) context.drawImage(image, 0, 0, size, size);
  if (!seenPixels()) { // it is not known what the network sees there
    context.fillStyle = "rgb(120 120 120)";
    context.fillRect(0, 0, size, size);
  }
  context.beginPath();
  for (let line = -size; line < size; line += 24) {
    context.moveTo(line, size); context.lineTo(line + size, 0);
  }
  twoLines(context, 3.5, 1.5);
  context.restore();
  for (const patch of state.guess) outline(context, patch, cell);
  const shown = state.step === null ? selectedPatch() : walkPatch();
  if (shown !== null) outline(context, shown, cell);
  if (state.hover !== null) outline(context, state.hover, cell, 3, 1.5);
}

/** A color scale in the colors of a map over medium gray. `mark` is the place of a mark, as a fraction, or null. */
function drawScale(canvas, isSigned, mark = null) {
  Object.assign(canvas, { width: 512, height: 20 });
  const context = canvas.getContext("2d"), valueAt = (_, step) => (isSigned ? step / 127.5 - 1 : (step / 255) ** 2);
  const steps = { side: 256, rows: 1, values: Float32Array.from({ length: 256 }, valueAt) };
  context.fillStyle = `rgb(${MEDIUM_GRAY} ${MEDIUM_GRAY} ${MEDIUM_GRAY})`;
  context.fillRect(0, 0, 512, 20);
  paintMap(overlay, steps, 1, isSigned, state.strength / 100);
  context.imageSmoothingEnabled = false;
  context.drawImage(overlay, 0, 0, 512, 20);
  if (mark === null) return;
  context.beginPath();
  context.moveTo(512 * mark, 0); context.lineTo(512 * mark, 20);
  twoLines(context, 6, 3);
}

/** Draw the path in white on black, so that it can be seen on every color. */
function twoLines(context, outer, inner) {
  for (const [style, width] of [["rgb(0 0 0)", outer], ["rgb(255 255 255)", inner]]) {
    context.strokeStyle = style;
    context.lineWidth = width;
    context.stroke();
  }
}

function outline(context, patch, cell, outer = 6, inner = 3) {
  const x = (patch % data.grid) * cell, y = Math.floor(patch / data.grid) * cell;
  context.beginPath();
  context.rect(x + 2, y + 2, cell - 4, cell - 4);
  twoLines(context, outer, inner);
}
