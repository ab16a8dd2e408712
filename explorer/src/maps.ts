// What is computed from rows of attention. A map has one value a patch, row after row; a place says where they lie.

import type { ImageInfo, Place, Rows } from "./protocol";

export interface Point {
  x: number;
  y: number;
}

type Size = Pick<ImageInfo, "width" | "height">;

/** The patch at a point (shares of width and height), or null where the network did not look. */
export function patchAt(place: Place, image: Size, { x, y }: Point): number | null {
  const [left, top, right, bottom] = place.box;
  const column = Math.floor(((x * image.width - left) / (right - left)) * place.columns);
  const row = Math.floor(((y * image.height - top) / (bottom - top)) * place.rows);
  const inside = row >= 0 && row < place.rows && column >= 0 && column < place.columns;
  return inside ? row * place.columns + column : null;
}

export function centreOf(place: Place, image: Size, patch: number): Point {
  const [left, top, right, bottom] = place.box;
  const row = Math.floor(patch / place.columns);
  const column = patch % place.columns;
  return {
    x: (left + ((column + 0.5) / place.columns) * (right - left)) / image.width,
    y: (top + ((row + 0.5) / place.rows) * (bottom - top)) / image.height,
  };
}

/** The patches' part of one head's row, or of the mean or maximum over heads. */
export function mapOf(rows: Rows, place: Place, head: number | "mean" | "max"): Float32Array {
  const { heads, tokens, values } = rows;
  const patches = tokens - place.prefix;
  if (typeof head === "number" || heads === 1) {
    const start = Math.min(typeof head === "number" ? head : 0, heads - 1) * tokens + place.prefix;
    return values.subarray(start, start + patches);
  }
  const map = new Float32Array(patches);
  for (let h = 0; h < heads; h++) {
    const start = h * tokens + place.prefix;
    for (let i = 0; i < patches; i++) {
      const value = values[start + i]!;
      map[i] = head === "mean" ? map[i]! + value / heads : Math.max(map[i]!, value);
    }
  }
  return map;
}

/** What a prefix token gets, by the same choice of heads as `mapOf`. */
export function prefixShare(rows: Rows, head: number | "mean" | "max", token: number): number {
  const { heads, tokens, values } = rows;
  if (typeof head === "number") return values[Math.min(head, heads - 1) * tokens + token]!;
  const all = Array.from({ length: heads }, (_, h) => values[h * tokens + token]!);
  return head === "max" ? Math.max(...all) : all.reduce((sum, value) => sum + value, 0) / heads;
}

/** The smallest set of patches that has `share` of all patches' mass. */
export function massSet(map: Float32Array, share: number): Uint8Array {
  const order = Array.from(map.keys()).sort((a, b) => map[b]! - map[a]!);
  const total = map.reduce((sum, value) => sum + value, 0);
  const set = new Uint8Array(map.length);
  let mass = 0;
  for (const patch of order) {
    if (mass >= share * total) break;
    mass += map[patch]!;
    set[patch] = 1;
  }
  return set;
}

/** The borders of a set of patches, as line segments from (column, row) to (column, row). */
export function borders(set: Uint8Array, rows: number, columns: number): [number, number, number, number][] {
  const has = (row: number, column: number) =>
    row >= 0 && row < rows && column >= 0 && column < columns && set[row * columns + column] === 1;
  const lines: [number, number, number, number][] = [];
  for (let row = 0; row <= rows; row++) {
    for (let column = 0; column <= columns; column++) {
      if (has(row, column) !== has(row - 1, column)) lines.push([column, row, column + 1, row]);
      if (has(row, column) !== has(row, column - 1)) lines.push([column, row, column, row + 1]);
    }
  }
  return lines;
}

const SAMPLE = 20_000;

/** Where the colours end: the largest value but for the highest half percent, in which single sinks lie; of many values
 * an even sample tells it, because it is needed at every frame. */
export function topOf(maps: Float32Array[]): number {
  const total = maps.reduce((n, map) => n + map.length, 0);
  const step = Math.ceil(total / SAMPLE);
  const sizes = new Float32Array(Math.ceil(total / step) + maps.length);
  let count = 0;
  for (const map of maps) {
    for (let i = 0; i < map.length; i += step) {
      const size = Math.abs(map[i]!);
      if (!Number.isNaN(size)) sizes[count++] = size; // NaN is where a network did not look
    }
  }
  const sorted = sizes.subarray(0, count).sort();
  return sorted[Math.min(count - 1, Math.floor(0.995 * count))] ?? 0;
}

/** A map in multiples of even attention, so that maps of unlike grids can be compared. */
export function timesEven(map: Float32Array): Float32Array {
  return map.map((value) => value * map.length);
}

/** `map - first`, on the grid of `map`; NaN where the first network did not look. */
export function differenceOf(
  map: Float32Array,
  place: Place,
  first: Float32Array,
  firstPlace: Place,
  image: Size,
): Float32Array {
  return map.map((value, patch) => {
    const other = patchAt(firstPlace, image, centreOf(place, image, patch));
    return other === null ? Number.NaN : value - first[other]!;
  });
}
