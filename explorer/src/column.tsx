// One network: the picture, what it predicts, and all heads of the layer.

import { useLayoutEffect, useRef } from "preact/hooks";
import { type Picture, paintBar, paintCanvas } from "./draw";
import { centreOf, type Point, patchAt, topOf } from "./maps";
import type { Prediction } from "./protocol";
import type { Maps, Shown, Store } from "./store";
import type { Box } from "./view";

interface Props {
  store: Store;
  shown: Shown;
  maps: Maps | undefined;
  top: { large: number; heads: number };
  unlike: boolean;
}

export function Column({ store, shown, maps, top, unlike }: Props) {
  const { network, place, rows, layer, mass, ready } = shown;
  const { view } = store;
  const at = store.valueAt(shown);
  const own = typeof shown.query === "number" && place ? shown.query - place.prefix : -1;
  const picture = (map: Float32Array | undefined, end: number) => ({ map, top: end, signed: maps?.signed ?? false });
  return (
    <section class="network" aria-label={network.name} aria-busy={!ready}>
      <h2>{network.name}</h2>
      <Predicted store={store} prediction={place?.prediction ?? null} classes={network.classes} />
      <Interactive store={store} shown={shown}>
        <Canvas
          store={store}
          shown={shown}
          {...picture(maps?.large, top.large)}
          mass={view.mass}
          query={own >= 0 ? own : null}
          pointer={at?.patch ?? null}
          sinks={sinksOf(shown)}
          box={view.box}
        />
      </Interactive>
      <p class="readout">
        {at === null ? (
          <span>{noValue(store, shown)}</span>
        ) : (
          <span>
            row {Math.floor(at.patch / place!.columns)}, column {at.patch % place!.columns}:{" "}
            <b class="value">{at.value.toPrecision(4)}</b>
          </span>
        )}
        {network.prefix.map((name) => (
          <span key={name} class="share">
            {name} {percent(store.prefixShare(shown, name))}
          </span>
        ))}
        {mass?.sinks.length ? <span class="share">{mass.sinks.length} sinks ○</span> : null}
      </p>
      {maps !== undefined && <Bar store={store} maps={maps} top={top.large} unlike={unlike} />}
      {rows !== undefined && layer !== "rollout" && (
        <div class="heads" role="group" aria-label={`Heads of layer ${layer}`}>
          {maps?.heads.map((map, head) => (
            <button
              type="button"
              key={head}
              class="head"
              aria-pressed={view.head === head}
              onClick={() => store.set({ head: view.head === head ? "mean" : head })}
            >
              <Canvas
                store={store}
                shown={shown}
                {...picture(map, Number.isNaN(top.heads) ? topOf([map]) : top.heads)}
              />
              <span>head {head}</span>
            </button>
          ))}
        </div>
      )}
    </section>
  );
}

function Predicted({ store, prediction, classes }: { store: Store; prediction: Prediction | null; classes: unknown }) {
  if (prediction === null) return <p class="prediction quiet">{classes === null ? "no classes" : ""}</p>;
  const label = store.image?.label ?? null;
  const known = label !== null && Array.isArray(classes) && classes.includes(label);
  return (
    <ol class="prediction" aria-label="Prediction">
      {prediction.slice(0, 3).map(([name, p], i) => (
        <li key={name}>
          <span class="name">
            {name}
            {known && i === 0 ? (name === label ? " ✓" : ` ✗ ${label}`) : ""}
          </span>
          <span class="track">
            <span class="fill" style={{ width: `${100 * p}%` }} />
          </span>
          <span class="number">{percent(p)}</span>
        </li>
      ))}
    </ol>
  );
}

