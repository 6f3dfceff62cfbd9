import { useEffect, useState } from "preact/hooks";

export interface Loaded<T> {
  value: T | null;
  error: string;
  busy: boolean;
}

/** Ask whenever `key` changes; an answer that came too late is dropped, the last one stays meanwhile. */
export function useLoaded<T>(key: string, ask: (signal: AbortSignal) => Promise<T> | null): Loaded<T> {
  const [state, set] = useState<Loaded<T>>({ value: null, error: "", busy: true });
  useEffect(() => {
    const control = new AbortController();
    const asked = ask(control.signal);
    if (!asked) {
      set({ value: null, error: "", busy: false });
      return;
    }
    set((before) => ({ ...before, busy: true }));
    asked.then(
      (value) => control.signal.aborted || set({ value, error: "", busy: false }),
      (error: Error) => control.signal.aborted || set({ value: null, error: error.message, busy: false }),
    );
    return () => control.abort();
  }, [key]);
  return state;
}
