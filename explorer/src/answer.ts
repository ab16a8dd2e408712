// A panel's question: asked when its key changes, a moment later, and given up when a newer one comes.

import { useEffect, useState } from "preact/hooks";

export interface Answer<T> {
  value: T | undefined;
  error: string;
  busy: boolean;
}

const NOTHING = { value: undefined, error: "", busy: false };

/** The answer for `key`; nothing is asked while it is null. The last answer stays while a newer one is awaited. */
export function useAnswer<T>(key: string | null, ask: (signal: AbortSignal) => Promise<T>, wait = 150): Answer<T> {
  const [answer, setAnswer] = useState<Answer<T>>(NOTHING);
  useEffect(() => {
    if (key === null) {
      setAnswer(NOTHING);
      return;
    }
    const stop = new AbortController();
    setAnswer((last) => ({ ...last, error: "", busy: true }));
    const timer = setTimeout(() => {
      ask(stop.signal).then(
        (value) => !stop.signal.aborted && setAnswer({ value, error: "", busy: false }),
        (error: Error) => !stop.signal.aborted && setAnswer({ value: undefined, error: error.message, busy: false }),
      );
    }, wait);
    return () => {
      clearTimeout(timer);
      stop.abort();
    };
  }, [key]);
  return answer;
}
