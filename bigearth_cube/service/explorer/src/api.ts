// Requests to the service that this page came from, and to no other.

/** Root of the API: the page stands one level below it, wherever that is. */
export const ROOT = new URL("..", document.baseURI.replace(/[^/]*$/, "")).href;

export interface Item {
  id: string;
  bbox: [number, number, number, number];
  geometry: { type: "Polygon"; coordinates: number[][][] };
  properties: Record<string, unknown> & {
    datetime: string;
    "bec:labels"?: string[] | null;
    "bec:labels_43"?: string[] | null;
  };
  assets: Record<string, unknown>;
  links: Link[];
}

export interface Link {
  rel: string;
  href: string;
}

export interface Page {
  features: Item[];
  numberMatched: number;
  links: Link[];
}

export interface Collection {
  id: string;
  title: string;
  extent: { spatial: { bbox: [number, number, number, number][] }; temporal: { interval: [string, string][] } };
  item_assets?: Record<string, unknown>;
  links: Link[];
  "table:row_count"?: number;
}

export type Counts = Record<string, number>;

export interface Aggregates {
  total: number;
  of: Record<string, Counts>;
}

export interface Density {
  zoom: number;
  matched: number;
  x: number[];
  y: number[];
  count: number[];
  with_label?: number[];
}

export interface Value {
  name: string;
  value: number | null;
  reflectance?: number | null;
  wavelength_um?: number;
  class?: string;
}

/** What the service said when it refused, in its own words. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

export function urlOf(path: string, parameters: Record<string, string | number> = {}): string {
  const url = new URL(path, ROOT);
  for (const [name, value] of Object.entries(parameters)) url.searchParams.set(name, String(value));
  return url.href;
}

async function get<T>(url: string, signal?: AbortSignal): Promise<T> {
  let answer: Response;
  try {
    answer = await fetch(url, { signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refused(0, "the service cannot be reached; is it still running?");
  }
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, said.description ?? `the service answered ${answer.status}`);
  }
  return answer.json();
}

const own = (collection: string, rest: string) => `collections/${encodeURIComponent(collection)}/${rest}`;
const ofItem = (collection: string, id: string, rest: string) =>
  own(collection, `items/${encodeURIComponent(id)}${rest}`);

export async function collections(signal?: AbortSignal): Promise<Collection[]> {
  return (await get<{ collections: Collection[] }>(urlOf("collections"), signal)).collections;
}

export async function queryables(collection: string, signal?: AbortSignal): Promise<string[]> {
  const found = await get<{ properties: Record<string, unknown> }>(urlOf(own(collection, "queryables")), signal);
  return Object.keys(found.properties);
}

export async function aggregate(
  collection: string,
  names: readonly string[],
  question: Record<string, string>,
  signal?: AbortSignal,
): Promise<Aggregates> {
  interface Found {
    name: string;
    value?: number;
    buckets?: { key: string; frequency: number }[];
  }
  const url = urlOf(own(collection, "aggregate"), { ...question, aggregations: ["total_count", ...names].join(",") });
  const { aggregations } = await get<{ aggregations: Found[] }>(url, signal);
  const of: Record<string, Counts> = {};
  let total = 0;
  for (const found of aggregations) {
    if (found.name === "total_count") total = found.value ?? 0;
    else of[found.name] = Object.fromEntries((found.buckets ?? []).map((b) => [b.key, b.frequency]));
  }
  return { total, of };
}

export function density(
  collection: string,
  parameters: Record<string, string | number>,
  signal?: AbortSignal,
): Promise<Density> {
  return get(urlOf(own(collection, "density"), parameters), signal);
}

export function items(
  collection: string,
  parameters: Record<string, string | number>,
  signal?: AbortSignal,
): Promise<Page> {
  return get(urlOf(own(collection, "items"), parameters), signal);
}

export function nextPage(page: Page, signal?: AbortSignal): Promise<Page> | null {
  const link = page.links.find((l) => l.rel === "next");
  return link ? get(link.href, signal) : null;
}

export const item = (collection: string, id: string, signal?: AbortSignal): Promise<Item> =>
  get(urlOf(ofItem(collection, id, "")), signal);

export const dates = (collection: string, id: string, signal?: AbortSignal): Promise<Page> =>
  get(urlOf(ofItem(collection, id, "/dates")), signal);

export const similar = (
  collection: string,
  id: string,
  parameters: Record<string, string | number>,
  signal?: AbortSignal,
): Promise<Page> => get(urlOf(ofItem(collection, id, "/similar"), parameters), signal);

export async function spectrum(
  collection: string,
  id: string,
  x: number,
  y: number,
  signal?: AbortSignal,
): Promise<Value[]> {
  return (await get<{ bands: Value[] }>(urlOf(ofItem(collection, id, "/spectrum"), { x, y }), signal)).bands;
}

export async function models(collection: string, signal?: AbortSignal): Promise<string[]> {
  const found = await get<{ models: { name: string }[] }>(urlOf(own(collection, "models")), signal);
  return found.models.map((m) => m.name);
}

export interface Prediction {
  model: string;
  threshold: number | null;
  scores: Counts;
}

export async function predictions(collection: string, id: string, signal?: AbortSignal): Promise<Prediction[]> {
  return (await get<{ models: Prediction[] }>(urlOf(ofItem(collection, id, "/predictions")), signal)).models;
}

/** Classes of the reference map of a patch and how many of its pixels each has, most first. */
export async function legend(collection: string, id: string, signal?: AbortSignal): Promise<[number, number][]> {
  const group = "reference/r10m";
  const found = await get<{ groups: Record<string, { values: number[] }> }>(
    urlOf(ofItem(collection, id, "/pixels"), { groups: group }),
    signal,
  );
  const counts = new Map<number, number>();
  for (const code of found.groups[group]?.values ?? []) counts.set(code, (counts.get(code) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]);
}

export function pictureUrl(collection: string, id: string, picture: string): string {
  const parameters: Record<string, string> = picture.includes(",") ? { bands: picture } : { kind: picture };
  return urlOf(ofItem(collection, id, "/thumbnail.png"), parameters);
}

/** Labels of an item in either nomenclature, or null where none are known. */
export function labelsIn(found: Item, classes: 19 | 43): string[] | null {
  const own = classes === 43 ? found.properties["bec:labels_43"] : found.properties["bec:labels"];
  return own ?? null;
}

/** Labels of an item in words: none is not unknown. */
export function labelsSaid(found: Item, classes: 19 | 43): string {
  const labels = labelsIn(found, classes);
  return labels ? labels.join(", ") || "no labels" : "labels unknown";
}
