// A page in one file: everything is there, rows are quantised to a byte a token.

import type { Network, Reply, Source, State } from "./protocol";

export interface FileData {
  state: State;
  images: Record<string, { meta: { type: string; width: number; height: number }; data: string }>;
  place: Record<string, unknown>;
  /** By "network/image/layer": rows of all queries; a value is a byte times its row's scale. */
  rows: Record<string, { heads: number; tokens: number; scale: string; data: string }>;
  mass?: Record<string, unknown>;
}

interface Block {
  heads: number;
  tokens: number;
  queries: number;
  scale: Float32Array;
  data: Uint8Array;
}

export class FileSource implements Source {
  private readonly blocks = new Map<string, Block>();

  constructor(private readonly file: FileData) {}

  async ask(name: string, parameters: Record<string, unknown>): Promise<Reply> {
    const { network, image, layer } = parameters as Record<string, string>;
    switch (name) {
      case "state":
        return { meta: this.state(), buffers: [] };
      case "image": {
        const { meta, data } = found(this.file.images, image!);
        return { meta, buffers: [bytes(data).buffer as ArrayBuffer] };
      }
      case "place":
        return { meta: found(this.file.place, `${network}/${image}`), buffers: [] };
      case "mass":
        return { meta: this.file.mass?.[`${network}/${image}/${layer}`] ?? { sinks: [], prefix: [] }, buffers: [] };
      case "rows": {
        const block = this.block(`${network}/${image}/${layer}`);
        const query = parameters.query as number | "mean";
        const values = row(block, query === "mean" ? block.tokens : query); // the mean query comes after all tokens
        return {
          meta: { heads: block.heads, tokens: block.tokens },
          buffers: [values.buffer as ArrayBuffer],
        };
      }
      default:
        throw new Error("This page is a file: it can show what it holds, and compute nothing more.");
    }
  }

  /** The state, with the layers that the file holds. */
  private state(): State {
    const keys = Object.keys(this.file.rows);
    const networks = this.file.state.networks.map((network): Network => {
      const layers = new Set(
        keys.filter((k) => k.startsWith(`${network.id}/`)).map((k) => k.slice(k.lastIndexOf("/") + 1)),
      );
      const only = [...layers].filter((l) => l !== "rollout").map(Number);
      return { ...network, only: only.sort((a, b) => a - b), rollout: layers.has("rollout"), epochs: null };
    });
    return { ...this.file.state, networks, upload: false, causal: false };
  }

  private block(key: string): Block {
    let block = this.blocks.get(key);
    if (block === undefined) {
      const { heads, tokens, scale, data } = found(this.file.rows, key);
      const quantised = bytes(data);
      const scales = new Float32Array(bytes(scale).buffer as ArrayBuffer);
      block = { heads, tokens, queries: scales.length / heads, scale: scales, data: quantised };
      this.blocks.set(key, block);
    }
    return block;
  }
}

function row({ heads, tokens, queries, scale, data }: Block, query: number): Float32Array {
  if (query >= queries) throw new Error("This file does not hold that query.");
  const values = new Float32Array(heads * tokens);
  for (let head = 0; head < heads; head++) {
    const start = (head * queries + query) * tokens;
    const factor = scale[head * queries + query]!;
    for (let token = 0; token < tokens; token++) values[head * tokens + token] = data[start + token]! * factor;
  }
  return values;
}

function found<T>(things: Record<string, T>, key: string): T {
  const thing = things[key];
  if (thing === undefined) throw new Error("This file does not hold that layer or image.");
  return thing;
}

function bytes(base64: string): Uint8Array {
  const text = atob(base64);
  const array = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) array[i] = text.charCodeAt(i);
  return array;
}
