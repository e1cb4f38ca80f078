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

/** Save the boards, with their captions and scales, and the class probabilities as a PNG file. */
function save() {
  const shown = ["main", "other"].slice(0, byId("other").hidden ? 1 : 2);
  const size = byId("main-canvas").width, margin = 24, line = 26, side = 260;
  const canvas = document.createElement("canvas");
  canvas.width = shown.length * (size + margin) + side + 2 * margin;
  canvas.height = size + 8.5 * line;
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const write = (text, x, y, width, font = "15px sans-serif") => {
    context.font = font;
    let fitting = text;
    while (fitting.length > 1 && context.measureText(fitting).width > width) fitting = `${fitting.slice(0, -2)}…`;
    context.fillText(fitting, x, y);
  };
  context.fillStyle = style.getPropertyValue("--panel");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = style.getPropertyValue("--ink");
  const method = METHODS[state.method], whole = canvas.width - 2 * margin, top = 3.8 * line;
  const layer = method.layers && `layer ${state.layer} of ${data.layers}`;
  const parts = [method.name, layer, method.heads && `head ${headName()}`];
  write(byId("title").textContent, margin, line + 4, whole, "bold 20px sans-serif");
  write(`${parts.filter(Boolean).join(", ")} · ${byId("subtitle").textContent}`, margin, 2 * line + 4, whole);
  context.imageSmoothingEnabled = false;
  shown.forEach((name, index) => {
    const x = margin + index * (size + margin), below = top + size + 8;
    write(byId(`${name}-title`).textContent, x, top - 8, size);
    context.drawImage(byId(`${name}-canvas`), x, top);
    context.drawImage(byId(`${name}-scale`), x, below, size, 10);
    context.textAlign = "right";
    write(byId(`${name}-most`).textContent, x + size, below + line + 4, size / 2, "13px sans-serif");
    context.textAlign = "left";
    write(name === "main" ? byId("main-least").textContent : "0", x, below + line + 4, size / 2, "13px sans-serif");
  });
  [...byId("classes").children].forEach((choice, row) => {
    const [, , name, value] = choice.children, x = margin + shown.length * (size + margin), y = top + 14 + row * line;
    write(name.textContent, x, y, side * 0.45);
    write(value.textContent, x + side * 0.5, y, side * 0.5);
  });
  const lines = wrap(context, byId("readout").textContent, whole), below = top + size + 2.6 * line;
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
