// Live pages: the address restores the state.

/** The state as the part of the address after #. */
function address() {
  const isOwn = state.image >= data.images.length, image = isOwn ? null : state.image;
  const own = isOwn ? images[state.image].name : null;
  const pixels = state.pixels ?? (isOwn ? images[state.image].pixels : null);
  const { method, layer, head, token, target, fill, step } = state;
  const { removed, off } = describeState(false);
  const parts = { image, own, method, layer, head, token, target };
  Object.assign(parts, { removed: removed.join("."), off: off.join("-"), fill, step });
  if (pixels) parts.pixels = encode(pixels);
  const kept = Object.entries(parts).filter(([, value]) => value !== null && value !== "");
  return new URLSearchParams(kept).toString();
}

let addressTimer = null;

/** Write the state to the address a moment later; browsers limit how often it may change. */
function writeAddress() {
  addressTimer ??= setTimeout(() => {
    addressTimer = null;
    const text = address();
    if (text !== location.hash.slice(1)) history.replaceState(null, "", `#${text}`);
  }, 400);
}

/** Restore the state from the address. What is missing, or does not fit this page, takes its first value. */
function readAddress() {
  const parts = new URLSearchParams(location.hash.slice(1)), pixels = decode(parts.get("pixels"));
  const number = (name, least, most, otherwise) => {
    const value = Number(parts.get(name));
    return parts.has(name) && Number.isInteger(value) && value >= least && value <= most ? value : otherwise;
  };
  const listed = (name, separator) => (parts.get(name) ?? "").split(separator).filter(Boolean);
  const isPatch = (patch) => Number.isInteger(patch) && patch >= 0 && patch < patches;
  const isOwn = pixels !== null && parts.has("own");
  const shown = number("image", 0, data.images.length - 1, 0);
  const image = isOwn ? addImage(pixels, parts.get("own").slice(0, 200)) : shown;
  const target = number("target", 0, data.classes.length - 1, images[image].explained[0]);
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
    step: data.isVit ? number("step", 0, STEPS.length - 1, null) : null,
    ...(pixels && !isOwn && { pixels, version: versions }),
  });
}

function isMethod(name) {
  return Object.hasOwn(METHODS, name);
}

function isToken(name) {
  return (name === CLASS_TOKEN && data.hasClassToken) || name === ALL_PATCHES;
}

/** Whether a text names a part of this network. */
function isSwitch(name) {
  const match = /^(?:h(\d+)\.(\d+)|[am](\d+))$/.exec(name);
  const layer = Number(match?.[1] ?? match?.[3]), head = Number(match?.[2] ?? 1);
  return Boolean(match) && data.isVit && layer >= 1 && layer <= data.layers && head >= 1 && head <= data.heads;
}

function encode(pixels) {
  let letters = "";
  for (const value of pixels) letters += String.fromCharCode(value);
  return btoa(letters);
}

/** The pixels in a text, or null if it does not contain pixels of this page's size. */
function decode(text) {
  try {
    const pixels = text && bytes(text);
    return pixels && pixels.length === 3 * data.imageSize ** 2 ? pixels : null;
  } catch (error) {
    return null; // not base64
  }
}
