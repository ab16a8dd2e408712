// What would change if a network looked elsewhere: another's attention is put in the place of its own.

import { useState } from "preact/hooks";
import { useAnswer } from "./answer";
import { percent } from "./column";
import { askFor, type Causal, type HeadChange, type Prediction } from "./protocol";
import type { Store } from "./store";
import type { View } from "./view";

export function CausalPanel({ store }: { store: Store }) {
  const { view, source, state } = store;
  const { student, teacher, image, layer, head, replaced } = view;
  const missing = missingFor(view);
  const asked = replaced !== null && missing[replaced] === "" ? { student, teacher, image, ...part(view) } : null;
  const answer = useAnswer(asked && JSON.stringify(asked), (signal) =>
    askFor<Causal>(source, "causal", asked ?? {}, signal),
  );
  const choices: [NonNullable<View["replaced"]>, string][] = [
    ["head", typeof head === "number" && layer !== "rollout" ? `Head ${head} of layer ${layer}` : "One head"],
    ["layer", layer === "rollout" ? "One layer" : `Layer ${layer}`],
    ["all", "All layers"],
  ];
  const select = (key: "student" | "teacher", label: string) => (
    <label>
      {label}
      <select value={view[key]} onChange={(event) => store.set({ [key]: event.currentTarget.value })}>
        {state!.networks.map(({ id, name }) => (
          <option key={id} value={id}>
            {name}
          </option>
        ))}
      </select>
    </label>
  );
  return (
    <div class="panel">
      <div class="group">
        {select("teacher", "Put the attention of")}
        {select("student", "into")}
        {choices.map(([name, label]) => (
          <button
            type="button"
            key={name}
            aria-pressed={replaced === name}
            disabled={missing[name] !== ""}
            title={missing[name]}
            onClick={() => store.set({ replaced: replaced === name ? null : name })}
          >
            {label}
          </button>
        ))}
      </div>
      {student === teacher && <p class="quiet">Choose two networks: a network's own attention changes nothing.</p>}
      {replaced !== null && missing[replaced] !== "" && <p class="quiet">{missing[replaced]}</p>}
      {answer.error && <p class="error">{answer.error}</p>}
      {answer.value && <Outcome causal={answer.value} busy={answer.busy} />}
      <HeadTable store={store} />
    </div>
  );
}

/** Why a part can't be replaced; empty where it can. */
function missingFor({ layer, head }: View): Record<NonNullable<View["replaced"]>, string> {
  const noLayer = layer === "rollout" ? "Choose a layer: a rollout is of all layers." : "";
  return {
    head: noLayer || (typeof head === "number" ? "" : "Choose a head below a picture."),
    layer: noLayer,
    all: "",
  };
}

function part({ replaced, layer, head }: View): { layer: View["layer"] | "all"; head: number | null } {
  if (replaced === "all") return { layer: "all", head: null };
  return { layer, head: replaced === "head" && typeof head === "number" ? head : null };
}

function Outcome({ causal, busy }: { causal: Causal; busy: boolean }) {
  const { before, after, change } = causal;
  const names = [...new Set([...after, ...before].map(([name]) => name))];
  const of = (prediction: Prediction, name: string) => prediction.find(([n]) => n === name)?.[1];
  const shown = (p: number | undefined) => (p === undefined ? "–" : percent(p));
  const most = Math.max(...change.layers, 1e-9);
  return (
    <div class="outcome" aria-busy={busy}>
      <table>
        <caption>Prediction; it moves by {change.prediction.toPrecision(3)} nats (Jensen–Shannon)</caption>
        <thead>
          <tr>
            <th scope="col">class</th>
            <th scope="col">before</th>
            <th scope="col">after</th>
          </tr>
        </thead>
        <tbody>
          {names.map((name) => (
            <tr key={name}>
              <th scope="row">{name}</th>
              <td>{shown(of(before, name))}</td>
              <td>{shown(of(after, name))}</td>
            </tr>
          ))}
        </tbody>
      </table>
      <figure>
        <figcaption>How far each layer's attention moves (nats)</figcaption>
        <div
          class="columns"
          role="img"
          aria-label={change.layers.map((value, layer) => `layer ${layer}: ${value.toPrecision(2)}`).join(", ")}
        >
          {change.layers.map((value, layer) => (
            <span key={`${layer}`} title={`layer ${layer}: ${value.toPrecision(3)}`}>
              <i style={{ height: `${(100 * value) / most}%` }} />
              <small>{layer}</small>
            </span>
          ))}
        </div>
      </figure>
    </div>
  );
}

function HeadTable({ store }: { store: Store }) {
  const { view, source } = store;
  const { student, teacher, image } = view;
  const key = JSON.stringify({ student, teacher, image });
  const [asked, setAsked] = useState("");
  const answer = useAnswer(asked === key ? key : null, async (signal) => {
    return (await askFor<{ heads: HeadChange[] }>(source, "heads", { student, teacher, image }, signal)).heads;
  });
  if (asked !== key) {
    return (
      <p>
        <button type="button" disabled={student === teacher} onClick={() => setAsked(key)}>
          Rank the heads by what they change
        </button>
      </p>
    );
  }
  return (
    <>
      {answer.busy && <p class="quiet">One forward for each head …</p>}
      {answer.error && <p class="error">{answer.error}</p>}
      {answer.value && (
        <HeadList
          store={store}
          caption="Heads by how far the prediction moves (nats)"
          heads={answer.value.map(({ layer, head, change }) => ({ layer, head, value: change }))}
          number={(value) => value.toPrecision(2)}
        />
      )}
    </>
  );
}

interface HeadListProps {
  store: Store;
  caption: string;
  heads: { layer: number; head: number; value: number }[];
  number: (value: number) => string;
}

const FIRST = 8;

/** Heads with a value each, the largest first; a click looks at one. */
export function HeadList({ store, caption, heads, number }: HeadListProps) {
  const [all, setAll] = useState(false);
  const sorted = [...heads].sort((a, b) => b.value - a.value);
  const most = sorted[0]?.value ?? 0;
  return (
    <figure class="headlist">
      <figcaption>{caption}</figcaption>
      <ol>
        {sorted.slice(0, all ? undefined : FIRST).map(({ layer, head, value }) => (
          <li key={`${layer} ${head}`}>
            <button
              type="button"
              aria-pressed={store.view.layer === layer && store.view.head === head}
              onClick={() => store.set({ layer, head })}
            >
              <span class="name">
                layer {layer}, head {head}
              </span>
              <span class="track">
                <span class="fill" style={{ width: `${most > 0 ? (100 * value) / most : 0}%` }} />
              </span>
              <span class="number">{number(value)}</span>
            </button>
          </li>
        ))}
      </ol>
      {sorted.length > FIRST && (
        <button type="button" onClick={() => setAll(!all)}>
          {all ? "fewer" : `all ${sorted.length}`}
        </button>
      )}
    </figure>
  );
}
