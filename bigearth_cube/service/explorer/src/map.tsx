// The archive on a map: cells when far, footprints when near. The server counts; nothing but outlines of
// countries is loaded beside it.
import { useEffect, useRef, useState } from "preact/hooks";
import { Map as Mapped, NavigationControl, ScaleControl, setWorkerUrl, type GeoJSONSource, type MapMouseEvent } from "maplibre-gl";
import "maplibre-gl/dist/maplibre-gl.css";
import * as api from "./api";
import type { Change } from "./app";
import { CellsLayer, cellsOf, cellZoom, corner, tileOf, type Cells } from "./cells";
import { CLASSES_19, CLASSES_43, colorOf } from "./classes";
import { labelsOf, lookAt, questionOf, type State } from "./state";

setWorkerUrl(new URL("./worker.js", document.baseURI).href);

/** From this zoom on patches are drawn, not cells, unless more are in view: one is 10 px wide there. */
const NEAR = 9.5;
const MOST_FOOTPRINTS = 3000;
const EMPTY = { type: "FeatureCollection" as const, features: [] };

type Feature = { type: "Feature"; geometry: api.Item["geometry"]; properties: Record<string, unknown> };

export function MapView({ state, change, collection }: { state: State; change: Change; collection: api.Collection }) {
  const box = useRef<HTMLDivElement>(null);
  const map = useRef<Mapped | null>(null);
  const layer = useRef<CellsLayer | null>(null);
  const loaded = useRef<Promise<unknown> | null>(null);
  const [ready, setReady] = useState(false);
  const [moved, setMoved] = useState(0);
  const [said, say] = useState("");
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(true);
  const latest = useRef({ state, change });
  latest.current = { state, change };
  const drawn = useRef<Cells | null>(null); // null when near

  useEffect(() => {
    const made = start(box.current!, state, collection);
    map.current = made;
    layer.current = new CellsLayer(made);
    setReady(false);
    drawn.current = null; // of another collection
    loaded.current = new Promise((done) => made.once("load", done));
    made.once("load", () => setReady(true));
    made.on("moveend", (e) => {
      setMoved((n) => n + 1);
      setBusy(true); // with the address, not after it
      if (!("originalEvent" in e) && !("by" in e)) return;
      const { lng, lat } = made.getCenter();
      latest.current.change({ place: [lng, lat, made.getZoom()] }, true);
    });
    const at = (e: MapMouseEvent): { said: string; go: () => void } | null => {
      const cells = drawn.current;
      if (!cells) {
        if (!made.getLayer("patches")) return null; // nothing is drawn yet
        const hit = made.queryRenderedFeatures(e.point, { layers: ["patches"] })[0]?.properties;
        return hit ? { said: String(hit.said), go: () => latest.current.change(lookAt(String(hit.id))) } : null;
      }
      const [x, y] = tileOf(e.lngLat.lng, e.lngLat.lat, cells.zoom);
      const said = cells.said.get(`${x}/${y}`);
      return said ? { said, go: () => approach(made, corner(x + 0.5, y + 0.5, cells.zoom)) } : null;
    };
    made.on("click", (e) => at(e)?.go());
    made.on("mousemove", (e) => {
      const hit = at(e);
      made.getCanvas().style.cursor = hit ? "pointer" : "";
      say(hit?.said ?? "");
    });
    made.on("mouseout", () => say(""));
    return () => made.remove();
  }, [collection.id]);

  // A place that came with the address or the back button.
  const place = state.place?.join() ?? "";
  useEffect(() => {
    const made = map.current;
    if (!made || !state.place) return;
    const [lng, lat, zoom] = state.place;
    const { lng: x, lat: y } = made.getCenter();
    if (Math.hypot(x - lng, y - lat) > 1e-3 || Math.abs(made.getZoom() - zoom) > 1e-3) {
      made.jumpTo({ center: [lng, lat], zoom });
    }
  }, [place]);

  const question = JSON.stringify([questionOf(state), state.classes, state.share]);
  useEffect(() => {
    const made = map.current;
    if (!made) return;
    const control = new AbortController();
    const done = () => control.signal.aborted || setBusy(false);
    setBusy(true);
    draw(made, layer.current!, loaded.current!, state, collection, control.signal).then(
      (cells) => {
        if (control.signal.aborted) return;
        drawn.current = cells;
        setError("");
        if (cells) requestAnimationFrame(done);
        else made.once("idle", done); // footprints are cut by a worker first
      },
      (e: Error) => {
        if (!control.signal.aborted) setError(e.message);
        done();
      },
    );
    return () => control.abort();
  }, [collection.id, moved, question]);

  const names = state.classes === 43 ? CLASSES_43.map(([, name]) => name) : CLASSES_19.map(([name]) => name);
  return (
    <section class="map" aria-label="Map" aria-busy={busy || !ready}>
      <div class="over">
        <label>
          Color by{" "}
          <select value={state.share} onChange={(e) => change({ share: e.currentTarget.value })}>
            <option value="">number of patches</option>
            {names.map((name) => (
              <option key={name} value={name}>
                share of {name}
              </option>
            ))}
          </select>
        </label>
        <p class="said" aria-live="off">
          {said || "Cells, or patches where they are few. Choose one to look closer."}
        </p>
      </div>
      {error && (
        <p class="error" role="alert">
          {error}
        </p>
      )}
      <div ref={box} class="canvas" role="region" aria-label="Map of the patches; move it with the arrow keys, plus and minus" />
    </section>
  );
}

