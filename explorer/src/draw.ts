// Painting on canvases: a photograph, attention over it, and marks.

import { colourOf, type Paint, paintValues } from "./colours";
import { borders, massSet } from "./maps";
import type { Place } from "./protocol";
import type { Box } from "./view";

type Context = CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D;

export interface Picture {
  photo: ImageBitmap;
  /** The original's size in pixels, in which a place's box is given. */
  size: { width: number; height: number };
  place: Place | undefined;
  map: Float32Array | undefined;
  /** Where the colours end. */
  top: number;
  signed: boolean;
  paint: Paint;
  smooth: boolean;
  /** The share of mass that is outlined. */
  mass?: number;
  /** Patches with a frame: the query's and the pointer's. */
  query?: number | null;
  pointer?: number | null;
  sinks?: number[];
  box?: Box | null;
}

const scaled = new WeakMap<ImageBitmap, Map<string, OffscreenCanvas>>();
let grid: OffscreenCanvas | undefined;

/** Sizes a canvas to the pixels that it covers and paints the picture on it. */
export function paintCanvas(canvas: HTMLCanvasElement, picture: Picture): void {
  const width = Math.round(canvas.clientWidth * devicePixelRatio);
  if (width === 0) return;
  const height = Math.max(1, Math.round((width * picture.size.height) / picture.size.width));
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const context = canvas.getContext("2d");
  if (context) paintPicture(context, picture, width, height);
}

export function paintPicture(context: Context, picture: Picture, width: number, height: number): void {
  const { photo, place, map, paint } = picture;
  const grey = paint === "colour" && map !== undefined;
  context.drawImage(photoAt(photo, width, height, grey), 0, 0);
  if (place === undefined) return;
  const [sx, sy] = [width / picture.size.width, height / picture.size.height];
  const [left, top, right, bottom] = place.box;
  const area = { x: left * sx, y: top * sy, width: (right - left) * sx, height: (bottom - top) * sy };
  shadeUnseen(context, area, width, height);
  const columnWidth = area.width / place.columns;
  const rowHeight = area.height / place.rows;
  const at = (patch: number) => ({
    x: area.x + (patch % place.columns) * columnWidth,
    y: area.y + Math.floor(patch / place.columns) * rowHeight,
  });
  if (map !== undefined) {
    paintMap(context, picture, place, map, area);
    if (picture.mass && !picture.signed) {
      const lines = borders(massSet(map, picture.mass), place.rows, place.columns);
      context.beginPath();
      for (const [c1, r1, c2, r2] of lines) {
        context.moveTo(area.x + c1 * columnWidth, area.y + r1 * rowHeight);
        context.lineTo(area.x + c2 * columnWidth, area.y + r2 * rowHeight);
      }
      twoLines(context, width / 400);
    }
  }
  for (const sink of picture.sinks ?? []) {
    const { x, y } = at(sink);
    context.beginPath();
    context.arc(x + columnWidth / 2, y + rowHeight / 2, Math.max(3, 0.35 * columnWidth), 0, 2 * Math.PI);
    twoLines(context, width / 500);
  }
  frame(context, picture.pointer, at, columnWidth, rowHeight, width / 500);
  frame(context, picture.query, at, columnWidth, rowHeight, width / 220);
  if (picture.box) {
    const [l, t, r, b] = picture.box;
    context.beginPath();
    context.rect(l * sx, t * sy, (r - l) * sx, (b - t) * sy);
    twoLines(context, width / 300);
  }
}

/** A bar of the colours from nothing to the top, as they look over a middle grey. */
export function paintBar(canvas: HTMLCanvasElement, paint: Paint, signed: boolean): void {
  canvas.width = 128;
  canvas.height = 1;
  const context = canvas.getContext("2d");
  if (!context) return;
  for (let i = 0; i < canvas.width; i++) {
    const share = i / (canvas.width - 1);
    context.fillStyle = paint === "light" && !signed ? "#fff" : "#777";
    context.fillRect(i, 0, 1, 1);
    const [r, g, b, a] = colourOf(signed ? 2 * share - 1 : share, paint, signed);
    context.fillStyle = `rgba(${r}, ${g}, ${b}, ${a / 255})`;
    context.fillRect(i, 0, 1, 1);
  }
}

/** The photograph in the size of a canvas; kept, because it is painted at every frame. */
function photoAt(photo: ImageBitmap, width: number, height: number, grey: boolean): OffscreenCanvas {
  let sizes = scaled.get(photo);
  if (sizes === undefined) {
    sizes = new Map();
    scaled.set(photo, sizes);
  }
  const key = `${width} ${height} ${grey}`;
  let canvas = sizes.get(key);
  if (canvas === undefined) {
    canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d")!;
    context.imageSmoothingQuality = "high";
    context.fillStyle = "#fff"; // under what is transparent
    context.fillRect(0, 0, width, height);
    context.drawImage(photo, 0, 0, width, height);
    if (grey) {
      context.globalCompositeOperation = "saturation";
      context.fillStyle = "#000";
      context.fillRect(0, 0, width, height);
      context.globalCompositeOperation = "source-over";
      context.fillStyle = "rgba(0, 0, 0, 0.18)";
      context.fillRect(0, 0, width, height);
    }
    if (sizes.size > 8) sizes.clear(); // sizes of a window that was resized
    sizes.set(key, canvas);
  }
  return canvas;
}

interface Area {
  x: number;
  y: number;
  width: number;
  height: number;
}

function paintMap(context: Context, picture: Picture, place: Place, map: Float32Array, area: Area): void {
  const { columns, rows } = place;
  const image = new ImageData(columns, rows);
  paintValues(map, picture.top, picture.paint, picture.signed, image);
  grid ??= new OffscreenCanvas(1, 1);
  grid.width = columns;
  grid.height = rows;
  grid.getContext("2d")!.putImageData(image, 0, 0);
  context.imageSmoothingEnabled = picture.smooth;
  context.imageSmoothingQuality = "high";
  context.drawImage(grid, area.x, area.y, area.width, area.height);
}

/** What a crop took away is dimmed. */
function shadeUnseen(context: Context, area: Area, width: number, height: number): void {
  context.beginPath();
  context.rect(0, 0, width, height);
  context.rect(area.x, area.y, area.width, area.height);
  context.fillStyle = "rgba(128, 128, 128, 0.65)";
  context.fill("evenodd");
}

function frame(
  context: Context,
  patch: number | null | undefined,
  at: (patch: number) => { x: number; y: number },
  width: number,
  height: number,
  line: number,
): void {
  if (patch === null || patch === undefined) return;
  const { x, y } = at(patch);
  context.beginPath();
  context.rect(x, y, width, height);
  twoLines(context, line);
}

/** White on black, so that it is seen on every photograph. */
function twoLines(context: Context, width: number): void {
  const line = Math.max(1, width);
  context.strokeStyle = "rgba(0, 0, 0, 0.75)";
  context.lineWidth = line + 2;
  context.stroke();
  context.strokeStyle = "#fff";
  context.lineWidth = line;
  context.stroke();
}
