// Live pages: the address restores the state.

/** The state as the part of the address after #. */
function address() {
  const isOwn = state.image >= data.images.length, image = isOwn ? null : state.image;
  const own = isOwn ? images[state.image].name : null;
  const { method, layer, head, token, target, fill, step, card } = state;
  const { removed, off } = describeState(false);
  const parts = { image, own, method, layer, head, token, target, scale: state.ownScale ? "own" : null };
  Object.assign(parts, { removed: removed.join("."), off: off.join("-"), fill, step, card });
  if (isOwn) parts.pixels = encode(images[state.image].pixels);
  if (state.pixels) parts.paint = encode(runsOf(state.pixels, images[state.image].pixels));
  const kept = Object.entries(parts).filter(([, value]) => value !== null && value !== "");
  return new URLSearchParams(kept).toString();
}

let addressTimer = null;

/** Write the state to the address a moment later; browsers limit how often it may change. */
function writeAddress() {
  addressTimer ??= setTimeout(writeAddressNow, 400);
}

function writeAddressNow() {
  clearTimeout(addressTimer);
  addressTimer = null;
  const text = address();
  if (text !== location.hash.slice(1)) history.replaceState(null, "", `#${text}`);
}

/** Copy the address. Where the browser forbids that, the user can copy it from the address bar. */
async function copyLink() {
  writeAddressNow();
  try {
    await navigator.clipboard.writeText(location.href);
    byId("editing-note").textContent = "The link to this view is copied.";
  } catch (error) {
    byId("editing-note").textContent = "Copy the link to this view from the address bar.";
  }
}

/** Restore the state from the address. What is missing, or does not fit this page, takes its first value. */
function readAddress() {
  const parts = new URLSearchParams(location.hash.slice(1)), sent = decode(parts.get("pixels"));
  const number = (name, least, most, otherwise) => {
    const value = Number(parts.get(name));
    return parts.has(name) && Number.isInteger(value) && value >= least && value <= most ? value : otherwise;
  };
  const listed = (name, separator) => (parts.get(name) ?? "").split(separator).filter(Boolean);
  const isPatch = (patch) => Number.isInteger(patch) && patch >= 0 && patch < patches;
  const isOwn = sent !== null && parts.has("own");
  const shown = number("image", 0, data.images.length - 1, 0);
  const image = isOwn ? addImage(sent, parts.get("own").slice(0, 200)) : shown;
  const pixels = isOwn || !sent ? withRuns(images[image].pixels, decode(parts.get("paint"), null)) : sent;
  const { whole, explained } = images[image]; // without an answer yet, the predicted class is not known
  const target = number("target", 0, data.classes.length - 1, whole ? explained[0] : null);
  images[image].target = target;
  versions += 1;
  change({
    ...stateOfImage(image),
    target,
    method: isMethod(parts.get("method")) ? parts.get("method") : firstMethod,
    layer: number("layer", 1, data.layers, data.layers),
    head: number("head", 0, data.heads + 1, MEAN),
    token: isToken(parts.get("token")) ? parts.get("token") : number("token", 0, patches - 1, defaultToken),
    removed: new Set(listed("removed", ".").map(Number).filter(isPatch)),
    off: new Set(listed("off", "-").filter(isSwitch)),
    fill: parts.get("fill") === "blur" ? "blur" : "mean",
    ownScale: parts.get("scale") === "own",
    step: data.isVit ? number("step", 0, STEPS.length - 1, null) : null,
    card: isCard(parts.get("card")) ? parts.get("card") : null,
    ...(pixels && { pixels, version: versions }),
  });
}

function isMethod(name) {
  return Object.hasOwn(METHODS, name);
}

function isToken(name) {
  return (name === CLASS_TOKEN && data.hasClassToken) || name === ALL_PATCHES;
}

function isCard(name) {
  return name === "list" || (Object.hasOwn(CARDS, name ?? "") && (data.isVit || !CARDS[name].isVit));
}

/** Whether a text names a part of this network. */
function isSwitch(name) {
  const match = /^(?:h(\d+)\.(\d+)|[am](\d+))$/.exec(name);
  const layer = Number(match?.[1] ?? match?.[3]), head = Number(match?.[2] ?? 1);
  return Boolean(match) && data.isVit && layer >= 1 && layer <= data.layers && head >= 1 && head <= data.heads;
}

/**
 * The pixels that differ from an image's, as runs of equal colors in a row: three bytes for the first pixel's number,
 * one for the length, three for the color.
 */
function runsOf(pixels, original) {
  const runs = [], at = (values, pixel) => values.subarray(3 * pixel, 3 * pixel + 3).join();
  let previous = null;
  for (let pixel = 0; pixel < pixels.length / 3; pixel += 1) {
    const color = at(pixels, pixel);
    if (color === at(original, pixel)) previous = null;
    else if (color === previous && runs.at(-4) < 255) runs[runs.length - 4] += 1;
    else {
      runs.push(pixel >> 16, (pixel >> 8) & 255, pixel & 255, 1, ...pixels.subarray(3 * pixel, 3 * pixel + 3));
      previous = color;
    }
  }
  return runs;
}

/** The reverse of `runsOf`, or null without runs. */
function withRuns(original, runs) {
  if (!runs) return null;
  const pixels = original.slice();
  for (let at = 0; at + 7 <= runs.length; at += 7) {
    const [high, middle, low, length, ...color] = runs.subarray(at, at + 7), first = (high << 16) + (middle << 8) + low;
    for (let pixel = first; pixel < Math.min(first + length, pixels.length / 3); pixel += 1) pixels.set(color, 3 * pixel);
  }
  return pixels;
}

/** Bytes as base64 with the letters that an address may contain. */
function encode(values) {
  let letters = "";
  for (const value of values) letters += String.fromCharCode(value);
  return btoa(letters).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

/** The bytes in a text, or null if it does not contain `length` bytes, by default those of an image. */
function decode(text, length = 3 * data.imageSize ** 2) {
  try {
    const values = text && bytes(text.replaceAll("-", "+").replaceAll("_", "/"));
    return values && (length === null || values.length === length) ? values : null;
  } catch (error) {
    return null; // not base64
  }
}
