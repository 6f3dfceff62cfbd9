// The page: filters beside, and one of four views of what they leave.
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import * as api from "./api";
import { Charts } from "./charts";
import { CopyAs } from "./copy";
import { Filters } from "./filters";
import { useLoaded } from "./hooks";
import { MapView } from "./map";
import { PatchView } from "./patch";
import { filterOf, fromAddress, questionOf, START, toAddress, labelsOf, type Flag, type State, type View } from "./state";
import { number } from "./text";
import { Wall } from "./wall";

/** Browsers refuse more than some 100 new addresses in 10 s: a key held down waits until it is let go. */
const QUIET_MS = 150;

/** Change the state; `quietly` changes the address without a step to go back to. */
export type Change = (part: Partial<State>, quietly?: boolean) => void;

const VIEWS: ReadonlyArray<readonly [View, string]> = [
  ["map", "Map"],
  ["patches", "Patches"],
  ["charts", "Statistics"],
  ["copy", "Copy as"],
];

const FACETS = {
  seasons: "bec_season_frequency",
  countries: "bec_country_frequency",
  splits: "bec_split_frequency",
  snow: "bec_snow_frequency",
  cloud: "bec_cloud_or_shadow_frequency",
} as const;

export interface Found {
  total: number;
  labels: api.Counts;
  seasons: api.Counts;
  countries: api.Counts;
  splits: api.Counts;
  snow: Record<Flag, number>;
  cloud: Record<Flag, number>;
  months: api.Counts;
}

/** Count what a state leaves. A facet's own choice does not narrow its own counts. */
async function count(state: State, signal: AbortSignal): Promise<Found> {
  const labels = `${labelsOf(state).replace(":", "_")}_frequency`;
  const all = [labels, ...Object.values(FACETS), "datetime_frequency"];
  const open = (Object.keys(FACETS) as (keyof typeof FACETS)[]).filter((facet) => filterOf(state, facet) !== filterOf(state));
  const openLabels = state.labels.length > 0 && !state.every;
  const [here, ofLabels, ...others] = await Promise.all([
    api.aggregate(state.collection, all, questionOf(state), signal),
    openLabels ? api.aggregate(state.collection, [labels], questionOf(state, "labels"), signal) : null,
    ...open.map((facet) => api.aggregate(state.collection, [FACETS[facet]], questionOf(state, facet), signal)),
  ]);
  const counted = (facet: keyof typeof FACETS) => others[open.indexOf(facet)] ?? here;
  const counts = (facet: keyof typeof FACETS): api.Counts => counted(facet).of[FACETS[facet]] ?? {};
  const flags = (facet: "snow" | "cloud"): Record<Flag, number> => {
    const { true: yes = 0, false: no = 0 } = counts(facet);
    return { any: counted(facet).total, no, yes };
  };
  return {
    total: here.total,
    labels: (ofLabels ?? here).of[labels] ?? {},
    seasons: counts("seasons"),
    countries: counts("countries"),
    splits: counts("splits"),
    snow: flags("snow"),
    cloud: flags("cloud"),
    months: here.of.datetime_frequency ?? {},
  };
}

export function App() {
  const [state, setState] = useState<State>(() => fromAddress(location.search));
  const [showFilters, setShowFilters] = useState(false);
  const collections = useLoaded("collections", (signal) => api.collections(signal));

  const quiet = useRef(0);

  const change: Change = useCallback((part, quietly = false) => {
    setState((before) => {
      const after = { ...before, ...part };
      const [here, there] = [before, after].map((s) => toAddress(s) || location.pathname);
      if (there === here) return after;
      clearTimeout(quiet.current);
      if (quietly) {
        quiet.current = setTimeout(() => history.replaceState(null, "", there), QUIET_MS);
      } else {
        history.replaceState(null, "", here);
        history.pushState(null, "", there);
      }
      return after;
    });
  }, []);

  useEffect(() => {
    const back = () => {
      clearTimeout(quiet.current);
      setState(fromAddress(location.search));
    };
    addEventListener("popstate", back);
    return () => removeEventListener("popstate", back);
  }, []);

  const known = collections.value;
  const collection = known?.find((c) => c.id === state.collection) ?? (state.collection ? undefined : known?.[0]);
  const chosen: State = collection ? { ...state, collection: collection.id } : state;
  const question = JSON.stringify([chosen.collection, chosen.classes, questionOf(chosen)]);
  const found = useLoaded(collection ? question : "", (signal) => (collection ? count(chosen, signal) : null));
  const queryables = useLoaded(`queryables ${collection?.id}`, (signal) =>
    collection ? api.queryables(collection.id, signal) : null,
  );

  if (collections.error) return <Failed said={collections.error} />;
  if (known && !collection) {
    return <Failed said={`there is no collection "${state.collection}" here; this service has ${known.map((c) => c.id).join(", ")}`} />;
  }
  return (
    <>
      <a class="skip" href="#view">
        Skip to the view
      </a>
      <header>
        <h1>BigEarthNet explorer</h1>
        <label class="pick">
          <span class="hidden">Collection</span>
          <select
            value={collection?.id ?? ""}
            onChange={(e) => change({ ...START, collection: e.currentTarget.value, view: state.view })}
          >
            {known?.map((c) => (
              <option key={c.id} value={c.id}>
                {c.title} ({c.id})
              </option>
            ))}
          </select>
        </label>
        <p class="total" role="status" aria-live="polite" aria-busy={found.busy}>
          {found.value ? (
            <>
              <strong>{number(found.value.total)}</strong> patches
            </>
          ) : (
            "counting…"
          )}
        </p>
        <button type="button" class="only-small" aria-expanded={showFilters} aria-controls="filters" onClick={() => setShowFilters(!showFilters)}>
          Filters
        </button>
      </header>
      <div class="body">
        <aside id="filters" class={showFilters ? "shown" : ""} aria-label="Filters">
          <Filters state={chosen} change={change} found={found.value} has43={queryables.value?.includes("bec:labels_43") ?? false} />
        </aside>
        <main id="view" tabIndex={-1}>
          {/* Buttons, not tabs: each is a step that the back button undoes. */}
          <nav class="views" aria-label="Views">
            {VIEWS.map(([view, name]) => (
              <button key={view} type="button" aria-current={state.view === view ? "page" : undefined} onClick={() => change({ view })}>
                {name}
              </button>
            ))}
          </nav>
          {found.error && (
            <p class="error" role="alert">
              {found.error}
            </p>
          )}
          {collection && state.view === "map" && <MapView state={chosen} change={change} collection={collection} />}
          {collection && state.view === "patches" && <Wall state={chosen} change={change} />}
          {collection && state.view === "charts" && <Charts state={chosen} change={change} found={found.value} />}
          {collection && state.view === "copy" && <CopyAs state={chosen} collection={collection} />}
        </main>
      </div>
      {collection && state.patch && <PatchView state={chosen} change={change} />}
    </>
  );
}

function Failed({ said }: { said: string }) {
  return (
    <main class="failed">
      <h1>BigEarthNet explorer</h1>
      <p class="error" role="alert">
        {said}
      </p>
      <p>
        <a href="?">Start again</a>
      </p>
    </main>
  );
}
