// Colours that are even to the eye and safe for the colour-blind: matplotlib's inferno (CC0) for attention, blue and
// orange for differences.

type Colour = [red: number, green: number, blue: number];

const INFERNO =
  "0000040403120b0724150b37210c4a2f0a5b3d09654a0c6b57106e64156e71196e7d1e6d8a226a972766a32c61b0315bbc3754c73e4cd24644" +
  "db503be45a31eb6628f1731df68013f98e09fb9d07fcac11fbbc21f9cb35f5db4cf2ea69f3f68afcffa4";
const NEUTRAL: Colour = [38, 38, 40];
const LESS: Colour = [90, 170, 255];
const MORE: Colour = [255, 150, 50];

function table(hex: string): Colour[] {
  const byte = (i: number) => Number.parseInt(hex.slice(i, i + 2), 16);
  return Array.from({ length: hex.length / 6 }, (_, i) => [byte(6 * i), byte(6 * i + 2), byte(6 * i + 4)]);
}

const COLOURS = table(INFERNO);

function between(a: Colour, b: Colour, t: number): Colour {
  return [a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t];
}

function inferno(t: number): Colour {
  const at = Math.max(0, Math.min(1, t)) * (COLOURS.length - 1);
  const i = Math.min(COLOURS.length - 2, Math.floor(at));
  return between(COLOURS[i]!, COLOURS[i + 1]!, at - i);
}

export type Paint = "colour" | "light" | "map";

/** Red, green, blue and opacity (0–255) of `t`: in [0, 1], or in [-1, 1] for differences. */
export function colourOf(t: number, paint: Paint, signed: boolean): [number, number, number, number] {
  if (Number.isNaN(t)) return [128, 128, 128, 150];
  if (signed) {
    const size = Math.min(1, Math.abs(t));
    const hue = t < 0 ? LESS : MORE;
    if (paint === "map") return [...between(NEUTRAL, hue, size), 255];
    return [...hue, 235 * size];
  }
  const size = Math.max(0, Math.min(1, t));
  if (paint === "map") return [...inferno(size), 255];
  if (paint === "light") return [8, 8, 12, 225 * (1 - size) ** 1.5];
  return [...inferno(0.35 + 0.65 * size), 240 * size ** 0.9];
}

const STEPS = 512;
const palettes = new Map<string, Uint32Array>();

/** Paints values as pixels of an image; `top` is where the colours end. Colours come from a table, because thousands of
 * patches are painted at every frame. */
export function paintValues(values: Float32Array, top: number, paint: Paint, signed: boolean, image: ImageData): void {
  const key = `${paint} ${signed}`;
  let palette = palettes.get(key);
  if (palette === undefined) {
    const bytes = new Uint8ClampedArray(4 * (STEPS + 1)); // the last one is for NaN
    for (let i = 0; i <= STEPS; i++) {
      const share = i === STEPS ? Number.NaN : i / (STEPS - 1);
      bytes.set(colourOf(signed ? 2 * share - 1 : share, paint, signed), 4 * i);
    }
    palette = new Uint32Array(bytes.buffer);
    palettes.set(key, palette);
  }
  const pixels = new Uint32Array(image.data.buffer);
  const scale = top > 0 ? (STEPS - 1) / (signed ? 2 * top : top) : 0;
  const zero = signed ? (STEPS - 1) / 2 : 0;
  for (let i = 0; i < values.length; i++) {
    const value = values[i]!;
    const step = Number.isNaN(value) ? STEPS : Math.round(Math.max(0, Math.min(STEPS - 1, zero + value * scale)));
    pixels[i] = palette[step]!;
  }
}
