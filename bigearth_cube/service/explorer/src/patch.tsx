// One patch: its picture in any bands, the spectrum of a pixel, its map, other dates, and what looks like it.
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import * as api from "./api";
import type { Change } from "./app";
import { CLASSES_43, colorOf, UNLABELED } from "./classes";
import { useLoaded } from "./hooks";
import { lookAt, questionOf, SIZE, type State } from "./state";
import { day, percent } from "./text";
import { Pictures } from "./wall";

const KINDS: ReadonlyArray<readonly [string, string, string]> = [
  ["true_color", "True color", "s2/r10m"],
  ["false_color", "False color", "s2/r10m"],
  ["s1", "Sentinel-1", "s1/r10m"],
  ["map", "Reference map", "reference/r10m"],
];
const BANDS = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"];
const DISTANCES: ReadonlyArray<readonly [string, string]> = [
  ["chi2", "chi-square"],
  ["cosine", "cosine"],
  ["euclidean", "Euclidean"],
  ["hamming", "Hamming, sign codes"],
];
const N_ALIKE = 24;

export function PatchView({ state, change }: { state: State; change: Change }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const { collection, patch } = state;
  const item = useLoaded(`${collection}/${patch}`, (signal) => api.item(collection, patch, signal));
  const close = () => change(lookAt(""));
  useLayoutEffect(() => {
    const shown = dialog.current!;
    shown.showModal();
    return () => shown.close(); // gives the focus back; being removed does not
  }, []);
  return (
    <dialog
      ref={dialog}
      class="patch"
      aria-labelledby="patch-title"
      onCancel={(e) => {
        e.preventDefault();
        close();
      }}
    >
      <header>
        <h2 id="patch-title">{patch}</h2>
        <button type="button" onClick={close} aria-label="Close the patch">
          ✕
        </button>
      </header>
      {item.error && (
        <p class="error" role="alert">
          {item.error}
        </p>
      )}
      {item.value?.id === patch && <Patch key={patch} item={item.value} state={state} change={change} />}
    </dialog>
  );
}

function Patch({ item, state, change }: { item: api.Item; state: State; change: Change }) {
  const { collection } = state;
  const pixels = "s2/r10m" in item.assets;
  return (
    <div class="columns">
      <div>
        {pixels ? (
          <Picture item={item} state={state} change={change} />
        ) : (
          <p class="note">This cube was made from the official lists alone; it has no pixels to show.</p>
        )}
        {pixels && state.pixel && <Spectrum collection={collection} id={item.id} at={state.pixel} />}
      </div>
      <div>
        <Facts item={item} />
        <Predictions item={item} collection={collection} />
        <Dates item={item} state={state} change={change} />
        {pixels && state.picture === "map" && <Legend collection={collection} id={item.id} />}
      </div>
      <LookAlikes item={item} state={state} change={change} />
    </div>
  );
}

function Picture({ item, state, change }: { item: api.Item; state: State; change: Change }) {
  const custom = state.picture.includes(",");
  const bands = custom ? state.picture.split(",") : ["B12", "B8A", "B04"];
  const [broken, setBroken] = useState("");
  const url = api.pictureUrl(state.collection, item.id, state.picture);
  const inside = (v: number) => Math.min(SIZE - 1, Math.max(0, v));
  const choose = (x: number, y: number) => change({ pixel: [inside(x), inside(y)] }, true);
  const move = (dx: number, dy: number) => {
    const [x, y] = state.pixel ?? [SIZE / 2, SIZE / 2];
    choose(x + dx, y + dy);
  };
  const keys: Record<string, [number, number]> = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const [x, y] = state.pixel ?? [-1, -1];
  return (
    <section aria-label="Picture">
      <div class="kinds" role="group" aria-label="Bands">
        {KINDS.filter(([, , group]) => group in item.assets).map(([kind, name]) => (
          <button key={kind} type="button" aria-pressed={state.picture === kind} onClick={() => change({ picture: kind }, true)}>
            {name}
          </button>
        ))}
        <button type="button" aria-pressed={custom} onClick={() => change({ picture: bands.join(",") }, true)}>
          Other bands
        </button>
      </div>
      {custom && (
        <p class="bands">
          {["red", "green", "blue"].map((color, i) => (
            <label key={color}>
              {color}{" "}
              <select value={bands[i]} onChange={(e) => change({ picture: bands.map((b, j) => (j === i ? e.currentTarget.value : b)).join(",") }, true)}>
                {BANDS.map((band) => (
                  <option key={band}>{band}</option>
                ))}
              </select>
            </label>
          ))}
        </p>
      )}
      <button
        type="button"
        class="picture"
        aria-label="Picture of the patch; choose a pixel with the arrow keys to see its spectrum"
        onClick={(e) => {
          if (e.detail === 0) return move(0, 0); // a key, not a pointer
          const box = e.currentTarget.getBoundingClientRect();
          const place = (v: number, start: number, length: number) => Math.floor(((v - start) / length) * SIZE);
          choose(place(e.clientX, box.left, box.width), place(e.clientY, box.top, box.height));
        }}
        onKeyDown={(e) => {
          const step = keys[e.key];
          if (!step) return;
          e.preventDefault();
          move(...step);
        }}
      >
        <img src={url} alt="" width={SIZE} height={SIZE} onError={() => setBroken(url)} onLoad={() => setBroken("")} />
        {state.pixel && (
          <svg viewBox={`0 0 ${SIZE} ${SIZE}`} aria-hidden="true">
            <path d={`M${x + 0.5} ${y - 4}v3.5m0 2v3.5M${x - 3.5} ${y + 0.5}h3.5m2 0h3.5`} />
            <rect x={x - 0.25} y={y - 0.25} width={1.5} height={1.5} />
          </svg>
        )}
      </button>
      {broken === url && (
        <p class="error" role="alert">
          This picture cannot be drawn; another kind of it may.
        </p>
      )}
      <p class="note">1200 m x 1200 m, the same contrast for every patch. Choose a pixel to see its spectrum.</p>
    </section>
  );
}

