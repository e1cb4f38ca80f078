// Live pages: dragging over the image removes or restores patches, or paints.

let stroke = null; // while a mouse button or finger is down: {board, removes, at}; `at` is the last place, from 0 to 1
let wasStroke = false; // whether the last press was the start of a stroke, so that its click must not count again

/** Whether a click on a patch has already been handled as a stroke. Clicks by the keyboard have no detail. */
function isHandledByStroke(event) {
  return event.detail > 0 && wasStroke;
}

function startStroke(event) {
  const isDragged = state.tool === "paint" || (state.tool === "remove" && event.pointerType === "mouse");
  wasStroke = event.button === 0 && isDragged;
  if (!wasStroke) return;
  const at = placeOf(event);
  stroke = { board: event.currentTarget, removes: !state.removed.has(patchAt(at)), at };
  remember();
  continueStroke(event);
}

function continueStroke(event) {
  if (stroke?.board !== event.currentTarget) return;
  const from = stroke.at, to = placeOf(event);
  const steps = 1 + Math.ceil(2 * data.imageSize * Math.hypot(to.x - from.x, to.y - from.y));
  const places = Array.from({ length: steps }, (_, step) => {
    const fraction = (step + 1) / steps;
    return { x: from.x + fraction * (to.x - from.x), y: from.y + fraction * (to.y - from.y) };
  });
  stroke.at = to;
  if (state.tool === "paint") paint(places);
  else removeAlong(places);
}

function removeAlong(places) {
  const removed = new Set(state.removed);
  for (const place of places) {
    const patch = patchAt(place);
    if (patch === null) continue;
    if (stroke.removes) removed.add(patch);
    else removed.delete(patch);
  }
  change({ removed });
}

let versions = 0; // the number of different pixels so far

/** Paint a disc at each place. */
function paint(places) {
  const size = data.imageSize, pixels = (state.pixels ?? images[state.image].pixels).slice();
  const color = [1, 3, 5].map((start) => Number.parseInt(state.color.slice(start, start + 2), 16));
  for (let pixel = 0; pixel < size * size; pixel += 1) {
    const column = (pixel % size) + 0.5, row = Math.floor(pixel / size) + 0.5;
    const isNear = ({ x, y }) => Math.hypot(column - x * size, row - y * size) <= state.brush;
    if (places.some(isNear)) pixels.set(color, 3 * pixel);
  }
  versions += 1;
  change({ pixels, version: versions });
}
