// Keys, the wheel, and files that are dropped. Several explorers may be on one page: keys go to the one that has the focus, or that was used last.

import { PAINTS } from "./controls";
import type { Store } from "./store";

let last: Store | null = null;

/** Listens for one explorer; gives back how to stop. */
export function listen(root: ShadowRoot, store: Store, wholePage: boolean): () => void {
  const host = root.host as HTMLElement;
  const used = () => {
    last = store;
  };
  if (wholePage) last ??= store;
  const key = (event: KeyboardEvent) => {
    const inside = event.composedPath().includes(host);
    const elsewhere = !inside && event.target !== document.body;
    if (elsewhere || (!inside && last !== store) || event.defaultPrevented || typing(event)) return;
    if (press(root, store, event)) event.preventDefault();
  };
  let turned = 0;
  const wheel = (event: WheelEvent) => {
    const picture = event.composedPath().find((at) => at instanceof HTMLElement && at.classList.contains("picture"));
    // In a longer document the wheel scrolls, until the picture has been clicked.
    if (picture === undefined || event.ctrlKey || !(wholePage || root.activeElement === picture)) return;
    event.preventDefault();
    turned += event.deltaY;
    if (Math.abs(turned) < 40) return;
    store.stepLayer(turned < 0 ? 1 : -1);
    turned = 0;
  };
  const over = (event: DragEvent) => {
    if (event.dataTransfer?.types.includes("Files")) event.preventDefault();
  };
  const drop = (event: DragEvent) => {
    const file = event.dataTransfer?.files[0];
    if (file === undefined) return;
    event.preventDefault();
    if (store.state?.upload) void store.upload(file);
    else store.say("This page takes no images.");
  };
  const leaveMenus = (event: Event) => {
    for (const menu of root.querySelectorAll<HTMLDetailsElement>("details[open]")) {
      if (!event.composedPath().includes(menu)) menu.open = false;
    }
  };
  const stop = new AbortController();
  const { signal } = stop;
  document.addEventListener("keydown", key, { signal });
  document.addEventListener("pointerdown", leaveMenus, { signal });
  host.addEventListener("focusin", leaveMenus, { signal });
  host.addEventListener("pointerenter", used, { signal });
  host.addEventListener("focusin", used, { signal });
  host.addEventListener("wheel", wheel, { passive: false, signal });
  host.addEventListener("dragover", over, { signal });
  host.addEventListener("drop", drop, { signal });
  return () => {
    stop.abort();
    if (last === store) last = null;
  };
}

/** Whether a control has the focus that uses keys itself. */
function typing(event: KeyboardEvent): boolean {
  const target = event.composedPath()[0];
  if (!(target instanceof HTMLElement) || event.ctrlKey || event.metaKey || event.altKey) return true;
  if (["INPUT", "SELECT", "TEXTAREA"].includes(target.tagName)) return true;
  return ["Enter", " "].includes(event.key) && ["BUTTON", "SUMMARY", "A"].includes(target.tagName);
}

function press(root: ShadowRoot, store: Store, event: KeyboardEvent): boolean {
  if (store.state === null) return false;
  const { view } = store;
  const shift = event.shiftKey;
  const actions: Record<string, () => void> = {
    ArrowUp: () => (shift ? store.stepPatch(-1, 0) : store.stepLayer(1)),
    ArrowDown: () => (shift ? store.stepPatch(1, 0) : store.stepLayer(-1)),
    ArrowLeft: () => (shift ? store.stepPatch(0, -1) : store.stepHead(-1)),
    ArrowRight: () => (shift ? store.stepPatch(0, 1) : store.stepHead(1)),
    Enter: () => store.set({ query: store.query, pinned: true }),
    Escape: () => {
      for (const menu of root.querySelectorAll<HTMLDetailsElement>("details[open]")) menu.open = false;
      store.boxing = false;
      store.set({ query: store.first.query, pinned: false });
    },
    c: () => store.set({ query: store.first.query, pinned: true }),
    m: () => store.computes && store.set({ query: "mean", pinned: true }),
    r: () => store.toggleRollout(),
    v: () => store.set({ paint: PAINTS[(PAINTS.findIndex(([p]) => p === view.paint) + 1) % PAINTS.length]![0] }),
    o: () => store.set({ mass: view.mass > 0 ? 0 : 0.6 }),
    d: () => store.set({ difference: !view.difference }),
    "[": () => store.stepImage(-1),
    "]": () => store.stepImage(1),
  };
  const action = actions[event.key];
  action?.();
  return action !== undefined;
}
