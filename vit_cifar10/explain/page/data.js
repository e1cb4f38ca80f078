// What Python has computed, decoded.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

const MEAN = 0, MAX = 1, FIRST_HEAD = 2; // positions of the head slider
const CLASS_TOKEN = "class", ALL_PATCHES = "all"; // values of state.token other than the index of a patch
const defaultToken = data.isVit && data.pool !== "avg" ? CLASS_TOKEN : ALL_PATCHES; // what the network's head reads
const patches = data.grid * data.grid;
const prefix = data.prefixTokens; // the class token and registers, which precede the patches
const tokens = patches + prefix;
const colors = palette(data.colors);
const differences = palette(data.differences);

/**
 * The images: {name, label, pixels, whole, explained}. `whole` is the network's answer for the untouched
 * image, `explained` the classes that can be selected, the most probable first.
 *
 * An answer has scores (logits), probabilities, removal (probabilities without each patch), explanations (a Map from
 * classes to maps), the maps that are the same for every class and, of a ViT, attention and lens. Each is an array as worker.js sends it, or null if it
 * has not been computed.
 */
const images = data.images.map((image) => ({
  name: image.name,
  label: image.label,
  explained: image.explained ?? data.images[0].explained,
  pixels: bytes(image.pixels),
  whole: image.scores ? measured(image) : null, // a live page computes it
}));

/** The answer that Python has computed. */
function measured(image) {
  const stacks = {};
  const ofClasses = data.methods.filter((method) => method.classes).map((method) => method.key);
  for (const name of [...ofClasses, "contributions"]) {
    if (image[name]) stacks[name] = floats(image[name]);
  }
  const explanations = new Map(image.explained.map((target, index) => {
    const maps = Object.entries(stacks).map(([name, values]) => {
      const size = values.length / image.explained.length;
      return [name, values.subarray(index * size, (index + 1) * size)];
    });
    return [target, Object.fromEntries(maps)];
  }));
  const blind = data.methods.filter(({ key, classes }) => !classes && key !== "attention");
  const fractions = (text) => Float32Array.from(new Uint16Array(bytes(text).buffer), (part) => part / 65535);
  return {
    scores: floats(image.scores),
    probabilities: floats(image.probabilities),
    removal: floats(image.removal),
    attention: image.attention && (image.attentionScales ? scaled(image) : fractions(image.attention)),
    ...Object.fromEntries(blind.map(({ key }) => [key, floats(image[key])])),
    lens: image.lens && floats(image.lens),
    explanations,
  };
}

/** Attention in 8 bits: the square roots of a row's values are whole numbers times the row's scale. */
function scaled(image) {
  const scales = floats(image.attentionScales), roots = bytes(image.attention), columns = roots.length / scales.length;
  return Float32Array.from(roots, (root, index) => (root * scales[Math.floor(index / columns)]) ** 2);
}

function bytes(text) {
  const letters = atob(text), values = new Uint8Array(letters.length);
  for (let index = 0; index < letters.length; index += 1) values[index] = letters.charCodeAt(index);
  return values;
}

/** 256 colors in the byte order of ImageData on little-endian machines. */
function palette(text) {
  const parts = bytes(text);
  return Uint32Array.from({ length: 256 }, (_, step) => {
    const [red, green, blue] = parts.subarray(3 * step, 3 * step + 3);
    return (255 << 24) | (blue << 16) | (green << 8) | red;
  });
}

function floats(text) {
  return new Float32Array(bytes(text).buffer);
}
