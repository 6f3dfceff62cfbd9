// Bundles the page into dist/: one script, one stylesheet, the map's worker and the outlines of countries.
import { mkdir, readFile, rm, writeFile, copyFile } from "node:fs/promises";
import * as esbuild from "esbuild";
import { feature } from "topojson-client";

const OUT = "dist";
// West, south, east, north: what a map of the archives can show.
const SHOWN = [-32, 25, 60, 75];

await rm(OUT, { recursive: true, force: true });
await mkdir(OUT, { recursive: true });
await esbuild.build({
  entryPoints: { app: "src/main.tsx", worker: "maplibre-gl/dist/maplibre-gl-worker.mjs" },
  outdir: OUT,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "linked",
  logLevel: "warning",
});
await copyFile("src/index.html", `${OUT}/index.html`);
await writeFile(`${OUT}/countries.json`, JSON.stringify(await outlines()));

/** Countries around Europe as GeoJSON, to two decimals: 1 km, half a pixel where patches are drawn. */
async function outlines() {
  const atlas = JSON.parse(await readFile("node_modules/world-atlas/countries-50m.json", "utf8"));
  const countries = feature(atlas, atlas.objects.countries).features;
  const round = (part) =>
    typeof part[0] === "number" ? part.map((v) => Math.round(v * 100) / 100) : part.map(round);
  // A ring over the 180th meridian goes on beyond it instead of back across the map.
  const unwrapped = (ring) => {
    let shift = 0;
    return ring.map(([x, y], i) => {
      const step = i ? x - ring[i - 1][0] : 0;
      if (Math.abs(step) > 180) shift -= 360 * Math.sign(step);
      return [x + shift, y];
    });
  };
  const inside = (ring) =>
    ring.some(([x, y]) => x > SHOWN[0] && x < SHOWN[2] && y > SHOWN[1] && y < SHOWN[3]);
  return {
    type: "FeatureCollection",
    features: countries.flatMap(({ geometry, properties }) => {
      const polygons = geometry.type === "Polygon" ? [geometry.coordinates] : geometry.coordinates;
      const near = polygons.filter(([outer]) => inside(outer)).map((rings) => round(rings.map(unwrapped)));
      if (!near.length) return [];
      return [{ type: "Feature", properties: { name: properties.name }, geometry: { type: "MultiPolygon", coordinates: near } }];
    }),
  };
}