function start(container: HTMLElement, state: State, collection: api.Collection): Mapped {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const [west, south, east, north] = collection.extent.spatial.bbox[0]!;
  const view = state.place
    ? { center: [state.place[0], state.place[1]] as [number, number], zoom: state.place[2] }
    : { bounds: [west, south, east, north] as [number, number, number, number], fitBoundsOptions: { padding: 24, maxZoom: 12 } };
  const made = new Mapped({
    container,
    ...view,
    attributionControl: false,
    dragRotate: false,
    pitchWithRotate: false,
    fadeDuration: 0,
    renderWorldCopies: false,
    maxZoom: 16,
    style: {
      version: 8,
      sources: {
        countries: { type: "geojson", data: new URL("./countries.json", document.baseURI).href },
        patches: { type: "geojson", data: EMPTY },
      },
      layers: [
        { id: "sea", type: "background", paint: { "background-color": dark ? "#14202b" : "#d6e4ec" } },
        { id: "land", type: "fill", source: "countries", paint: { "fill-color": dark ? "#26323a" : "#f7f5f0", "fill-antialias": false } },
        { id: "borders", type: "line", source: "countries", paint: { "line-color": dark ? "#5d6b75" : "#a8a297", "line-width": 0.8 } },
        { id: "patches", type: "fill", source: "patches", paint: { "fill-color": ["get", "color"], "fill-opacity": 0.75, "fill-outline-color": dark ? "#ffffff" : "#333333" } },
      ],
    },
  });
  made.touchZoomRotate.disableRotation();
  made.keyboard.disableRotation();
  made.addControl(new NavigationControl({ showCompass: false }), "top-right");
  made.addControl(new ScaleControl(), "bottom-left");
  return made;
}

function approach(made: Mapped, center: [number, number]): void {
  const zoom = made.getZoom();
  made.flyTo({ center, zoom: Math.max(zoom + 1, Math.min(NEAR + 1, zoom + 3)), duration: 600 }, { by: "cell" });
}

/** Draw what is in view, none left out: cells while they are many; returns those, or null when near. */
async function draw(
  made: Mapped,
  layer: CellsLayer,
  loaded: Promise<unknown>,
  state: State,
  collection: api.Collection,
  signal: AbortSignal,
): Promise<Cells | null> {
  const bounds = made.getBounds();
  const clip = (v: number, most: number) => Math.max(-most, Math.min(most, v));
  const bbox = [clip(bounds.getWest(), 180), clip(bounds.getSouth(), 90), clip(bounds.getEast(), 180), clip(bounds.getNorth(), 90)].join(",");
  const zoom = made.getZoom();
  const parameters: Record<string, string | number> = { ...questionOf(state), zoom: cellZoom(zoom), bbox };
  if (state.share) parameters.label = state.share;
  const found = await api.density(collection.id, parameters, signal);
  if (signal.aborted) return null;
  if (zoom < NEAR || found.matched > MOST_FOOTPRINTS) {
    const cells = cellsOf(found);
    layer.show(cells);
    if (made.getLayer("patches")) made.setLayoutProperty("patches", "visibility", "none");
    return cells;
  }
  const features = await footprints(state, collection, bbox, signal);
  await loaded;
  if (signal.aborted) return null;
  (made.getSource("patches") as GeoJSONSource).setData({ type: "FeatureCollection", features });
  made.setLayoutProperty("patches", "visibility", "visible");
  layer.show(null);
  return null;
}

async function footprints(state: State, collection: api.Collection, bbox: string, signal: AbortSignal): Promise<Feature[]> {
  const own = labelsOf(state);
  const fields = `id,geometry,properties.datetime,properties.${own}`;
  const page = await api.items(collection.id, { ...questionOf(state), bbox, fields, limit: MOST_FOOTPRINTS }, signal);
  return page.features.map((item) => {
    const labels = api.labelsIn(item, state.classes) ?? [];
    const first = state.labels.find((name) => labels.includes(name)) ?? labels[0];
    const color = state.share ? (labels.includes(state.share) ? colorOf(state.share) : "#00000022") : colorOf(first);
    return {
      type: "Feature",
      geometry: item.geometry,
      properties: { id: item.id, color, said: `${item.properties.datetime.slice(0, 10)}: ${api.labelsSaid(item, state.classes)}` },
    };
  });
}
