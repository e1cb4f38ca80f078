// Any image file as the network's pixels, exactly as Python reads it with Pillow: turned as its camera noted, on white,
// cut to the square at its center, and resized with antialiasing.

/** A file or blob -> pixels (size · size × 3), from 0 to 255. */
async function readImage(blob) {
  const bitmap = await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return squarePixels(context.getImageData(0, 0, width, height), data.imageSize);
}

/** The square at the center of an image with RGBA pixels, resized: (size · size × 3). */
function squarePixels({ width, height, data: source }, size) {
  const side = Math.min(width, height), left = (width - side) / 2, top = (height - side) / 2;
  const pixels = new Uint8ClampedArray(3 * width * height);
  for (let pixel = 0; pixel < width * height; pixel += 1) {
    for (let channel = 0; channel < 3; channel += 1) pixels[3 * pixel + channel] = source[4 * pixel + channel];
  }
  const across = (image, rows) => resizeRows(image, width, rows, left, side, size);
  const down = (image, columns) => (
    transposed(resizeRows(transposed(image, columns, height), height, columns, top, side, size), size, columns));
  // As Pillow 13; older versions always resize rows first.
  const isDownFirst = height > size && height + size > 2 * width;
  return isDownFirst ? across(down(pixels, width), size) : down(across(pixels, height), size);
}

/**
 * Resize every row of an image (height · width × 3) from the part [start, start + length) to `size` pixels by Pillow's
 * bicubic filter, in its fixed-point arithmetic.
 */
function resizeRows(pixels, width, height, start, length, size) {
  if (start === 0 && length === width && size === width) return pixels;
  const out = new Uint8ClampedArray(3 * size * height), scale = length / size, stretch = Math.max(1, scale);
  for (let to = 0; to < size; to += 1) {
    const center = start + (to + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - 2 * stretch + 0.5));
    const end = Math.min(width, Math.trunc(center + 2 * stretch + 0.5));
    const weightAt = (_, index) => bicubic((index + first - center + 0.5) / stretch);
    const weights = Array.from({ length: end - first }, weightAt);
    const sum = weights.reduce((total, weight) => total + weight, 0);
    const fixed = weights.map((weight) => Math.trunc((weight / sum) * 2 ** 22 + (weight < 0 ? -0.5 : 0.5)));
    for (let row = 0; row < height; row += 1) {
      for (let channel = 0; channel < 3; channel += 1) {
        let total = 2 ** 21; // a half, to round
        fixed.forEach((weight, index) => { total += weight * pixels[3 * (row * width + first + index) + channel]; });
        out[3 * (row * size + to) + channel] = Math.floor(total / 2 ** 22);
      }
    }
  }
  return out;
}

function bicubic(distance) {
  const x = Math.abs(distance), a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/** An image (height · width × 3) mirrored at its diagonal. */
function transposed(pixels, width, height) {
  const out = new Uint8ClampedArray(pixels.length);
  for (let row = 0; row < height; row += 1) {
    for (let column = 0; column < width; column += 1) {
      for (let channel = 0; channel < 3; channel += 1) {
        out[3 * (column * height + row) + channel] = pixels[3 * (row * width + column) + channel];
      }
    }
  }
  return out;
}
