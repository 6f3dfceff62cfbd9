// The archive on a map: cells when far, footprints when near. The server counts; nothing but outlines of
// countries is loaded beside it.
import { useEffect, useRef, useState } from "preact/hooks";
import { Map as Mapped, NavigationControl, ScaleControl, setWorkerUrl, type GeoJSONSource, type MapGeoJSONFeature } from "maplibre-gl";
import "maplibre-gl/dist/maplibre-gl.css";
import * as api from "./api";
import type { Change } from "./app";
import { CLASSES_19, CLASSES_43, colorOf } from "./classes";
import { labelsOf, questionOf, type State } from "./state";
import { number, percent } from "./text";

setWorkerUrl(new URL("./worker.js", document.baseURI).href);

/** From this zoom on patches are drawn, not cells: one is 10 px wide there. */
const NEAR = 9.5;
const MOST_FOOTPRINTS = 3000;
/** A cell is 512 / 2^5 = 16 px wide. */
const FINER = 5;
const EMPTY = { type: "FeatureCollection" as const, features: [] };

type Feature = { type: "Feature"; geometry: api.Item["geometry"]; properties: Record<string, unknown> };

export function MapView({ state, change, collection }: { state: State; change: Change; collection: api.Collection }) {
  const box = useRef<HTMLDivElement>(null);
  const map = useRef<Mapped | null>(null);
  const [ready, setReady] = useState(false);
  const [moved, setMoved] = useState(0);
  const [said, say] = useState("");
  const [error, setError] = useState("");
  const latest = useRef({ state, change });
  latest.current = { state, change };

  useEffect(() => {
    const made = start(box.current!, state, collection);
    map.current = made;
    made.on("load", () => setReady(true));
    made.on("moveend", (e) => {
      setMoved((n) => n + 1);
      if (!("originalEvent" in e) && !("by" in e)) return;
      const { lng, lat } = made.getCenter();
      latest.current.change({ place: [lng, lat, made.getZoom()] }, true);
    });
    made.on("click", (e) => {
      const hit = made.queryRenderedFeatures(e.point, { layers: ["cells", "patches"] })[0];
      if (hit) act(made, hit, latest.current.change);
    });
    for (const layer of ["cells", "patches"]) {
      made.on("mousemove", layer, (e) => {
        made.getCanvas().style.cursor = "pointer";
        say(String(e.features?.[0]?.properties.said ?? ""));
      });
      made.on("mouseleave", layer, () => {
        made.getCanvas().style.cursor = "";
        say("");
      });
    }
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
    if (!made || !ready) return;
    const control = new AbortController();
    draw(made, state, collection, control.signal).then(
      () => setError(""),
      (e: Error) => control.signal.aborted || setError(e.message),
    );
    return () => control.abort();
  }, [ready, moved, question]);

  const names = state.classes === 43 ? CLASSES_43.map(([, name]) => name) : CLASSES_19.map(([name]) => name);
  return (
    <section class="map" aria-label="Map">
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
          {said || "Cells when far, patches when near. Choose one to look closer."}
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
    maxZoom: 16,
    style: {
      version: 8,
      sources: {
        countries: { type: "geojson", data: new URL("./countries.json", document.baseURI).href },
        cells: { type: "geojson", data: EMPTY },
        patches: { type: "geojson", data: EMPTY },
      },
      layers: [
        { id: "sea", type: "background", paint: { "background-color": dark ? "#14202b" : "#d6e4ec" } },
        { id: "land", type: "fill", source: "countries", paint: { "fill-color": dark ? "#26323a" : "#f7f5f0", "fill-antialias": false } },
        { id: "borders", type: "line", source: "countries", paint: { "line-color": dark ? "#5d6b75" : "#a8a297", "line-width": 0.8 } },
        { id: "cells", type: "fill", source: "cells", paint: { "fill-color": ["get", "color"], "fill-opacity": 0.85 } },
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

function act(made: Mapped, hit: MapGeoJSONFeature, change: Change): void {
  if (hit.layer.id === "patches") {
    change({ patch: String(hit.properties.id) });
    return;
  }
  const at = hit.properties as { lng: number; lat: number };
  made.flyTo({ center: [at.lng, at.lat], zoom: Math.min(NEAR + 1, made.getZoom() + 3), duration: 600 }, { by: "cell" });
}

async function draw(made: Mapped, state: State, collection: api.Collection, signal: AbortSignal): Promise<void> {
  const bounds = made.getBounds();
  const clip = (v: number, most: number) => Math.max(-most, Math.min(most, v));
  const bbox = [clip(bounds.getWest(), 180), clip(bounds.getSouth(), 90), clip(bounds.getEast(), 180), clip(bounds.getNorth(), 90)].join(",");
  const near = made.getZoom() >= NEAR;
  const features = near
    ? await footprints(state, collection, bbox, signal)
    : await cells(state, collection, bbox, Math.min(13, Math.floor(made.getZoom()) + FINER), signal);
  if (signal.aborted) return;
  for (const [name, shown] of [["cells", !near], ["patches", near]] as const) {
    (made.getSource(name) as GeoJSONSource).setData(shown ? { type: "FeatureCollection", features } : EMPTY);
  }
}

async function cells(state: State, collection: api.Collection, bbox: string, zoom: number, signal: AbortSignal): Promise<Feature[]> {
  const parameters: Record<string, string | number> = { ...questionOf(state), zoom, bbox };
  if (state.share) parameters.label = state.share;
  const found = await api.density(collection.id, parameters, signal);
  const most = Math.max(1, ...found.count);
  return found.count.map((n, i) => {
    const [west, north] = corner(found.x[i]!, found.y[i]!, zoom);
    const [east, south] = corner(found.x[i]! + 1, found.y[i]! + 1, zoom);
    const share = found.with_label ? found.with_label[i]! / n : null;
    return {
      type: "Feature",
      geometry: { type: "Polygon", coordinates: [[[west, south], [east, south], [east, north], [west, north], [west, south]]] },
      properties: {
        color: ramp(share ?? Math.log(n + 1) / Math.log(most + 1)),
        said: share === null ? `${number(n)} patches` : `${percent(share)} of ${number(n)} patches`,
        lng: (west + east) / 2,
        lat: (south + north) / 2,
      },
    };
  });
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
      properties: { id: item.id, color, said: `${item.properties.datetime.slice(0, 10)}: ${labels.join(", ") || "no labels"}` },
    };
  });
}

/** Upper left corner of a web map tile, degrees. */
function corner(x: number, y: number, zoom: number): [number, number] {
  const n = 2 ** zoom;
  return [(x / n) * 360 - 180, (Math.atan(Math.sinh(Math.PI * (1 - (2 * y) / n))) * 180) / Math.PI];
}

const STOPS = [
  [255, 237, 160],
  [254, 178, 76],
  [240, 59, 32],
  [128, 0, 38],
] as const;

/** Color of a value from 0 to 1: the brighter the less, in light and dark. */
function ramp(value: number): string {
  const at = Math.min(0.9999, Math.max(0, value)) * (STOPS.length - 1);
  const [low, high] = [STOPS[Math.floor(at)]!, STOPS[Math.floor(at) + 1]!];
  return `rgb(${low.map((v, i) => Math.round(v + (high[i]! - v) * (at % 1))).join(",")})`;
}
