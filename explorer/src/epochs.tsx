// A run over time: a slider over the epochs whose weights are kept, and curves below it.

import { useEffect, useState } from "preact/hooks";
import type { Epochs, Network } from "./protocol";
import type { Store } from "./store";

const COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#cc79a7"]; // Okabe and Ito's, safe for the colour-blind
const PAUSE = 700;

export function EpochPanel({ store }: { store: Store }) {
  const [playing, setPlaying] = useState(false);
  const { view, runs } = store;
  const epochs = [...new Set(runs.flatMap(({ network }) => network.epochs ?? []))].sort((a, b) => a - b);
  const at = view.epoch === null ? epochs.length - 1 : epochs.findLastIndex((e) => e <= view.epoch!);
  useEffect(() => {
    if (!playing) return;
    const timer = setTimeout(() => {
      if (at >= epochs.length - 1) setPlaying(false);
      else store.set({ epoch: epochs[at + 1]! });
    }, PAUSE);
    return () => clearTimeout(timer);
  }, [playing, at]);
  const play = () => {
    if (!playing && at >= epochs.length - 1) store.set({ epoch: epochs[0]! });
    setPlaying(!playing);
  };
  return (
    <div class="panel">
      {epochs.length === 0 ? (
        <p class="quiet">These runs keep the weights of one epoch.</p>
      ) : (
        <div class="group">
          <button type="button" onClick={play}>
            {playing ? "Stop" : "Play"}
          </button>
          <label class="wide">
            Epoch
            <input
              type="range"
              min={0}
              max={epochs.length - 1}
              value={at}
              aria-valuetext={`epoch ${epochs[at]}`}
              onInput={(event) => store.set({ epoch: epochs[Number(event.currentTarget.value)]! })}
            />
            <output>{view.epoch === null ? "the weights in use" : epochs[at]}</output>
          </label>
          <button type="button" aria-pressed={view.epoch === null} onClick={() => store.set({ epoch: null })}>
            The weights in use
          </button>
        </div>
      )}
      <div class="lists">
        <Curves title="accuracy" runs={runs} values={(e) => e.accuracy} epoch={view.epoch} />
        <Curves title="drift of attention" runs={runs} values={(e) => e.drift} epoch={view.epoch} />
      </div>
    </div>
  );
}

interface CurvesProps {
  title: string;
  runs: { network: Network; curves: Epochs }[];
  values: (epochs: Epochs) => (number | null)[] | null;
  epoch: number | null;
}

const WIDTH = 320;
const HEIGHT = 90;

function Curves({ title, runs, values, epoch }: CurvesProps) {
  const lines = runs.map(({ curves }) => {
    const series = values(curves);
    return (curves.epochs ?? []).flatMap((e, i): [number, number][] => {
      const value = series?.[i] ?? null;
      return value === null ? [] : [[e, value]];
    });
  });
  const all = lines.flat();
  if (all.length === 0) return null;
  const last = Math.max(...all.map(([e]) => e));
  const first = Math.min(...all.map(([e]) => e));
  const top = Math.max(...all.map(([, value]) => value), 1e-9);
  const x = (e: number) => (last === first ? 0 : ((e - first) / (last - first)) * WIDTH);
  const y = (value: number) => HEIGHT - (value / top) * (HEIGHT - 4);
  const spoken = runs.flatMap(({ network }, i) => {
    const [begun, ended] = [lines[i]![0], lines[i]!.at(-1)];
    return begun && ended ? [`${network.name} from ${begun[1].toPrecision(3)} to ${ended[1].toPrecision(3)}`] : [];
  });
  return (
    <figure class="curves">
      <figcaption>
        {title}, up to {top.toPrecision(3)}
      </figcaption>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={`${title}: ${spoken.join("; ")}`}>
        {epoch !== null && <line class="now" x1={x(epoch)} x2={x(epoch)} y1={0} y2={HEIGHT} />}
        {lines.map((line, i) => (
          <polyline
            key={runs[i]!.network.id}
            points={line.map(([e, value]) => `${x(e)},${y(value)}`).join(" ")}
            stroke={COLOURS[i % COLOURS.length]!}
          />
        ))}
      </svg>
      <p class="legend">
        {runs.map(
          ({ network }, i) =>
            lines[i]!.length > 0 && (
              <span key={network.id}>
                <i style={{ background: COLOURS[i % COLOURS.length]! }} /> {network.name}
              </span>
            ),
        )}
      </p>
    </figure>
  );
}
