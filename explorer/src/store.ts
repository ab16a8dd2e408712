// What is known and what is looked at; asks the source for what a view needs.

import { Cache, Newest, Things } from "./loader";
import { centreOf, differenceOf, mapOf, type Point, patchAt, prefixShare, timesEven, topOf } from "./maps";
import type { Epochs, ImageInfo, Layer, Mass, Network, Place, Rows, Source, State } from "./protocol";
import { askFor, askImage, askRows } from "./protocol";
import { firstView, hashOf, layerOf, layersOf, MOST_NETWORKS, type Query, type View, viewOf } from "./view";

interface RowsWish {
  key: string;
  image: string;
  layer: Layer;
  query: number | "mean";
  epoch: number | null;
}

/** What one network shows at the moment. */
export interface Shown {
  network: Network;
  layer: Layer;
  place: Place | undefined;
  /** The token whose row is wished for, "mean", or null where the network does not see the point. */
  query: number | "mean" | null;
  /** The newest row that is there; of an earlier query while the newest is under way. */
  rows: Rows | undefined;
  ready: boolean;
  mass: Mass | undefined;
}

/** Maps of one network that are painted: a large one, and one a head; and where their colours end. */
export interface Maps {
  large: Float32Array;
  heads: Float32Array[];
  signed: boolean;
}

const CACHED_BYTES = 64e6;

export class Store {
  private static count = 0;
  state: State | null = null;
  view!: View;
  first!: View;
  /** Where the pointer is on the image. */
  pointer: Point | null = null;
  /** The query under the pointer, while none is pinned. */
  preview: Query | null = null;
  /** Whether the pointer draws a box. */
  boxing = false;
  message = "";
  private readonly feeds = new Map<string, Newest<RowsWish, Rows>>();
  /** What was done, in a sentence. */
  note = "";
  /** The explorer's width; canvases are painted again when it changes. */
  width = 0;
  /** Tells the controls of several explorers apart. */
  readonly id = ++Store.count;
  private painted: { of: unknown[]; maps: (Maps | undefined)[] } = { of: [], maps: [] };
  private readonly cache = new Cache<Rows>(CACHED_BYTES, (rows) => rows.values.byteLength);
  private readonly places: Things<Place>;
  private readonly masses: Things<Mass>;
  private readonly photos: Things<ImageBitmap>;
  readonly thumbs: Things<ImageBitmap>;
  private readonly curves: Things<Epochs>;

  constructor(
    readonly source: Source,
    private readonly changed: () => void,
    readonly address: boolean,
  ) {
    const arrived = (error?: Error) => {
      if (error) this.message = error.message;
      this.changed();
    };
    const parts = (key: string) => key.split(" ").map(decodeURIComponent);
    this.places = new Things(
      400,
      (key) => {
        const [network, image] = parts(key);
        return askFor<Place>(source, "place", { network, image });
      },
      arrived,
    );
    this.masses = new Things(
      400,
      (key) => {
        const [network, image, layer, epoch] = parts(key);
        return askFor<Mass>(source, "mass", { network, image, layer: layerNamed(layer!), epoch: epochNamed(epoch!) });
      },
      arrived,
    );
    this.curves = new Things(
      100,
      (key) => {
        const [network] = parts(key);
        return askFor<Epochs>(source, "epochs", { network });
      },
      arrived,
    );
    this.photos = new Things(8, (key) => askImage(source, parts(key)[0]!, null), arrived);
    this.thumbs = new Things(500, (key) => askImage(source, parts(key)[0]!, 96), arrived);
  }

  async start(): Promise<void> {
    try {
      this.state = await askFor<State>(this.source, "state");
    } catch (error) {
      this.message = (error as Error).message;
      this.changed();
      return;
    }
    this.first = firstView(this.state);
    this.restore();
    if (this.address) window.addEventListener("hashchange", this.restore);
  }

  stop(): void {
    window.removeEventListener("hashchange", this.restore);
  }

  private readonly restore = (): void => {
    if (this.address && location.hash.slice(1) === this.hash()) return;
    this.view = this.address ? viewOf(location.hash.slice(1), this.first, this.state!) : { ...this.first };
    this.changed();
  };

  private hash(): string {
    return this.view === undefined ? "-" : hashOf(this.view, this.first);
  }

  /** Changes the view; what failed before is asked for again. */
  set(change: Partial<View>): void {
    Object.assign(this.view, change);
    for (const asked of [this.places, this.masses, this.photos, ...this.feeds.values()]) asked.retry();
    this.message = "";
    this.note = "";
    this.changed();
  }

  touch(): void {
    this.changed();
  }

  say(note: string): void {
    this.note = note;
    this.changed();
  }

  drawBox(yes: boolean): void {
    this.boxing = yes;
    this.changed();
  }

