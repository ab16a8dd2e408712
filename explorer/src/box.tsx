// Which heads look into a box.

import { useState } from "preact/hooks";
import { useAnswer } from "./answer";
import { HeadList } from "./causal";
import { percent } from "./column";
import { askFor, type HeadShare } from "./protocol";
import type { Store } from "./store";
import type { Box } from "./view";

const SIDES = ["left", "top", "right", "bottom"];

export function BoxPanel({ store }: { store: Store }) {
  const [everywhere, setEverywhere] = useState(false);
  const { view, image, source, state, networks } = store;
  if (image === undefined) return null;
  const { box } = view;
  const whole = box !== null && box[2] > box[0] && box[3] > box[1];
  const others = everywhere ? state!.images.map(({ id }) => id).filter((id) => id !== image.id) : [];
  const images = [image.id, ...others]; // the box is one of the first
  const asked = whole ? { images, layer: null, box } : null;
  const key = asked && JSON.stringify([view.networks, asked]);
  const answer = useAnswer(key, (signal) =>
    Promise.all(
      view.networks.map(async (network) => {
        const { heads } = await askFor<{ heads: HeadShare[] }>(source, "box", { network, ...asked }, signal);
        return { network, heads };
      }),
    ),
  );
  const change = (side: number, value: number) => {
    const next: Box = box ? [...box] : [0, 0, image.width, image.height];
    next[side] = Math.max(0, Math.min(side % 2 ? image.height : image.width, Math.round(value)));
    store.set({ box: next });
  };
  return (
    <div class="panel">
      <div class="group">
        <button type="button" aria-pressed={store.boxing} onClick={() => store.drawBox(!store.boxing)}>
          {store.boxing ? "Drag over the picture" : "Draw a box"}
        </button>
        {SIDES.map((name, side) => (
          <label key={name}>
            {name}
            <input
              type="number"
              min={0}
              max={side % 2 ? image.height : image.width}
              value={box?.[side] ?? ""}
              onChange={(event) => change(side, Number(event.currentTarget.value))}
            />
          </label>
        ))}
        <button type="button" disabled={box === null} onClick={() => store.set({ box: null })}>
          No box
        </button>
        {state!.images.length > 1 && (
          <label>
            <input type="checkbox" checked={everywhere} onChange={() => setEverywhere(!everywhere)} />
            over all images
          </label>
        )}
      </div>
      {box === null && (
        <p class="quiet">Drag with shift over a picture, or draw a box: the heads that look there are listed.</p>
      )}
      {answer.busy && <p class="quiet">Counting …</p>}
      {answer.error && <p class="error">{answer.error}</p>}
      <div class="lists">
        {answer.value?.map(({ network, heads }) => (
          <HeadList
            key={network}
            store={store}
            caption={`${networks.find((n) => n.id === network)?.name ?? ""}: mass in the box`}
            heads={heads.map(({ layer, head, share }) => ({ layer, head, value: share }))}
            number={percent}
          />
        ))}
      </div>
    </div>
  );
}
