// The module's door: `mount` for pages of one's own, `default` for notebooks, and what a page asks for by attributes.

import { render } from "preact";
import css from "../style.css";
import { App } from "./app";
import { listen } from "./events";
import { type FileData, FileSource } from "./file";
import type { Source } from "./protocol";
import { HttpSource, type WidgetModel, WidgetSource } from "./sources";
import { Store } from "./store";

export { FileSource, HttpSource, WidgetSource };

export interface Options {
  /** The explorer is the whole page: the address holds the view, and keys and the wheel are its own. */
  wholePage?: boolean;
}

/** Puts an explorer into an element; gives back how to take it away. Several may be on one page. */
export function mount(element: HTMLElement, source: Source, { wholePage = false }: Options = {}): () => void {
  // In a shadow tree neither the page's styles nor ours reach the other; a constructed sheet needs no leave of a
  // content security policy.
  const root = element.shadowRoot ?? element.attachShadow({ mode: "open" });
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(css);
  root.adoptedStyleSheets = [sheet];
  let frame = 0;
  const changed = () => {
    if (frame === 0) frame = requestAnimationFrame(draw);
  };
  const store = new Store(source, changed, wholePage);
  function draw(): void {
    frame = 0;
    render(<App store={store} />, root);
  }
  const sizes = new ResizeObserver(([entry]) => {
    store.width = entry?.contentRect.width ?? 0;
    changed();
  });
  sizes.observe(element);
  const deafen = listen(root, store, wholePage);
  void store.start();
  changed();
  return () => {
    cancelAnimationFrame(frame);
    sizes.disconnect();
    deafen();
    store.stop();
    render(null, root);
  };
}

/** anywidget's door. */
export default {
  render({ model, el }: { model: WidgetModel; el: HTMLElement }): () => void {
    const source = new WidgetSource(model);
    const element = el.appendChild(document.createElement("div"));
    const unmount = mount(element, source);
    return () => {
      unmount();
      source.close();
    };
  },
};

// `<main data-explore="live">` asks this server; `data-explore="ID"` reads the JSON in the element of that id. An explorer
// in a `<main>` is the whole page.
for (const element of document.querySelectorAll<HTMLElement>("[data-explore]")) {
  const name = element.dataset.explore!;
  const wholePage = element.tagName === "MAIN";
  if (wholePage) document.body.style.margin = "0";
  const text = name === "live" ? "" : (document.getElementById(name)?.textContent ?? "");
  mount(element, name === "live" ? new HttpSource() : new FileSource(JSON.parse(text) as FileData), { wholePage });
}
