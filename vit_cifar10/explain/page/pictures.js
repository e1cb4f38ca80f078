// Drawing on canvases.

/** The image as a canvas with one canvas pixel per image pixel, in color or gray. */
function picture(pixels, isGray = false) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = data.imageSize;
  const content = new ImageData(data.imageSize, data.imageSize);
  for (let pixel = 0; pixel < data.imageSize ** 2; pixel += 1) {
    const color = pixels.subarray(3 * pixel, 3 * pixel + 3);
    const mean = (color[0] + color[1] + color[2]) / 3;
    content.data.set(isGray ? [mean, mean, mean, 255] : [...color, 255], 4 * pixel);
  }
  canvas.getContext("2d").putImageData(content, 0, 0);
  return canvas;
}

/**
 * The opacity of a signed value. Colors near 0 are white and would hide the image, so these values are more transparent
 * than large ones. At 100 %, all values are opaque.
 */
function signedOpacity(value, maximum, opacity) {
  const fraction = maximum > 0 ? Math.abs(value) / maximum : 0;
  return opacity ** (0.5 + 3 * (1 - Math.sqrt(fraction)));
}

/** The color of a value. Colors follow the square root, as in the GIFs, or are linear if values can be negative. */
function color(value, maximum, isSigned) {
  const fraction = maximum > 0 ? Math.min(1, Math.max(isSigned ? -1 : 0, value / maximum)) : 0;
  return isSigned ? differences[Math.round(127.5 + 127.5 * fraction)] : colors[Math.round(255 * Math.sqrt(fraction))];
}

const overlay = document.createElement("canvas");

function paintMap(canvas, map, maximum, isSigned = false, opacity = 1) {
  if (canvas.width !== map.side) canvas.width = canvas.height = map.side;
  const content = new ImageData(map.side, map.side), cells = new Uint32Array(content.data.buffer);
  map.values.forEach((value, cell) => {
    const alpha = isSigned ? signedOpacity(value, maximum, opacity) : opacity;
    cells[cell] = (color(value, maximum, isSigned) & 0xffffff) | (Math.round(255 * alpha) << 24);
  });
  canvas.getContext("2d").putImageData(content, 0, 0);
}

const pictures = new Map(); // of the last pixels that were shown

/** The pixels that the network sees instead of removed patches, with the rest of the image, or null if unknown. */
function seenPixels() {
  return state.removed.size ? state.answer?.seen ?? null : null;
}

/** The image as it now is, in color and in gray. */
function shownPicture() {
  const pixels = seenPixels() ?? state.pixels ?? images[state.image].pixels;
  if (!pictures.has(pixels)) {
    pictures.clear();
    pictures.set(pixels, { color: picture(pixels), gray: picture(pixels, true) });
  }
  return pictures.get(pixels);
}

function drawBoard(canvas, map, maximum, isSigned = false) {
  const size = Math.max(480, data.imageSize);
  if (canvas.width !== size) canvas.width = canvas.height = size;
  const image = shownPicture();
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  const opacity = state.tool === "guess" ? 0 : state.strength / 100;
  paintMap(overlay, map, maximum, isSigned, opacity);
  for (const [layer, alpha] of [[image.color, 1], [image.gray, Math.min(1, 2 * opacity)], [overlay, 1]]) {
    context.globalAlpha = alpha;
    context.drawImage(layer, 0, 0, size, size);
  }
  context.globalAlpha = 1;
  const cell = size / data.grid;
  context.strokeStyle = "rgb(255 255 255 / 25%)";
  context.lineWidth = 1;
  context.beginPath();
  for (let line = 1; line < data.grid; line += 1) {
    context.moveTo(line * cell, 0); context.lineTo(line * cell, size);
    context.moveTo(0, line * cell); context.lineTo(size, line * cell);
  }
  context.stroke();
  for (const patch of state.removed) drawRemoved(context, patch, cell);
  for (const patch of state.guess) outline(context, patch, cell);
  if (selectedPatch() !== null) outline(context, selectedPatch(), cell);
}

function drawScale(canvas, isSigned) {
  canvas.width = 256;
  canvas.height = 1;
  const content = new ImageData(256, 1), cells = new Uint32Array(content.data.buffer);
  for (let step = 0; step < 256; step += 1) cells[step] = isSigned ? differences[step] : color(step / 255, 1);
  canvas.getContext("2d").putImageData(content, 0, 0);
}

/** Cross out a removed patch. If it is not known what the network sees there, it becomes gray. */
function drawRemoved(context, patch, cell) {
  const x = (patch % data.grid) * cell, y = Math.floor(patch / data.grid) * cell;
  if (!seenPixels()) {
    context.fillStyle = "rgb(120 120 120)";
    context.fillRect(x, y, cell, cell);
  }
  context.beginPath();
  context.moveTo(x + cell * 0.3, y + cell * 0.3); context.lineTo(x + cell * 0.7, y + cell * 0.7);
  context.moveTo(x + cell * 0.7, y + cell * 0.3); context.lineTo(x + cell * 0.3, y + cell * 0.7);
  for (const [style, width] of [["rgb(0 0 0 / 60%)", 4], ["rgb(255 255 255)", 2]]) {
    context.strokeStyle = style;
    context.lineWidth = width;
    context.stroke();
  }
}

function outline(context, patch, cell) {
  const x = (patch % data.grid) * cell, y = Math.floor(patch / data.grid) * cell;
  for (const [style, width] of [["rgb(0 0 0)", 6], ["rgb(255 255 255)", 3]]) {
    context.strokeStyle = style;
    context.lineWidth = width;
    context.strokeRect(x + 2, y + 2, cell - 4, cell - 4);
  }
}