  /** Writes the view into the address; called when a view has been painted, not at every event. */
  remember(): void {
    if (!this.address || this.view === undefined) return;
    const hash = this.hash();
    if (location.hash.slice(1) !== hash) history.replaceState(null, "", `#${hash}`);
  }

  get query(): Query {
    return (this.view.pinned ? null : this.preview) ?? this.view.query;
  }

  get image(): ImageInfo | undefined {
    return this.state?.images.find((image) => image.id === this.view.image);
  }

  get photo(): ImageBitmap | undefined {
    return this.image && this.photos.get(keyOf(this.image.id));
  }

  get networks(): Network[] {
    return this.view.networks.flatMap((id) => this.state?.networks.find((n) => n.id === id) ?? []);
  }

  /** The layers that can be chosen: those of the deepest network. */
  get deepest(): Network | undefined {
    return this.networks.reduce<Network | undefined>(
      (a, b) => (a === undefined || b.layers > a.layers ? b : a),
      undefined,
    );
  }

  shown(network: Network): Shown {
    const { view, image } = this;
    const layer = layerOf(network, view.layer);
    const place = image && this.places.get(keyOf(network.id, image.id));
    const nothing = { network, layer, place, query: null, rows: undefined, ready: true, mass: undefined };
    if (image === undefined || place === undefined) return nothing;
    const query = tokenOf(this.query, network, place, image);
    if (query === null) return nothing;
    const epoch = epochOf(network, view.epoch);
    const feed = this.feedOf(network);
    const key = keyOf(network.id, image.id, layer, query, epoch);
    feed.want({ key, image: image.id, layer, query, epoch });
    const rows = feed.shown?.of.image === image.id ? feed.shown.value : undefined;
    const mass = layer === "rollout" ? undefined : this.masses.get(keyOf(network.id, image.id, layer, epoch));
    return { network, layer, place, query, rows, ready: feed.ready, mass };
  }

  private feedOf(network: Network): Newest<RowsWish, Rows> {
    let feed = this.feeds.get(network.id);
    if (feed === undefined) {
      feed = new Newest(
        ({ image, layer, query, epoch }) => askRows(this.source, { network: network.id, image, layer, query, epoch }),
        this.cache,
        (error) => {
          if (error) this.message = error.message;
          this.changed();
        },
      );
      this.feeds.set(network.id, feed);
    }
    return feed;
  }

  /** What the networks paint; differences are taken from the first network. The same arrays while nothing changes. */
  maps(all: Shown[]): (Maps | undefined)[] {
    const of = [this.view.head, this.view.difference, ...all.flatMap(({ rows, place }) => [rows, place])];
    if (of.length !== this.painted.of.length || of.some((part, i) => part !== this.painted.of[i])) {
      this.painted = { of, maps: this.newMaps(all) };
    }
    return this.painted.maps;
  }

  private newMaps(all: Shown[]): (Maps | undefined)[] {
    const { view, image } = this;
    const plain = all.map(({ rows, place }): Maps | undefined => {
      if (rows === undefined || place === undefined) return undefined;
      const even = (map: Float32Array) => (this.unlike(all) ? timesEven(map) : map);
      const heads = rows.heads === 1 ? [] : Array.from({ length: rows.heads }, (_, h) => even(mapOf(rows, place, h)));
      return { large: even(mapOf(rows, place, view.head)), heads, signed: false };
    });
    const [first, firstPlace] = [plain[0], all[0]?.place];
    if (!view.difference || first === undefined || firstPlace === undefined || image === undefined) return plain;
    return plain.map((maps, i) => {
      const place = all[i]!.place;
      if (i === 0 || maps === undefined || place === undefined) return maps;
      const from = (map: Float32Array, other: Float32Array | undefined) =>
        other === undefined ? map : differenceOf(map, place, other, firstPlace, image);
      const heads = maps.heads.map((map, h) => from(map, first.heads[h])).slice(0, first.heads.length);
      return { large: from(maps.large, first.large), heads, signed: true };
    });
  }

  /** Where colours end: for the large maps and for the heads, of plain maps and of differences. */
  tops(maps: (Maps | undefined)[]): { large: number; heads: number }[] {
    const shared = (signed: boolean, part: (m: Maps) => Float32Array[]) =>
      topOf(maps.flatMap((m) => (m?.signed === signed ? part(m) : [])));
    const large = [false, true].map((signed) => shared(signed, (m) => [m.large]));
    const heads = [false, true].map((signed) => shared(signed, (m) => m.heads));
    return maps.map((m) => {
      if (m === undefined) return { large: 0, heads: 0 };
      const signed = m.signed ? 1 : 0;
      return this.view.shared
        ? { large: large[signed]!, heads: heads[signed]! }
        : { large: topOf([m.large]), heads: Number.NaN };
    });
  }

  /** Whether the source can compute what is not there yet. */
  get computes(): boolean {
    return this.state?.networks.every((n) => n.only === undefined) ?? false;
  }

