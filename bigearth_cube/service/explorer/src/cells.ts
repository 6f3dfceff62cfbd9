// Cells of the density: a pixel each, on a canvas over the map. The map itself is not drawn anew when they change:
// where WebGL is drawn by the processor, each of its frames takes 100 ms.
import type { Map as Mapped } from "maplibre-gl";
import type { Density } from "./api";
import { number, percent } from "./text";

/** A cell is 512 / 2^5 = 16 px wide. */
const FINER = 5;
const FINEST = 13;

/** An image of a pixel a cell: where it lies, and what is said of each, by x and y of its tile. */
export interface Cells {
  zoom: number;
  image: ImageData;
  west: number;
  north: number;
  said: Map<string, string>;
}

/** Zoom of the web map tiles that are cells of a map at a zoom. */
export function cellZoom(zoom: number): number {
  return Math.min(FINEST, Math.floor(zoom) + FINER);
}

/** Color the counts, or the shares of a class where they came with them. */
export function cellsOf({ zoom, x, y, count, with_label }: Density): Cells {
  const most = Math.max(1, ...count);
  const span = (of: number[]) => [Math.min(...of, 2 ** zoom - 1), Math.max(...of, 0)] as const;
  const [[west, east], [north, south]] = [span(x), span(y)];
  // Nothing found: a pixel that is clear.
  const image = new ImageData(Math.max(1, east - west + 1), Math.max(1, south - north + 1));
  const said = new Map<string, string>();
  count.forEach((n, i) => {
    const share = with_label ? with_label[i]! / n : null;
    const color = ramp(share ?? Math.log(n + 1) / Math.log(most + 1));
    image.data.set([...color, 255], 4 * ((y[i]! - north) * image.width + x[i]! - west));
    said.set(`${x[i]}/${y[i]}`, share === null ? `${number(n)} patches` : `${percent(share)} of ${number(n)} patches`);
  });
  return { zoom, image, west, north, said };
}

/** The canvas: it moves with the map, which is neither turned nor tilted. */
export class CellsLayer {
  private readonly canvas = document.createElement("canvas");
  private shown: Cells | null = null;

  constructor(private readonly map: Mapped) {
    this.canvas.className = "cells";
    this.canvas.setAttribute("aria-hidden", "true");
    this.canvas.hidden = true;
    map.getCanvasContainer().append(this.canvas);
    map.on("move", () => this.move());
    map.on("resize", () => this.move());
  }

  /** Draw cells, or none. */
  show(cells: Cells | null): void {
    this.shown = cells;
    this.canvas.hidden = !cells;
    if (!cells) return;
    this.canvas.width = cells.image.width;
    this.canvas.height = cells.image.height;
    this.canvas.getContext("2d")!.putImageData(cells.image, 0, 0);
    this.move();
  }

  private move(): void {
    if (!this.shown) return;
    const { zoom, image, west, north } = this.shown;
    const first = this.map.project(corner(west, north, zoom));
    const last = this.map.project(corner(west + image.width, north + image.height, zoom));
    const [wide, high] = [(last.x - first.x) / image.width, (last.y - first.y) / image.height];
    this.canvas.style.transform = `translate(${first.x}px, ${first.y}px) scale(${wide}, ${high})`;
  }
}

/** Web map tile that holds a place. */
export function tileOf(lng: number, lat: number, zoom: number): [number, number] {
  const y = (1 - Math.asinh(Math.tan((lat * Math.PI) / 180)) / Math.PI) / 2;
  return [Math.floor(((lng + 180) / 360) * 2 ** zoom), Math.floor(y * 2 ** zoom)];
}

/** Upper left corner of a web map tile, degrees. */
export function corner(x: number, y: number, zoom: number): [number, number] {
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
function ramp(value: number): number[] {
  const at = Math.min(0.9999, Math.max(0, value)) * (STOPS.length - 1);
  const [low, high] = [STOPS[Math.floor(at)]!, STOPS[Math.floor(at) + 1]!];
  return low.map((v, i) => Math.round(v + (high[i]! - v) * (at % 1)));
}
