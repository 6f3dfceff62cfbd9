// Counts of what the filters leave, as bars that are tables to a screen reader.
import type { Change, Found } from "./app";
import { colorOf } from "./classes";
import type { State } from "./state";
import { month, number, percent } from "./text";

interface Bar {
  key: string;
  name: string;
  count: number;
  color?: string;
  chosen?: boolean;
  choose?: () => void;
}

export function Charts({ state, change, found }: { state: State; change: Change; found: Found | null }) {
  if (!found) return <p class="note">Counting…</p>;
  const of = (facet: "seasons" | "countries" | "splits"): Bar[] =>
    sorted(found[facet]).map(([name, count]) => ({
      key: name,
      name,
      count,
      chosen: state[facet].includes(name),
      choose: () => change({ [facet]: state[facet].includes(name) ? state[facet].filter((v) => v !== name) : [...state[facet], name] }),
    }));
  const labels = sorted(found.labels).map(([name, count]) => ({
    key: name,
    name,
    count,
    color: colorOf(name),
    chosen: state.labels.includes(name),
    choose: () => change({ labels: state.labels.includes(name) ? state.labels.filter((v) => v !== name) : [...state.labels, name] }),
  }));
  const months = Object.entries(found.months)
    .sort()
    .map(([key, count]) => ({ key, name: month(key), count }));
  return (
    <section class="charts" aria-label="Statistics">
      <Chart title="Classes" of="a patch has one or more" bars={labels} total={state.labels.length && !state.every ? 0 : found.total} />
      <div>
        <Chart title="Months" bars={months} total={sum(months)} />
        <Chart title="Seasons" bars={of("seasons")} total={sum(of("seasons"))} />
        <Chart title="Countries" bars={of("countries")} total={sum(of("countries"))} />
        <Chart title="Splits" bars={of("splits")} total={sum(of("splits"))} />
      </div>
    </section>
  );
}

const sorted = (counts: Record<string, number>): [string, number][] => Object.entries(counts).sort((a, b) => b[1] - a[1]);

// Of a facet with a choice all values are counted, so they are more than what is left.
const sum = (bars: Bar[]): number => bars.reduce((total, bar) => total + bar.count, 0);

function Chart({ title, of, bars, total }: { title: string; of?: string; bars: Bar[]; total: number }) {
  const most = Math.max(1, ...bars.map((bar) => bar.count));
  return (
    <table class="chart">
      <caption>
        {title}
        {of && <small>, {of}</small>}
      </caption>
      <thead class="hidden">
        <tr>
          <th scope="col">{title}</th>
          <th scope="col">Patches</th>
        </tr>
      </thead>
      <tbody>
        {bars.map(({ key, name, count, color, chosen, choose }) => (
          <tr key={key}>
            <th scope="row">
              {choose ? (
                <button type="button" class="plain" aria-pressed={chosen} onClick={choose}>
                  {name}
                </button>
              ) : (
                name
              )}
            </th>
            <td>
              <div class="track">
                <span class="length" style={{ width: `${(count / most) * 100}%`, background: color }} />
                <span class="value">
                  {number(count)} <small>{total ? percent(count / total) : ""}</small>
                </span>
              </div>
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