function Spectrum({ collection, id, at: [x, y] }: { collection: string; id: string; at: readonly [number, number] }) {
  const found = useLoaded(`${id} ${x} ${y}`, (signal) => api.spectrum(collection, id, x, y, signal));
  if (found.error) {
    return (
      <p class="error" role="alert">
        {found.error}
      </p>
    );
  }
  if (!found.value) return <p class="note">Reading the pixel…</p>;
  const optical = found.value
    .filter((b) => b.wavelength_um !== undefined && b.reflectance != null)
    .sort((a, b) => a.wavelength_um! - b.wavelength_um!);
  const rest = found.value.filter((b) => b.wavelength_um === undefined);
  const most = Math.max(0.1, ...optical.map((b) => b.reflectance!));
  const [W, H, LEFT, BOTTOM] = [420, 170, 34, 22];
  const px = (um: number) => LEFT + ((um - 0.4) / 1.9) * (W - LEFT - 8);
  const py = (reflectance: number) => H - BOTTOM - (reflectance / most) * (H - BOTTOM - 10);
  return (
    <section aria-label="Spectrum" aria-busy={found.busy}>
      <h3>
        Pixel {x}, {y}
      </h3>
      <svg class="spectrum" viewBox={`0 0 ${W} ${H}`} role="img" aria-label="Reflectance by wavelength; the table below has the values">
        {[0, most / 2, most].map((level) => (
          <g key={level}>
            <line x1={LEFT} x2={W - 8} y1={py(level)} y2={py(level)} class="grid" />
            <text x={LEFT - 4} y={py(level) + 4} text-anchor="end">
              {level.toFixed(2)}
            </text>
          </g>
        ))}
        {[0.5, 1, 1.5, 2].map((um) => (
          <text key={um} x={px(um)} y={H - 6} text-anchor="middle">
            {um} µm
          </text>
        ))}
        <polyline points={optical.map((b) => `${px(b.wavelength_um!)},${py(b.reflectance!)}`).join(" ")} />
        {optical.map((b) => (
          <circle key={b.name} cx={px(b.wavelength_um!)} cy={py(b.reflectance!)} r={3}>
            <title>{`${b.name}: ${b.reflectance!.toFixed(4)}`}</title>
          </circle>
        ))}
      </svg>
      <details>
        <summary>Values</summary>
        <table>
          <tbody>
            {optical.map((b) => (
              <tr key={b.name}>
                <th scope="row">{b.name}</th>
                <td>{b.reflectance!.toFixed(4)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </details>
      <p>
        {rest
          .map((b) => (b.name === "map" ? (b.class ?? "unlabelled") : `${b.name} ${b.value === null ? "none" : `${b.value.toFixed(2)} dB`}`))
          .join(" · ")}
      </p>
    </section>
  );
}

function Facts({ item }: { item: api.Item }) {
  const own = item.properties;
  const facts: ReadonlyArray<readonly [string, unknown]> = [
    ["Acquired", own.datetime.replace("T", " ").replace("Z", " UTC")],
    ["Country", own["bec:country"]],
    ["Season", own["bec:season"]],
    ["Split", own["bec:split"]],
    ["Flags", flagsSaid({ "seasonal snow": own["bec:snow"], "cloud or shadow": own["bec:cloud_or_shadow"] })],
    ["Sentinel-1", own["bec:s1_id"]],
    ["Place", own["bec:place"]],
  ];
  const labels = ([[19, own["bec:labels"]], [43, own["bec:labels_43"]]] as const).filter((l): l is readonly [19 | 43, string[]] => Array.isArray(l[1]));
  return (
    <section aria-label="About the patch">
      {labels.map(([of, names]) => (
        <div key={of}>
          {labels.length > 1 && <h3>Of {of} classes</h3>}
          <ul class="labels" aria-label={`Classes, of ${of}`}>
            {names.map((name) => (
              <li key={name}>
                <span class="swatch" style={{ background: colorOf(name) }} />
                {name}
              </li>
            ))}
          </ul>
        </div>
      ))}
      {!labels.length && <p class="note">No labels are known.</p>}
      <dl>
        {facts
          .filter(([, value]) => value != null && value !== "")
          .map(([name, value]) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd>{String(value)}</dd>
            </div>
          ))}
      </dl>
    </section>
  );
}

function flagsSaid(flags: Record<string, unknown>): string {
  const said = Object.entries(flags).map(([name, flag]) => (flag == null ? `${name} unknown` : flag ? name : ""));
  return said.filter(Boolean).join(", ") || "none";
}

/** What models say beside what the labels say; a class that either has is shown. */
function Predictions({ item, collection }: { item: api.Item; collection: string }) {
  const found = useLoaded(item.id, (signal) => api.predictions(collection, item.id, signal));
  return (
    <>
      {found.value?.map(({ model, threshold, scores }) => {
        const limit = threshold ?? 0.5;
        const labels = api.labelsIn(item, Object.keys(scores).length === 43 ? 43 : 19);
        const shown = Object.entries(scores).filter(([name, score]) => score >= limit || labels?.includes(name));
        return (
          <section key={model} aria-label={`Predictions of ${model}`}>
            <h3>
              {model} <small>says so from {limit} on</small>
            </h3>
            <table class="scores">
              <thead>
                <tr>
                  <th scope="col">Class</th>
                  <th scope="col">Score</th>
                  <th scope="col">Labels say</th>
                </tr>
              </thead>
              <tbody>
                {shown.map(([name, score]) => (
                  <tr key={name} class={labels && score >= limit !== labels.includes(name) ? "apart" : ""}>
                    <th scope="row">{name}</th>
                    <td>{score.toFixed(2)}</td>
                    <td>{labels ? (labels.includes(name) ? "yes" : "no") : "unknown"}</td>
                  </tr>
                ))}
              </tbody>
            </table>
          </section>
        );
      })}
    </>
  );
}

function Dates({ item, state, change }: { item: api.Item; state: State; change: Change }) {
  const found = useLoaded(item.id, (signal) => api.dates(state.collection, item.id, signal));
  if (!found.value || found.value.features.length < 2) return null;
  return (
    <section aria-label="Other dates">
      <h3>The same place on other dates</h3>
      <ul class="row">
        {found.value.features.map((other) => (
          <li key={other.id}>
            <button type="button" aria-current={other.id === item.id} disabled={other.id === item.id} onClick={() => change(lookAt(other.id))}>
              {day(other.properties.datetime)}
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}

const BY_CODE = new Map(CLASSES_43.map(([code, name, color]) => [code, { name, color }]));

function Legend({ collection, id }: { collection: string; id: string }) {
  const found = useLoaded(id, (signal) => api.legend(collection, id, signal));
  if (!found.value) return null;
  return (
    <section aria-label="Legend of the map">
      <h3>Reference map</h3>
      <ul class="labels">
        {found.value.map(([code, n]) => (
          <li key={code}>
            <span class="swatch" style={{ background: BY_CODE.get(code)?.color ?? UNLABELED }} />
            {BY_CODE.get(code)?.name ?? "Unlabelled"} <small>{percent(n / SIZE ** 2)}</small>
          </li>
        ))}
      </ul>
    </section>
  );
}

function LookAlikes({ item, state, change }: { item: api.Item; state: State; change: Change }) {
  const models = useLoaded(state.collection, (signal) => api.models(state.collection, signal));
  const model = state.model || models.value?.[0] || "";
  const question = state.within ? questionOf(state) : {};
  const key = state.alike && model ? JSON.stringify([item.id, model, state.alike, question]) : "";
  const found = useLoaded(key, (signal) =>
    key ? api.similar(state.collection, item.id, { ...question, k: N_ALIKE, model, metric: state.alike }, signal) : null,
  );
  if (!models.value?.length) return null;
  return (
    <section class="alike" aria-label="Look-alikes" aria-busy={found.busy}>
      <p class="ask">
        <button type="button" class="main" aria-pressed={state.alike !== ""} onClick={() => change({ alike: state.alike ? "" : "chi2" })}>
          Find look-alikes
        </button>
        {state.alike && (
          <>
            <label>
              by{" "}
              <select value={state.alike} onChange={(e) => change({ alike: e.currentTarget.value }, true)}>
                {DISTANCES.map(([metric, name]) => (
                  <option key={metric} value={metric}>
                    {name}
                  </option>
                ))}
              </select>
            </label>
            {models.value.length > 1 && (
              <label>
                of{" "}
                <select value={model} onChange={(e) => change({ model: e.currentTarget.value }, true)}>
                  {models.value.map((name) => (
                    <option key={name}>{name}</option>
                  ))}
                </select>
              </label>
            )}
            <label>
              <input type="checkbox" checked={state.within} onChange={(e) => change({ within: e.currentTarget.checked }, true)} /> within the filters
            </label>
          </>
        )}
      </p>
      {found.error && (
        <p class="error" role="alert">
          {found.error}
        </p>
      )}
      {state.alike && found.value && <Pictures state={state} change={change} items={found.value.features} />}
      {state.alike && !found.value && !found.error && <p class="note">Comparing with every patch…</p>}
    </section>
  );
}
