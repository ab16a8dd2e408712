// "Save picture": what is large on the page, as a PNG.

import { paintPicture } from "./draw";
import type { Shown, Store } from "./store";

const WIDTH = 900;
const MARGIN = 24;
const TITLE = 64;

export async function savePicture(store: Store): Promise<void> {
  const blob = await pictureOf(store);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${(store.image?.name ?? "image").replace(/^.*\//, "").replace(/\.\w+$/, "")}-attention.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function pictureOf(store: Store): Promise<Blob> {
  const { image, photo, view } = store;
  if (image === undefined || photo === undefined) throw new Error("The image is not there yet.");
  const all = store.networks.map((network) => store.shown(network));
  const maps = store.maps(all);
  const tops = store.tops(maps);
  const height = Math.round((WIDTH * image.height) / image.width);
  const canvas = new OffscreenCanvas(all.length * (WIDTH + MARGIN) + MARGIN, height + TITLE + MARGIN);
  const context = canvas.getContext("2d")!;
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  all.forEach((shown, i) => {
    context.save();
    context.translate(MARGIN + i * (WIDTH + MARGIN), TITLE);
    context.fillStyle = "#222";
    context.font = "600 26px system-ui, sans-serif";
    context.fillText(shown.network.name, 0, -32, WIDTH);
    context.font = "20px system-ui, sans-serif";
    context.fillText(`${describe(store, shown)}, 0 to ${tops[i]!.large.toPrecision(2)}`, 0, -8, WIDTH);
    const { place, query } = shown;
    paintPicture(
      context,
      {
        photo,
        size: image,
        place,
        map: maps[i]?.large,
        top: tops[i]!.large,
        signed: maps[i]?.signed ?? false,
        paint: view.paint,
        smooth: view.smooth,
        mass: view.mass,
        query: typeof query === "number" && place && query >= place.prefix ? query - place.prefix : null,
        box: view.box,
      },
      WIDTH,
      height,
    );
    context.restore();
  });
  return canvas.convertToBlob({ type: "image/png" });
}

/** What a network shows, in words. */
export function describe(store: Store, { layer, place, query }: Shown): string {
  const { head } = store.view;
  const heads = typeof head === "number" ? `head ${head}` : head === "max" ? "maximum over heads" : "mean over heads";
  const what = layer === "rollout" ? "rollout" : `layer ${layer}, ${heads}`;
  if (query === null || place === undefined) return what;
  if (query === "mean") return `${what}, from the mean query`;
  if (query < place.prefix) {
    const name = typeof store.query === "object" && "token" in store.query ? store.query.token : "a token";
    return `${what}, from ${name}`;
  }
  const patch = query - place.prefix;
  return `${what}, from row ${Math.floor(patch / place.columns)}, column ${patch % place.columns}`;
}
