// Matrix products by WebAssembly's SIMD instructions, about eight times as fast as JavaScript. `assemble` writes the
// machine code: one function with three nested loops. There is no compiler and no file to load.

/**
 * The bytes of a module with one function, product(x, xEnd, w, wEnd, out, inner, stride). All arguments are addresses
 * or sizes in bytes. It multiplies every row of x with every row of w, four rows of x and two of w at a time:
 *
 *     for (; w < wEnd; w += 2 * inner, out += 8)
 *       for (row = x, to = out; row < xEnd; row += 4 * inner)
 *         for (k = 0; k < inner; k += 16)                       // four floats at a time
 *           sums[i][j] += row[i][k] * w[j][k]                   // 8 vectors of four sums
 *         for (i = 0; i < 4; i += 1, to += stride) to[j] = the total of sums[i][j]
 */
function assemble() {
  const ROWS = 4, COLUMNS = 2;
  const unsigned = (number) => (number < 128 ? [number] : [(number & 127) | 128, ...unsigned(number >>> 7)]); // LEB128
  // Integers; the first seven are arguments.
  const [X, X_END, W, W_END, OUT, INNER, STRIDE, ROW, TO, K] = Array(10).keys();
  const rowAt = (i) => K + 1 + i, wAt = (j) => rowAt(ROWS) + j;
  const part = (i) => wAt(COLUMNS) + i, factor = part(ROWS); // vectors
  const sum = (i, j) => factor + 1 + i * COLUMNS + j;

  const get = (local) => [0x20, ...unsigned(local)], set = (local) => [0x21, ...unsigned(local)];
  const tee = (local) => [0x22, ...unsigned(local)]; // set, and keep the value
  const number = (value) => [0x41, value]; // below 64, so one byte
  const add = [0x6a], multiply = [0x6c], isBelow = [0x49], store = (offset) => [0x38, 2, offset];
  const load = [0xfd, 0x00, 4, 0], zero = [0xfd, 0x0c, ...Array(16).fill(0)];
  const addVectors = [0xfd, 0xe4, 0x01], multiplyVectors = [0xfd, 0xe6, 0x01];
  const lane = (index) => [0xfd, 0x1f, index], addFloats = [0x92];
  const repeat = (count, make) => Array.from({ length: count }, (_, index) => make(index)).flat();
  const loop = (body, condition) => [0x03, 0x40, ...body, ...condition, 0x0d, 0, 0x0b]; // do body while condition
  const rowsOn = (local, count) => [...get(INNER), ...number(count), ...multiply, ...get(local), ...add];
  const next = (local, step, end) => [...step, ...tee(local), ...get(end), ...isBelow];
  const total = (vector) => [
    ...get(vector), ...lane(0), ...get(vector), ...lane(1), ...addFloats,
    ...get(vector), ...lane(2), ...get(vector), ...lane(3), ...addFloats, ...addFloats,
  ];

  const innerLoop = loop([
    ...repeat(ROWS, (i) => [...get(rowAt(i)), ...get(K), ...add, ...load, ...set(part(i))]),
    ...repeat(COLUMNS, (j) => [
      ...get(wAt(j)), ...get(K), ...add, ...load, ...set(factor),
      ...repeat(ROWS, (i) => [
        ...get(sum(i, j)), ...get(part(i)), ...get(factor), ...multiplyVectors, ...addVectors, ...set(sum(i, j)),
      ]),
    ]),
  ], next(K, [...get(K), ...number(16), ...add], INNER));
  const rowLoop = loop([
    ...repeat(ROWS, (i) => [...rowsOn(ROW, i), ...set(rowAt(i))]),
    ...repeat(COLUMNS, (j) => [...rowsOn(W, j), ...set(wAt(j))]),
    ...repeat(ROWS * COLUMNS, (index) => [...zero, ...set(sum(0, index))]),
    ...number(0), ...set(K), ...innerLoop,
    ...repeat(ROWS, (i) => [
      ...repeat(COLUMNS, (j) => [...get(TO), ...total(sum(i, j)), ...store(4 * j)]),
      ...get(TO), ...get(STRIDE), ...add, ...set(TO),
    ]),
  ], next(ROW, rowsOn(ROW, ROWS), X_END));
  const columnLoop = loop([
    ...get(X), ...set(ROW), ...get(OUT), ...set(TO), ...rowLoop,
    ...get(OUT), ...number(4 * COLUMNS), ...add, ...set(OUT),
  ], next(W, rowsOn(W, COLUMNS), W_END));

  const INTEGER = 0x7f, VECTOR = 0x7b;
  const locals = [2, wAt(COLUMNS) - ROW, INTEGER, sum(ROWS, 0) - part(0), VECTOR];
  const body = [...locals, ...columnLoop, 0x0b];
  const section = (id, content) => [id, ...unsigned(content.length), ...content];
  const text = (letters) => [letters.length, ...Array.from(letters, (letter) => letter.charCodeAt(0))];
  return new Uint8Array([
    ...[0, 0x61, 0x73, 0x6d, 1, 0, 0, 0], // "\0asm", version 1
    ...section(1, [1, 0x60, 7, ...Array(7).fill(INTEGER), 0]), // one type: seven integers -> nothing
    ...section(2, [1, ...text("page"), ...text("memory"), 2, 0, 1]), // one import: a memory of at least one page
    ...section(3, [1, 0]), // one function, of type 0
    ...section(7, [1, ...text("product"), 0, 0]), // one export
    ...section(10, [1, ...unsigned(body.length), ...body]),
  ]);
}

/**
 * A kernel for matrices w of up to `largest` floats, with rows of up to `longest`, or null without SIMD.
 *
 * `kernel.floats` is its memory. The first `kept` floats belong to the caller; a w that lies there is not copied.
 */
function makeKernel(kept, largest, longest = 4096) {
  const margin = 3 * longest, rowFloats = 2 ** 19; // the function reads up to three rows too far
  const wAt = 4 * Math.ceil((kept + margin) / 4), xAt = wAt + 4 * Math.ceil((largest + margin) / 4);
  const outAt = xAt + rowFloats + margin;
  try {
    const memory = new WebAssembly.Memory({ initial: Math.ceil((4 * (outAt + rowFloats + margin)) / 65536) });
    const { product } = new WebAssembly.Instance(new WebAssembly.Module(assemble()), { page: { memory } }).exports;
    return { product, floats: new Float32Array(memory.buffer), wAt, xAt, outAt, largest, longest, rowFloats };
  } catch (error) {
    return null;
  }
}
