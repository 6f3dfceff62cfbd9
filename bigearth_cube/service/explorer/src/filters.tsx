// What narrows the archive, each choice with the number of patches that it would leave.
import type { Change, Found } from "./app";
import { CLASSES_19, CLASSES_43, colorOf } from "./classes";
import { questionOf, START, type Flag, type State } from "./state";
import { number } from "./text";

interface Props {
  state: State;
  change: Change;
  found: Found | null;
  has43: boolean;
}

const SEASONS = ["spring", "summer", "autumn", "winter"];
const SPLITS = ["train", "validation", "test"];

const toggled = (list: string[], value: string): string[] =>
  list.includes(value) ? list.filter((v) => v !== value) : [...list, value];

export function Filters({ state, change, found, has43 }: Props) {
  const names = state.classes === 43 ? CLASSES_43.map(([, name]) => name) : CLASSES_19.map(([name]) => name);
  const countries = Object.keys(found?.countries ?? {});
  for (const country of state.countries) if (!countries.includes(country)) countries.push(country);
  const narrowed = state.every || Object.keys(questionOf(state)).length > 0;
  return (
    <form onSubmit={(e) => e.preventDefault()}>
      <p class="clear">
        <button type="button" disabled={!narrowed} onClick={() => change({ ...START, collection: state.collection, view: state.view, place: state.place, classes: state.classes })}>
          Clear all filters
        </button>
      </p>
      <fieldset>
        <legend>Classes</legend>
        {has43 && (
          <p class="switch">
            {([19, 43] as const).map((n) => (
              <label key={n}>
                <input type="radio" name="classes" checked={state.classes === n} onChange={() => change({ classes: n, labels: [], share: "" })} />
                {n}
              </label>
            ))}
          </p>
        )}
        <p class="switch">
          {([false, true] as const).map((every) => (
            <label key={String(every)}>
              <input type="radio" name="every" checked={state.every === every} onChange={() => change({ every })} />
              {every ? "all of them" : "any of them"}
            </label>
          ))}
        </p>
        <Choices
          names={names}
          chosen={state.labels}
          counts={found?.labels}
          color={colorOf}
          toggle={(name) => change({ labels: toggled(state.labels, name) })}
        />
      </fieldset>
      <fieldset>
        <legend>Season</legend>
        <Choices names={SEASONS} chosen={state.seasons} counts={found?.seasons} toggle={(name) => change({ seasons: toggled(state.seasons, name) })} />
      </fieldset>
      <fieldset>
        <legend>Date</legend>
        <div class="dates">
          <label>
            from
            <input type="date" value={state.from} max={state.to || undefined} onChange={(e) => change({ from: e.currentTarget.value })} />
          </label>
          <label>
            to
            <input type="date" value={state.to} min={state.from || undefined} onChange={(e) => change({ to: e.currentTarget.value })} />
          </label>
        </div>
      </fieldset>
      <fieldset>
        <legend>Country</legend>
        <Choices names={countries.sort()} chosen={state.countries} counts={found?.countries} toggle={(name) => change({ countries: toggled(state.countries, name) })} />
      </fieldset>
      <fieldset>
        <legend>Split</legend>
        <Choices names={SPLITS} chosen={state.splits} counts={found?.splits} toggle={(name) => change({ splits: toggled(state.splits, name) })} />
      </fieldset>
      <FlagChoice name="snow" title="Seasonal snow" state={state} change={change} counts={found?.snow} />
      <FlagChoice name="cloud" title="Cloud or shadow" state={state} change={change} counts={found?.cloud} />
    </form>
  );
}

interface ChoicesProps {
  names: readonly string[];
  chosen: readonly string[];
  counts: Record<string, number> | undefined;
  color?: (name: string) => string;
  toggle: (name: string) => void;
}

function Choices({ names, chosen, counts, color, toggle }: ChoicesProps) {
  return (
    <ul class="choices">
      {names.map((name) => (
        <li key={name}>
          <label>
            <input type="checkbox" checked={chosen.includes(name)} onChange={() => toggle(name)} />
            {color && <span class="swatch" style={{ background: color(name) }} />}
            <span class="name">{name}</span>
            <span class="count">{counts ? number(counts[name] ?? 0) : "…"}</span>
          </label>
        </li>
      ))}
    </ul>
  );
}

interface FlagProps {
  name: "snow" | "cloud";
  title: string;
  state: State;
  change: Change;
  counts: Record<Flag, number> | undefined;
}

function FlagChoice({ name, title, state, change, counts }: FlagProps) {
  const choices: ReadonlyArray<readonly [Flag, string]> = [
    ["any", "with and without"],
    ["no", "without"],
    ["yes", "only"],
  ];
  return (
    <fieldset>
      <legend>{title}</legend>
      <ul class="choices">
        {choices.map(([flag, said]) => (
          <li key={flag}>
            <label>
              <input type="radio" name={name} checked={state[name] === flag} onChange={() => change({ [name]: flag })} />
              <span class="name">{said}</span>
              <span class="count">{counts ? number(counts[flag]) : "…"}</span>
            </label>
          </li>
        ))}
      </ul>
    </fieldset>
  );
}
