// What the page asks for and what it gets, whoever answers: a server, a notebook's kernel, or a file.

export interface Network {
  id: string;
  name: string;
  layers: number;
  heads: number;
  /** Names of the tokens before the patches: "class", "register 1", … */
  prefix: string[];
  /** The token that stands for the image, or "mean", the mean of the patches' queries, where there is none. */
  query: number | "mean";
  classes: string[] | null;
  /** Epochs of which weights are kept; null where there is only one state. */
  epochs: number[] | null;
  /** The layers that can be asked for, where these are not all (files). */
  only?: number[];
  rollout?: boolean;
}

export interface ImageInfo {
  id: string;
  name: string;
  /** Size of the original in pixels. */
  width: number;
  height: number;
  label: string | null;
}

export interface State {
  networks: Network[];
  images: ImageInfo[];
  upload: boolean;
  causal: boolean;
  version: string;
}

export type Prediction = [name: string, probability: number][];

/** Where a network's patch grid lies on the original image, and what it predicts. */
export interface Place {
  rows: number;
  columns: number;
  /** Left, top, right, bottom in the original's pixels: what the network saw. */
  box: [number, number, number, number];
  /** How many tokens come before the patches. */
  prefix: number;
  prediction: Prediction | null;
  loss: number | null;
}

export type Layer = number | "rollout";

/** One row of attention of every head of a layer: `values` is (heads × tokens). */
export interface Rows {
  heads: number;
  tokens: number;
  values: Float32Array;
}

/** What single tokens receive, averaged over queries and heads. */
export interface Mass {
  sinks: [token: number, share: number][];
  prefix: number[];
}

export interface Causal {
  before: Prediction;
  after: Prediction;
  change: { prediction: number; layers: number[] };
}

export interface HeadChange {
  layer: number;
  head: number;
  change: number;
}

export interface HeadShare {
  layer: number;
  head: number;
  share: number;
}

export interface Drift {
  image: string;
  drift: number;
  /** Whether the two networks are right; null where label or classes are unknown. */
  right: [boolean | null, boolean | null];
}

export interface Epochs {
  epochs: number[] | null;
  accuracy: (number | null)[] | null;
  drift: (number | null)[] | null;
}

export interface Reply {
  meta: unknown;
  buffers: ArrayBuffer[];
}

/** Answers requests. A refusal is an Error whose message is a sentence for the user. */
export interface Source {
  ask(name: string, parameters: Record<string, unknown>, signal?: AbortSignal): Promise<Reply>;
  upload?(file: File): Promise<ImageInfo>;
}

/** A request of which only the JSON matters. */
export async function askFor<T>(
  source: Source,
  name: string,
  parameters: Record<string, unknown> = {},
  signal?: AbortSignal,
): Promise<T> {
  return (await source.ask(name, parameters, signal)).meta as T;
}

export async function askRows(source: Source, parameters: Record<string, unknown>): Promise<Rows> {
  const { meta, buffers } = await source.ask("rows", parameters);
  const { heads, tokens } = meta as { heads: number; tokens: number };
  const buffer = buffers[0];
  if (buffer === undefined || buffer.byteLength !== 4 * heads * tokens) {
    throw new Error("The reply's rows are not as long as it says.");
  }
  return { heads, tokens, values: new Float32Array(buffer) };
}

export async function askImage(source: Source, image: string, side: number | null): Promise<ImageBitmap> {
  const { meta, buffers } = await source.ask("image", side === null ? { image } : { image, side });
  const { type } = meta as { type: string };
  return createImageBitmap(new Blob(buffers, { type }));
}