  /** The networks that are runs, with their curves. */
  get runs(): { network: Network; curves: Epochs }[] {
    if (!this.computes) return [];
    return this.networks.flatMap((network) => {
      const curves = this.curves.get(keyOf(network.id));
      return curves?.epochs?.length ? [{ network, curves }] : [];
    });
  }

  /** Whether the networks' grids differ, so that a patch's mass can't be compared as it is. */
  unlike(all: Shown[]): boolean {
    return new Set(all.flatMap(({ place }) => (place ? [place.rows * place.columns] : []))).size > 1;
  }

  /** The query's attention to the patch under the pointer, or to the query's own patch; null where nothing is. */
  valueAt({ rows, place, query }: Shown): { patch: number; value: number } | null {
    if (rows === undefined || place === undefined || this.image === undefined) return null;
    const own = typeof query === "number" && query >= place.prefix ? query - place.prefix : null;
    const patch = this.pointer === null ? own : patchAt(place, this.image, this.pointer);
    return patch === null ? null : { patch, value: mapOf(rows, place, this.view.head)[patch]! };
  }

  prefixShare({ rows, network }: Shown, name: string): number | null {
    const token = network.prefix.indexOf(name);
    return rows === undefined || token < 0 ? null : prefixShare(rows, this.view.head, token);
  }

  /** Moves to another layer, among those that are there. */
  stepLayer(step: number): void {
    const { deepest, view } = this;
    if (deepest === undefined) return;
    const layers = layersOf(deepest);
    const at = view.layer === "rollout" ? layers.length : layers.indexOf(layerOf(deepest, view.layer) as number);
    const next = layers[Math.max(0, Math.min(layers.length - 1, at + step))];
    if (next !== undefined && next !== view.layer) this.set({ layer: next });
  }

  /** Moves through mean, maximum and the heads. */
  stepHead(step: number): void {
    const heads = Math.max(...this.networks.map((n) => n.heads));
    const all: View["head"][] = ["mean", "max", ...Array.from({ length: heads }, (_, i) => i)];
    const at = all.indexOf(this.view.head) + step;
    this.set({ head: all[(at + all.length) % all.length]! });
  }

  /** Moves the query by patches of the first network; from a token to the middle of the image. */
  stepPatch(rows: number, columns: number): void {
    const { image, networks, view } = this;
    const place = image && networks[0] && this.places.get(keyOf(networks[0].id, image.id));
    if (!image || !place) return;
    const point = typeof view.query === "object" && "x" in view.query ? view.query : { x: 0.5, y: 0.5 };
    const patch = patchAt(place, image, point) ?? 0;
    const row = Math.max(0, Math.min(place.rows - 1, Math.floor(patch / place.columns) + rows));
    const column = Math.max(0, Math.min(place.columns - 1, (patch % place.columns) + columns));
    this.set({ query: centreOf(place, image, row * place.columns + column), pinned: true });
  }

  stepImage(step: number): void {
    const images = this.state?.images ?? [];
    const next = images[images.findIndex(({ id }) => id === this.view.image) + step];
    if (next !== undefined) this.set({ image: next.id, box: null });
  }

  toggleRollout(): void {
    if (this.view.layer === "rollout") this.set({ layer: this.first.layer });
    else if (this.deepest?.rollout !== false) this.set({ layer: "rollout" });
  }

  toggleNetwork(id: string): void {
    const { networks } = this.view;
    const chosen = networks.includes(id) ? networks.filter((n) => n !== id) : [...networks, id];
    if (chosen.length > 0 && chosen.length <= MOST_NETWORKS) this.set({ networks: chosen });
  }

  async upload(file: File): Promise<void> {
    if (!this.source.upload || !this.state?.upload) return;
    try {
      const image = await this.source.upload(file);
      this.state.images.unshift(image);
      this.set({ image: image.id });
    } catch (error) {
      this.message = (error as Error).message;
      this.changed();
    }
  }
}

/** The token that a query means in a network. */
export function tokenOf(query: Query, network: Network, place: Place, image: ImageInfo): number | "mean" | null {
  if (query === "mean") return "mean";
  if ("token" in query) {
    const token = network.prefix.indexOf(query.token);
    return token < 0 ? "mean" : token;
  }
  const patch = patchAt(place, image, query);
  return patch === null ? null : place.prefix + patch;
}

/** The newest kept epoch that is not after the one looked at; null for the network as it is. */
export function epochOf(network: Network, epoch: number | null): number | null {
  if (epoch === null || network.epochs === null) return null;
  return network.epochs.filter((e) => e <= epoch).at(-1) ?? network.epochs[0] ?? null;
}

function keyOf(...parts: (string | number | null)[]): string {
  return parts.map((part) => encodeURIComponent(String(part))).join(" ");
}

function layerNamed(word: string): Layer {
  return word === "rollout" ? word : Number(word);
}

function epochNamed(word: string): number | null {
  return word === "null" ? null : Number(word);
}