/** The picture as something to point at: hovering shows a patch's row, a click pins it, dragging draws a box. */
function Interactive({ store, shown, children }: { store: Store; shown: Shown; children: preact.ComponentChildren }) {
  const drag = useRef<Point | null>(null);
  const pointOf = (event: PointerEvent): Point => {
    const area = (event.currentTarget as HTMLElement).getBoundingClientRect();
    const share = (at: number) => Math.max(0, Math.min(0.9999, at));
    return { x: share((event.clientX - area.left) / area.width), y: share((event.clientY - area.top) / area.height) };
  };
  const move = (event: PointerEvent) => {
    const { place } = shown;
    const { image } = store;
    if (!place || !image) return;
    store.pointer = pointOf(event);
    if (drag.current) store.set({ box: boxOf(drag.current, store.pointer, image) });
    else if (event.pointerType === "mouse" || event.buttons > 0) {
      const patch = patchAt(place, image, store.pointer);
      store.preview = patch === null ? null : centreOf(place, image, patch);
      store.touch();
    }
  };
  const down = (event: PointerEvent) => {
    if (!store.boxing && !event.shiftKey) return;
    drag.current = pointOf(event);
    (event.currentTarget as HTMLElement).setPointerCapture(event.pointerId);
  };
  const up = (event: PointerEvent) => {
    const { place } = shown;
    const { image, view } = store;
    if (drag.current) {
      drag.current = null;
      store.boxing = false;
      store.set({ open: view.open.includes("box") ? view.open : [...view.open, "box"] });
    } else if (place && image) {
      const patch = patchAt(place, image, pointOf(event));
      if (patch === null) return;
      const again = view.pinned && shown.query === patch + place.prefix;
      store.set(
        again ? { pinned: false, query: store.first.query } : { pinned: true, query: centreOf(place, image, patch) },
      );
    }
  };
  const leave = () => {
    store.pointer = null;
    store.preview = null;
    store.touch();
  };
  return (
    <div
      class={store.boxing ? "picture boxing" : "picture"}
      role="application"
      aria-label={`Attention of ${shown.network.name}. Up and down change the layer, left and right the head, with shift they move the patch.`}
      tabIndex={0}
      onPointerMove={move}
      onPointerDown={down}
      onPointerUp={up}
      onPointerLeave={leave}
      onPointerCancel={leave}
    >
      {children}
    </div>
  );
}

function boxOf(a: Point, b: Point, image: { width: number; height: number }): Box {
  const xs = [a.x, b.x].map((x) => Math.round(x * image.width));
  const ys = [a.y, b.y].map((y) => Math.round(y * image.height));
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

type CanvasProps = Pick<Picture, "map" | "top" | "signed" | "mass" | "query" | "pointer" | "sinks" | "box"> & {
  store: Store;
  shown: Shown;
};

function Canvas({ store, shown, ...marks }: CanvasProps) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const { photo, image, view, width } = store;
  const { map, top, signed, mass, query, pointer, sinks, box } = marks;
  useLayoutEffect(() => {
    if (canvas.current === null || photo === undefined || image === undefined) return;
    const { paint, smooth } = view;
    paintCanvas(canvas.current, { photo, size: image, place: shown.place, paint, smooth, ...marks });
  }, [photo, shown.place, view.paint, view.smooth, width, map, top, signed, mass, query, pointer, sinks, box]);
  const ratio = image ? `${image.width} / ${image.height}` : "1";
  return <canvas ref={canvas} style={{ aspectRatio: ratio }} />;
}

function Bar({ store, maps, top, unlike }: { store: Store; maps: Maps; top: number; unlike: boolean }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const { paint } = store.view;
  useLayoutEffect(() => {
    if (canvas.current) paintBar(canvas.current, paint, maps.signed);
  }, [paint, maps.signed]);
  const number = (value: number) => `${value.toPrecision(2)}${unlike ? "×" : ""}`;
  return (
    <p
      class="bar"
      title={unlike ? "In multiples of even attention, because the patch grids differ" : "Attention to one patch"}
    >
      <span>{maps.signed ? `≤ −${number(top)}` : "0"}</span>
      <canvas ref={canvas} />
      <span>≥ {number(top)}</span>
    </p>
  );
}

function noValue(store: Store, { place, query, network }: Shown): string {
  if (place === undefined) return "…";
  if (query === null) return "This network does not see the point.";
  if (query !== "mean") return `from: ${network.prefix[query]}`;
  return store.query === "mean" ? "from: the mean query" : "from: the mean query, for want of such a token";
}

const noSinks: number[] = [];
const sinks = new WeakMap<object, number[]>();

/** The sinks that are patches; the same array for the same answer, so that nothing is painted again. */
function sinksOf({ mass, place }: Shown): number[] {
  if (mass === undefined || place === undefined) return noSinks;
  let patches = sinks.get(mass);
  if (patches === undefined) {
    patches = mass.sinks.map(([token]) => token - place.prefix).filter((patch) => patch >= 0);
    sinks.set(mass, patches);
  }
  return patches;
}

export function percent(share: number | null): string {
  if (share === null) return "";
  return `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
}
