// What a person looks at. All of it is in the address, so that a view can be sent.

import type { Layer, Network, State } from "./protocol";

/** Whose row of attention is shown: a prefix token's by name, the mean of all patches', or that of the patch at a point
 * of the original image, as shares of its width and height. */
export type Query = { token: string } | "mean" | { x: number; y: number };
export type Box = [left: number, top: number, right: number, bottom: number];

export interface View {
  image: string;
  networks: string[];
  layer: Layer;
  head: number | "mean" | "max";
  query: Query;
  /** Whether the query stays while the pointer moves. */
  pinned: boolean;
  epoch: number | null;
  /** Attention as colour over the photograph, as light on it, or alone. */
  paint: "colour" | "light" | "map";
  /** The share of the patches' mass that is outlined; 0 outlines nothing. */
  mass: number;
  shared: boolean;
  smooth: boolean;
  difference: boolean;
  /** In the original's pixels. */
  box: Box | null;
  /** Whose attention is put into which network, and how much of it. */
  teacher: string;
  student: string;
  replaced: "head" | "layer" | "all" | null;
  sort: "given" | "drift";
  filter: "all" | "right" | "wrong" | "unlike";
  open: string[];
}

export const MOST_NETWORKS = 4;

export function firstView(state: State): View {
  const networks = state.networks.slice(0, MOST_NETWORKS).map((n) => n.id);
  const first = state.networks[0];
  const layers = first === undefined ? [] : layersOf(first);
  return {
    image: state.images[0]?.id ?? "",
    networks,
    layer: layers.at(-1) ?? 0,
    head: "mean",
    query: standing(first),
    pinned: false,
    epoch: null,
    paint: "colour",
    mass: 0,
    shared: true,
    smooth: false,
    difference: false,
    box: null,
    teacher: networks[0] ?? "",
    student: networks[1] ?? networks[0] ?? "",
    replaced: null,
    sort: "given",
    filter: "all",
    open: [],
  };
}

/** The query that stands for the image. */
function standing(network: Network | undefined): Query {
  const token = typeof network?.query === "number" ? network.prefix[network.query] : undefined;
  return token === undefined ? "mean" : { token };
}

export function layersOf(network: Network): number[] {
  return network.only ?? Array.from({ length: network.layers }, (_, i) => i);
}

/** The network's layer that is nearest to the one looked at. */
export function layerOf(network: Network, layer: Layer): Layer {
  if (layer === "rollout") return layer;
  const layers = layersOf(network);
  return layers.reduce((best, l) => (Math.abs(l - layer) < Math.abs(best - layer) ? l : best), layers[0] ?? 0);
}

/** The view as an address's hash; what is as at first is left out. */
export function hashOf(view: View, first: View): string {
  const words = new URLSearchParams();
  for (const key of Object.keys(first) as (keyof View)[]) {
    const word = wordOf(view[key]);
    if (word !== wordOf(first[key])) words.set(key, word);
  }
  return words.toString();
}

function wordOf(value: View[keyof View]): string {
  if (value === null) return "";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value)) return value.join(",");
  if (typeof value === "object") return "token" in value ? value.token : `${value.x.toFixed(4)},${value.y.toFixed(4)}`;
  return String(value);
}

/** The view that a hash names. What it says wrongly, or of things that are not there, stays as at first. */
export function viewOf(hash: string, first: View, state: State): View {
  const words = new URLSearchParams(hash);
  const view = { ...first };
  const read = <K extends keyof View>(key: K, parsed: (word: string) => View[K] | undefined) => {
    const word = words.get(key);
    const value = word === null ? undefined : parsed(word);
    if (value !== undefined) view[key] = value;
  };
  const known = (id: string) => (state.networks.some((n) => n.id === id) ? id : undefined);
  read("image", (w) => (state.images.some((i) => i.id === w) ? w : undefined));
  read("networks", (w) => {
    const ids = [...new Set(w.split(","))].filter(known).slice(0, MOST_NETWORKS);
    return ids.length > 0 ? ids : undefined;
  });
  read("layer", (w) => (w === "rollout" ? w : natural(w)));
  read("head", (w) => (w === "mean" || w === "max" ? w : natural(w)));
  read("query", (w) => queryOf(w, state));
  read("pinned", flag);
  read("epoch", (w) => (w === "" ? null : natural(w)));
  read("paint", oneOf(["colour", "light", "map"]));
  read("mass", (w) => (Number(w) >= 0 && Number(w) <= 0.95 ? Number(w) : undefined));
  read("shared", flag);
  read("smooth", flag);
  read("difference", flag);
  read("box", (w) => {
    const box = numbers(w);
    return box.length === 4 ? (box as Box) : undefined;
  });
  read("teacher", known);
  read("student", known);
  read("replaced", oneOf(["head", "layer", "all"]));
  read("sort", oneOf(["given", "drift"]));
  read("filter", oneOf(["all", "right", "wrong", "unlike"]));
  read("open", (w) => w.split(",").filter((name) => PANELS.includes(name)));
  return view;
}

export const PANELS = ["epochs", "causal", "box", "keys"];

function queryOf(word: string, state: State): Query | undefined {
  if (word === "mean") return word;
  if (state.networks.some((n) => n.prefix.includes(word))) return { token: word };
  const [x, y] = numbers(word);
  return x !== undefined && y !== undefined && x >= 0 && x <= 1 && y >= 0 && y <= 1 ? { x, y } : undefined;
}

function natural(word: string): number | undefined {
  return /^\d{1,4}$/.test(word) ? Number(word) : undefined;
}

function numbers(word: string): number[] {
  const found = word.split(",").map((w) => (w === "" ? Number.NaN : Number(w)));
  return found.every(Number.isFinite) ? found : [];
}

function flag(word: string): boolean | undefined {
  return word === "yes" ? true : word === "no" ? false : undefined;
}

function oneOf<const T extends string>(names: readonly T[]): (word: string) => T | undefined {
  return (word) => names.find((name) => name === word);
}
