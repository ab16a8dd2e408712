// The images, sorted and filtered by what two networks make of them.

import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { useAnswer } from "./answer";
import { askFor, type Drift, type ImageInfo } from "./protocol";
import type { Store } from "./store";
import type { View } from "./view";

const SHOWN = 60;

export function Strip({ store }: { store: Store }) {
  const [most, setMost] = useState(SHOWN);
  const { view, state, source } = store;
  const images = state!.images;
  const [a, b = a] = view.networks;
  const wanted = (view.sort === "drift" || view.filter !== "all") && images.length > 1;
  const answer = useAnswer(wanted ? `${a} ${b} ${images.length}` : null, async (signal) => {
    const { images: drifts } = await askFor<{ images: Drift[] }>(source, "drift", { a, b }, signal);
    return new Map(drifts.map((drift) => [drift.image, drift]));
  });
  if (images.length < 2) return null;
  const chosen = sorted(images, answer.value, view);
  return (
    <nav class="strip" aria-label="Images">
      <Sorting store={store} busy={answer.busy} error={answer.error} />
      <ul>
        {chosen.slice(0, most).map((image) => (
          <li key={image.id}>
            <Thumb store={store} image={image} drift={answer.value?.get(image.id)} />
          </li>
        ))}
        {chosen.length > most && (
          <li>
            <button type="button" onClick={() => setMost(most + SHOWN)}>
              {chosen.length - most} more
            </button>
          </li>
        )}
        {chosen.length === 0 && <li class="quiet">No image is like that.</li>}
      </ul>
    </nav>
  );
}

function sorted(images: ImageInfo[], drifts: Map<string, Drift> | undefined, { sort, filter }: View): ImageInfo[] {
  if (drifts === undefined) return images;
  const kept = images.filter(({ id }) => {
    const [first, second] = drifts.get(id)?.right ?? [null, null];
    if (filter === "right") return first === true && second === true;
    if (filter === "wrong") return second === false;
    if (filter === "unlike") return first !== null && second !== null && first !== second;
    return true;
  });
  const drift = ({ id }: ImageInfo) => drifts.get(id)?.drift ?? Number.NEGATIVE_INFINITY;
  return sort === "drift" ? kept.sort((x, y) => drift(y) - drift(x)) : kept;
}

function Sorting({ store, busy, error }: { store: Store; busy: boolean; error: string }) {
  const { view, networks } = store;
  const [first, second = first] = networks.map((n) => n.name);
  const two = networks.length > 1;
  return (
    <div class="sorting" aria-busy={busy}>
      {two && (
        <label>
          Sort
          <select value={view.sort} onChange={(e) => store.set({ sort: e.currentTarget.value as View["sort"] })}>
            <option value="given">as given</option>
            <option value="drift">
              by drift from {first} to {second}
            </option>
          </select>
        </label>
      )}
      {networks.some((n) => n.classes !== null) && (
        <label>
          Show
          <select value={view.filter} onChange={(e) => store.set({ filter: e.currentTarget.value as View["filter"] })}>
            <option value="all">all images</option>
            <option value="right">{two ? "where both are right" : "where it is right"}</option>
            <option value="wrong">where {second} is wrong</option>
            {two && <option value="unlike">where one of both is right</option>}
          </select>
        </label>
      )}
      {busy && <span class="quiet">comparing …</span>}
      {error && <span class="error">{error}</span>}
    </div>
  );
}

function Thumb({ store, image, drift }: { store: Store; image: ImageInfo; drift: Drift | undefined }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const [seen, setSeen] = useState(false);
  const photo = seen ? store.thumbs.get(encodeURIComponent(image.id)) : undefined;
  const chosen = store.view.image === image.id;
  useLayoutEffect(() => {
    if (canvas.current === null || seen) return;
    const observer = new IntersectionObserver((entries) => entries.some((e) => e.isIntersecting) && setSeen(true));
    observer.observe(canvas.current);
    return () => observer.disconnect();
  }, [seen]);
  useLayoutEffect(() => {
    if (canvas.current === null || photo === undefined) return;
    const side = Math.min(photo.width, photo.height); // the middle square
    const [x, y] = [(photo.width - side) / 2, (photo.height - side) / 2];
    canvas.current.getContext("2d")?.drawImage(photo, x, y, side, side, 0, 0, 96, 96);
  }, [photo]);
  const name = drift ? `${image.name}, drift ${drift.drift.toPrecision(2)}` : image.name;
  return (
    <button
      type="button"
      class="thumb"
      aria-current={chosen}
      aria-label={name}
      title={name}
      onClick={() => store.set({ image: image.id, box: null })}
    >
      <canvas ref={canvas} width={96} height={96} />
      {drift && <span>{drift.drift.toPrecision(2)}</span>}
    </button>
  );
}
