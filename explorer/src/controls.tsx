// What is chosen for all networks at once: layer, heads, query, and how it is painted.

import { useRef } from "preact/hooks";
import { savePicture } from "./picture";
import type { Store } from "./store";
import { layerOf, layersOf, MOST_NETWORKS, type Query, type View } from "./view";

export function Controls({ store }: { store: Store }) {
  return (
    <div class="controls">
      <LayerChoice store={store} />
      <HeadChoice store={store} />
      <QueryChoice store={store} />
      <div class="group right">
        {store.state!.networks.length > 1 && <NetworkChoice store={store} />}
        <Display store={store} />
        <Actions store={store} />
      </div>
    </div>
  );
}

interface ChoiceProps {
  label: string;
  chosen: boolean;
  choose: () => void;
}

function Choice({ label, chosen, choose }: ChoiceProps) {
  return (
    <button type="button" aria-pressed={chosen} onClick={choose}>
      {label}
    </button>
  );
}

function LayerChoice({ store }: { store: Store }) {
  const { view, deepest } = store;
  if (deepest === undefined) return null;
  const layers = layersOf(deepest);
  const at = view.layer === "rollout" ? layers.length - 1 : layers.indexOf(layerOf(deepest, view.layer) as number);
  return (
    <div class="group">
      <label>
        Layer
        <input
          type="range"
          min={0}
          max={layers.length - 1}
          value={at}
          aria-valuetext={`layer ${layers[at]}`}
          onInput={(event) => store.set({ layer: layers[Number(event.currentTarget.value)]! })}
        />
        <output>{view.layer === "rollout" ? "all" : layers[at]}</output>
      </label>
      {deepest.rollout !== false && (
        <Choice label="Rollout" chosen={view.layer === "rollout"} choose={() => store.toggleRollout()} />
      )}
    </div>
  );
}

function HeadChoice({ store }: { store: Store }) {
  const { head, layer } = store.view;
  if (layer === "rollout") return null;
  return (
    <div class="group" role="group" aria-label="Heads">
      <span aria-hidden="true">Heads</span>
      <Choice label="Mean" chosen={head === "mean"} choose={() => store.set({ head: "mean" })} />
      <Choice label="Maximum" chosen={head === "max"} choose={() => store.set({ head: "max" })} />
      {typeof head === "number" && <Choice label={`Head ${head}`} chosen choose={() => store.set({ head: "mean" })} />}
    </div>
  );
}

function QueryChoice({ store }: { store: Store }) {
  const { view } = store;
  const names = [...new Set(store.networks.flatMap((n) => n.prefix))];
  const chosen = (query: Query) => JSON.stringify(store.query) === JSON.stringify(query);
  const pin = (query: Query) => store.set({ query, pinned: true });
  return (
    <div class="group" role="group" aria-label="From which token">
      <span aria-hidden="true">From</span>
      {names.map((token) => (
        <Choice key={token} label={token} chosen={chosen({ token })} choose={() => pin({ token })} />
      ))}
      {(store.computes || store.networks.some((n) => n.query === "mean")) && (
        <Choice label="mean query" chosen={chosen("mean")} choose={() => pin("mean")} />
      )}
      <Choice
        label={view.pinned ? "pinned" : "the pointer"}
        chosen={view.pinned || store.preview !== null}
        choose={() => store.set({ pinned: !view.pinned, ...(view.pinned ? { query: store.first.query } : {}) })}
      />
    </div>
  );
}

function NetworkChoice({ store }: { store: Store }) {
  const { networks } = store.view;
  return (
    <details class="menu">
      <summary>Networks</summary>
      <div>
        {store.state!.networks.map(({ id, name }) => (
          <label key={id}>
            <input
              type="checkbox"
              checked={networks.includes(id)}
              disabled={networks.includes(id) ? networks.length === 1 : networks.length === MOST_NETWORKS}
              onChange={() => store.toggleNetwork(id)}
            />
            {name}
          </label>
        ))}
      </div>
    </details>
  );
}

export const PAINTS: [View["paint"], string][] = [
  ["colour", "Colour over the photograph"],
  ["light", "Light on the photograph"],
  ["map", "The map alone"],
];

function Display({ store }: { store: Store }) {
  const { view } = store;
  const flag = (key: "shared" | "smooth" | "difference", label: string) => (
    <label>
      <input type="checkbox" checked={view[key]} onChange={() => store.set({ [key]: !view[key] })} />
      {label}
    </label>
  );
  return (
    <details class="menu">
      <summary>Display</summary>
      <div>
        <fieldset>
          <legend>Attention as</legend>
          {PAINTS.map(([paint, label]) => (
            <label key={paint}>
              <input
                type="radio"
                name={`paint ${store.id}`}
                checked={view.paint === paint}
                onChange={() => store.set({ paint })}
              />
              {label}
            </label>
          ))}
        </fieldset>
        <label>
          Outline of the mass
          <input
            type="range"
            min={0}
            max={95}
            step={5}
            value={Math.round(100 * view.mass)}
            aria-valuetext={`${Math.round(100 * view.mass)} percent`}
            onInput={(event) => store.set({ mass: Number(event.currentTarget.value) / 100 })}
          />
          <output>{view.mass === 0 ? "none" : `${Math.round(100 * view.mass)} %`}</output>
        </label>
        {flag("shared", "One scale for all heads and networks")}
        {flag("smooth", "Smooth between patches")}
        {view.networks.length > 1 && flag("difference", "Differences from the first network")}
      </div>
    </details>
  );
}

function Actions({ store }: { store: Store }) {
  const file = useRef<HTMLInputElement>(null);
  const copy = async () => {
    store.remember();
    if (!navigator.clipboard) throw new Error("The browser lets this page copy nothing; the address bar has the view.");
    await navigator.clipboard.writeText(location.href);
    store.say("The address of this view is copied.");
  };
  return (
    <>
      {store.state!.upload && (
        <>
          <button type="button" onClick={() => file.current?.click()}>
            Add image
          </button>
          <input
            ref={file}
            type="file"
            accept="image/*"
            hidden
            aria-label="Image to add"
            onChange={(event) => {
              const chosen = event.currentTarget.files?.[0];
              event.currentTarget.value = "";
              if (chosen) void store.upload(chosen);
            }}
          />
        </>
      )}
      {store.address && (
        <button type="button" onClick={() => copy().catch((error: Error) => store.say(error.message))}>
          Copy link
        </button>
      )}
      <button type="button" onClick={() => savePicture(store).catch((error: Error) => store.say(error.message))}>
        Save picture
      </button>
    </>
  );
}
