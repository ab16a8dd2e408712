// Keeps what was asked for, and asks for the newest only.

/** Keeps the values that were used last, up to a weight. */
export class Cache<T> {
  private readonly kept = new Map<string, T>();
  private weight = 0;

  constructor(
    private readonly most: number,
    private readonly weigh: (value: T) => number = () => 1,
  ) {}

  get(key: string): T | undefined {
    const value = this.kept.get(key);
    if (value !== undefined) {
      this.kept.delete(key);
      this.kept.set(key, value);
    }
    return value;
  }

  set(key: string, value: T): void {
    this.kept.set(key, value);
    this.weight += this.weigh(value);
    for (const [old, oldest] of this.kept) {
      if (this.weight <= this.most || this.kept.size === 1) break;
      this.kept.delete(old);
      this.weight -= this.weigh(oldest);
    }
  }
}

/** Asks once for each thing, and tells when it is there. */
export class Things<T> {
  private readonly asked = new Set<string>();
  private readonly failed = new Set<string>();
  private readonly cache: Cache<T>;

  constructor(
    most: number,
    private readonly ask: (key: string) => Promise<T>,
    private readonly changed: (error?: Error) => void,
  ) {
    this.cache = new Cache<T>(most);
  }

  get(key: string): T | undefined {
    const value = this.cache.get(key);
    if (value === undefined && !this.asked.has(key) && !this.failed.has(key)) {
      this.asked.add(key);
      this.ask(key).then(
        (found) => {
          this.cache.set(key, found);
          this.asked.delete(key);
          this.changed();
        },
        (error: Error) => {
          this.failed.add(key); // so that it is not asked for again at every frame
          this.asked.delete(key);
          this.changed(error);
        },
      );
    }
    return value;
  }

  /** Lets what failed be asked for again. */
  retry(): void {
    this.failed.clear();
  }
}

/** One network's stream of answers: while one is under way only the newest wish waits. */
export class Newest<K extends { key: string }, T> {
  private wish: K | null = null;
  private busy = false;
  private failed = false;
  /** The newest answer, and what it answers. */
  shown: { of: K; value: T } | null = null;

  constructor(
    private readonly ask: (wish: K) => Promise<T>,
    private readonly cache: Cache<T>,
    private readonly changed: (error?: Error) => void,
  ) {}

  want(wish: K): void {
    if (wish.key === this.wish?.key) return;
    this.wish = wish;
    this.failed = false;
    const value = this.cache.get(wish.key);
    if (value !== undefined) this.shown = { of: wish, value };
    else if (!this.busy) void this.run(wish);
  }

  /** Whether nothing is under way for what was wished for. */
  get ready(): boolean {
    return this.failed || (this.shown !== null && this.shown.of.key === this.wish?.key);
  }

  /** Lets what failed be asked for again. */
  retry(): void {
    if (this.failed) this.wish = null;
  }

  private async run(wish: K): Promise<void> {
    this.busy = true;
    let error: Error | undefined;
    try {
      const value = await this.ask(wish);
      this.cache.set(wish.key, value);
      this.shown = { of: wish, value };
    } catch (cause) {
      error = cause as Error;
      if (wish === this.wish) {
        this.shown = null;
        this.failed = true; // and is not asked for again at every frame
      }
    }
    this.busy = false;
    const next = this.wish;
    if (next !== null && next.key !== wish.key) {
      const value = this.cache.get(next.key);
      if (value !== undefined) this.shown = { of: next, value };
      else void this.run(next);
    }
    this.changed(error);
  }
}
