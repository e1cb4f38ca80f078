// Saving the view as a picture.

const NOTE = "14px sans-serif";

/** Cut a text into lines of at most `width` pixels. */
function wrap(context, text, width) {
  context.font = NOTE;
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (context.measureText(longer).width <= width) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}

/** Save the photo, the maps with their captions and scales, and the class probabilities as a PNG file. */
function save() {
  const shown = ["photo", "main", ...(byId("other").open && !byId("other").hidden ? ["other"] : [])];
  const size = byId("main-canvas").width, margin = 24, line = 26, side = 340, textOf = (id) => byId(id).textContent;
  const canvas = document.createElement("canvas");
  canvas.width = shown.length * (size + margin) + side + 2 * margin;
  canvas.height = size + 9 * line;
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement), paint = (name) => { context.fillStyle = style.getPropertyValue(name); };
  const write = (text, x, y, width, font = "15px sans-serif", align = "left") => {
    context.font = font;
    context.textAlign = align;
    let fitting = text;
    while (fitting.length > 1 && context.measureText(fitting).width > width) fitting = `${fitting.slice(0, -2)}…`;
    context.fillText(fitting, x, y);
  };
  paint("--panel");
  context.fillRect(0, 0, canvas.width, canvas.height);
  paint("--ink");
  const method = METHODS[state.method], whole = canvas.width - 2 * margin, top = 3.8 * line;
  const layer = method.layers && `layer ${state.layer} of ${data.layers}`;
  const parts = [method.name, layer, method.heads && `head ${headName()}`];
  write(textOf("title"), margin, line + 4, whole, "bold 20px sans-serif");
  write(`${parts.filter(Boolean).join(", ")} · ${textOf("subtitle")}`, margin, 2 * line + 4, whole);
  context.imageSmoothingEnabled = false;
  shown.forEach((name, index) => {
    const x = margin + index * (size + margin), below = top + size + 8, small = "13px sans-serif";
    context.drawImage(byId(`${name}-canvas`), x, top);
    write(name === "photo" ? "What the network sees" : textOf(`${name}-title`), x, top - 8, size);
    if (name === "photo") return;
    context.drawImage(byId(`${name}-scale`), x, below, size, 14);
    write(name === "main" ? textOf("main-least") : "0", x, below + line + 6, size / 3, small);
    write(textOf(`${name}-most`), x + size, below + line + 6, size / 3, small, "right");
    const place = x + size * Math.min(0.7, Math.max(0.3, Number.parseFloat(byId(`${name}-uniform`).style.left) / 100 || 0));
    write(textOf(`${name}-uniform`), place, below + line + 6, size / 2, small, "center");
  });
  const x = margin + shown.length * (size + margin), lane = 0.32 * side;
  [...byId("classes").children].forEach((choice, row) => {
    const [name, bars, value] = choice.children, y = top + 14 + row * line, [bar, before] = bars.children;
    write(name.textContent, x, y, 0.3 * side);
    write(value.textContent, x + side, y, 0.34 * side, "15px sans-serif", "right");
    const share = (element, key) => Number.parseFloat(element.style[key]) / 100;
    paint("--bar");
    context.fillRect(x + lane, y - 12, lane * share(bar, "width"), 14);
    paint("--mark");
    if (!before.hidden) context.fillRect(x + lane * (1 + share(before, "left")), y - 14, 3, 18);
    paint("--ink");
  });
  const lines = wrap(context, textOf("readout"), whole), below = top + size + 3.1 * line;
  lines.slice(0, 3).forEach((text, index) => write(text, margin, below + index * 20, whole, NOTE));
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    const name = images[state.image].name.replace(/\.\w{1,5}$/, ""); // without the ending of a file's name
    link.download = `${name.replace(/[^\w.-]+/g, "-").slice(0, 60)}-${state.method}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}
