// Patches as pictures, a page at a time.
import { useEffect, useState } from "preact/hooks";
import * as api from "./api";
import type { Change } from "./app";
import { colorOf } from "./classes";
import { useLoaded } from "./hooks";
import { lookAt, questionOf, type State } from "./state";
import { day, number } from "./text";

const PAGE = 48;

export function Wall({ state, change }: { state: State; change: Change }) {
  const key = JSON.stringify([state.collection, questionOf(state)]);
  const first = useLoaded(key, (signal) => api.items(state.collection, { ...questionOf(state), limit: PAGE }, signal));
  const [more, setMore] = useState<api.Page[]>([]);
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    setMore([]);
    setError("");
  }, [key]);

  if (first.error) {
    return (
      <p class="error" role="alert">
        {first.error}
      </p>
    );
  }
  if (!first.value) return <p class="note">Looking for patches…</p>;
  const pages = [first.value, ...more];
  const last = pages.at(-1)!;
  const shown = pages.flatMap((page) => page.features);
  const ask = async () => {
    const asked = api.nextPage(last);
    if (!asked) return;
    setBusy(true);
    try {
      const page = await asked;
      setMore((before) => [...before, page]);
    } catch (e) {
      setError((e as Error).message);
    }
    setBusy(false);
  };
  if (!shown.length) return <p class="note">No patch is left. Take a filter back.</p>;
  return (
    <section aria-label="Patches">
      <Pictures state={state} change={change} items={shown} />
      {error && (
        <p class="error" role="alert">
          {error}
        </p>
      )}
      <p class="more">
        {number(shown.length)} of {number(first.value.numberMatched)}{" "}
        {shown.length < first.value.numberMatched && (
          <button type="button" disabled={busy} onClick={ask}>
            {busy ? "Loading…" : "Show more"}
          </button>
        )}
      </p>
    </section>
  );
}

/** A wall of pictures, each a button that opens its patch. */
export function Pictures({ state, change, items }: { state: State; change: Change; items: api.Item[] }) {
  return (
    <ul class="wall">
      {items.map((item) => (
        <li key={item.id}>
          <Card state={state} item={item} open={() => change(lookAt(item.id))} />
        </li>
      ))}
    </ul>
  );
}

function Card({ state, item, open }: { state: State; item: api.Item; open: () => void }) {
  const labels = api.labelsIn(item, state.classes) ?? [];
  const distance = item.properties.distance as number | undefined;
  const hasPixels = "s2/r10m" in item.assets;
  const said = `${api.labelsSaid(item, state.classes)}; ${day(item.properties.datetime)}`;
  return (
    <button type="button" class="card" onClick={open} title={`${item.id}\n${said}`}>
      {hasPixels ? (
        <img src={api.pictureUrl(state.collection, item.id, state.picture === "map" ? "true_color" : state.picture)} alt="" width={120} height={120} loading="lazy" />
      ) : (
        <span class="no-picture" aria-hidden="true" style={{ background: stripes(labels) }} />
      )}
      <span class="hidden">{said}</span>
      <span class="bar" aria-hidden="true" style={{ background: stripes(labels) }} />
      <span class="under" aria-hidden="true">
        {distance === undefined ? `${item.properties["bec:country"] ?? ""} ${day(item.properties.datetime)}` : `distance ${distance.toPrecision(3)}`}
      </span>
    </button>
  );
}

/** Colors of the classes side by side. */
function stripes(labels: readonly string[]): string {
  if (!labels.length) return colorOf(undefined);
  const width = 100 / labels.length;
  const stops = labels.map((name, i) => `${colorOf(name)} ${i * width}% ${(i + 1) * width}%`);
  return `linear-gradient(90deg, ${stops.join(", ")})`;
}
