// The chart of the class probabilities after every layer.

const LINES = 5; // the number of classes in the chart
const DASHES = ["", "7 3", "2 3"]; // of lines

let lensDrawn = []; // what the chart was last drawn from

/** Draw the class probabilities after every layer as lines, each with its name at its end, if anything has changed. */
function drawLens(image) {
  const chart = byId("lens"), { lens } = answer(), isMarked = METHODS[state.method].layers;
  const about = [lens, image, state.target, isMarked && state.layer, chart.clientWidth];
  if (about.every((part, index) => part === lensDrawn[index])) return;
  lensDrawn = about;
  const count = data.classes.length;
  const after = (_, layer) => softmaxOf(lens.subarray(layer * count, (layer + 1) * count));
  const layers = Array.from({ length: data.layers + 1 }, after);
  const peak = (index) => Math.max(...layers.map((probabilities) => probabilities[index]));
  const others = image.explained.filter((index) => index !== state.target).sort((a, b) => peak(b) - peak(a));
  const shown = [state.target, ...others.slice(0, LINES - 1)];
  const left = 44, right = 128, top = 8, height = 190, bottom = 24;
  const width = Math.min(720, Math.max(300, chart.clientWidth || 720));
  const x = (layer) => left + (layer / data.layers) * (width - left - right);
  const y = (fraction) => top + (1 - fraction) * (height - top - bottom);
  chart.replaceChildren();
  chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
  for (const fraction of [0, 0.5, 1]) {
    svg(chart, "line", { x1: left, x2: width - right, y1: y(fraction), y2: y(fraction), class: "grid" });
    svg(chart, "text", { x: left - 6, y: y(fraction) + 4, "text-anchor": "end" }, `${100 * fraction} %`);
  }
  layers.forEach((_, layer) => {
    const every = Math.ceil((data.layers * 36) / (width - left - right)); // so that the numbers do not touch
    if (layer % every) return;
    svg(chart, "text", { x: x(layer), y: height - 6, "text-anchor": "middle" }, layer === 0 ? "start" : layer);
  });
  for (const index of shown) {
    const points = layers.map((probabilities, layer) => `${x(layer).toFixed(1)},${y(probabilities[index]).toFixed(1)}`);
    svg(chart, "polyline", { points: points.join(" "), ...lineOf(index, image) });
  }
  const ends = shown.map((index) => ({ index, at: y(layers[data.layers][index]) })).sort((a, b) => a.at - b.at);
  let lowest = height - bottom;
  for (const end of [...ends].reverse()) { // names that would overlap or leave the chart move up
    end.at = Math.min(end.at, lowest);
    lowest = end.at - 14;
  }
  for (const { index, at } of ends) {
    const name = data.classes[index], fitting = name.length > 14 ? `${name.slice(0, 13)}…` : name;
    const last = y(layers[data.layers][index]), leader = `${width - right},${last} ${width - right + 22},${at}`;
    svg(chart, "polyline", { points: leader, ...lineOf(index, image) });
    svg(chart, "text", { x: width - right + 26, y: at + 4, class: index === state.target ? "target name" : "name" }, fitting);
  }
  const at = x(state.layer);
  if (isMarked) svg(chart, "line", { x1: at, x2: at, y1: top, y2: height - bottom, class: "layer" });
  layers.forEach((probabilities, layer) => {
    const half = (x(1) - x(0)) / 2, size = { x: x(layer) - half, y: top, width: 2 * half, height: height - top };
    const column = svg(chart, "rect", { ...size, class: "column" });
    const values = shown.map((index) => `${data.classes[index]} ${percent(probabilities[index])}`).join(", ");
    svg(column, "title", {}, `${layer === 0 ? "before layer 1" : `after layer ${layer}`}: ${values}`);
    if (layer > 0) column.addEventListener("click", () => choose({ layer }));
  });
  byId("lens-note").textContent = lensText(layers);
}

/**
 * The color and dashes of a class's line. Each class of up to 21 has its own pair. Of more classes, it depends on the
 * image.
 */
function lineOf(index, image) {
  const { length } = data.lineColors, isFew = data.classes.length <= length * DASHES.length;
  const place = isFew ? index : image.explained.indexOf(index), color = data.lineColors[place % length];
  return {
    class: index === state.target ? "target line" : "line",
    stroke: color === "#000000" ? "currentColor" : color, // black would not be seen on a dark page
    "stroke-dasharray": DASHES[Math.floor(place / length) % DASHES.length],
  };
}

/** Add an SVG element, and return it. */
function svg(parent, name, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  parent.append(element);
  return element;
}
