// The whole page, from the top to the bottom.

import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import { BoxPanel } from "./box";
import { CausalPanel } from "./causal";
import { Column } from "./column";
import { Controls } from "./controls";
import { EpochPanel } from "./epochs";
import { describe } from "./picture";
import type { Store } from "./store";
import { Strip } from "./strip";

export function App({ store }: { store: Store }) {
  useEffect(() => store.remember());
  const { state, message } = store;
  if (state === null) return <p class={message ? "error" : "quiet"}>{message || "Loading …"}</p>;
  const { image, networks } = store;
  const all = networks.map((network) => store.shown(network));
  const maps = store.maps(all);
  const tops = store.tops(maps);
  const unlike = store.unlike(all);
  const Title = store.address ? "h1" : "p"; // the heading of the page, where the explorer is the page
  return (
    <div class="page">
      <Strip store={store} />
      <Controls store={store} />
      <p class="message error" role="alert">
        {message}
      </p>
      <p class="message quiet" role="status">
        {store.note}
      </p>
      {image === undefined ? (
        <p class="empty">{state.upload ? "Drop an image here, or add one." : "There is no image."}</p>
      ) : (
        <>
          <Title class="caption">
            {image.name}
            {image.label !== null && <span class="quiet"> · {image.label}</span>}
          </Title>
          <div class={`networks n${all.length}`}>
            {all.map((shown, i) => (
              <Column
                key={shown.network.id}
                store={store}
                shown={shown}
                maps={maps[i]}
                top={tops[i]!}
                unlike={unlike}
              />
            ))}
          </div>
          <Spoken text={all[0] === undefined ? "" : describe(store, all[0])} />
        </>
      )}
      {store.runs.length > 0 && (
        <Panel store={store} name="epochs" title="Over the epochs">
          <EpochPanel store={store} />
        </Panel>
      )}
      {state.causal && state.networks.length > 1 && image !== undefined && (
        <Panel store={store} name="causal" title="What if it looked elsewhere?">
          <CausalPanel store={store} />
        </Panel>
      )}
      {store.computes && image !== undefined && (
        <Panel store={store} name="box" title="Which heads look into a box?">
          <BoxPanel store={store} />
        </Panel>
      )}
      <Panel store={store} name="keys" title="Keys">
        <Keys />
      </Panel>
    </div>
  );
}

/** A part of the page that opens; what it needs is asked for only while it is open. */
function Panel({
  store,
  name,
  title,
  children,
}: {
  store: Store;
  name: string;
  title: string;
  children: ComponentChildren;
}) {
  const { open } = store.view;
  const isOpen = open.includes(name);
  return (
    <section class="fold">
      <h2>
        <button
          type="button"
          aria-expanded={isOpen}
          onClick={() => store.set({ open: isOpen ? open.filter((n) => n !== name) : [...open, name] })}
        >
          {title}
        </button>
      </h2>
      {isOpen && children}
    </section>
  );
}

const KEYS: [string, string][] = [
  ["↑ ↓", "another layer; the wheel over a picture does it too"],
  ["← →", "another head, mean or maximum"],
  ["shift + ↑ ↓ ← →", "another patch"],
  ["enter", "pin the patch under the pointer, as a click does"],
  ["escape", "free the query"],
  ["c", "the class token's attention"],
  ["m", "the attention of the patches' mean query"],
  ["r", "rollout, and back"],
  ["v", "colour, light, or the map alone"],
  ["o", "an outline of the patches with 60 % of the mass, or none"],
  ["d", "differences from the first network"],
  ["[ ]", "the image before, the image after"],
  ["shift + drag", "draw a box"],
];

function Keys() {
  return (
    <dl class="keys">
      {KEYS.map(([key, what]) => (
        <div key={key}>
          <dt>{key}</dt>
          <dd>{what}</dd>
        </div>
      ))}
    </dl>
  );
}

/** Tells a screen reader what is shown, once it has been the same for a moment. */
function Spoken({ text }: { text: string }) {
  const [said, setSaid] = useState("");
  useEffect(() => {
    const timer = setTimeout(() => setSaid(text), 500);
    return () => clearTimeout(timer);
  }, [text]);
  return (
    <p class="spoken" aria-live="polite">
      {said}
    </p>
  );
}
