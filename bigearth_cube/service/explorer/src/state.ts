// What the page shows, and the address that says so: a view can be shared, and the back button works.

export type View = "map" | "patches" | "charts" | "copy";
export type Flag = "any" | "no" | "yes";

export interface State {
  collection: string;
  view: View;
  /** 19 or 43 classes to choose from. */
  classes: 19 | 43;
  labels: string[];
  /** Whether a patch must have every chosen class, or one of them. */
  every: boolean;
  seasons: string[];
  countries: string[];
  splits: string[];
  from: string;
  to: string;
  snow: Flag;
  cloud: Flag;
  /** Class whose share colors the map; empty for density. */
  share: string;
  /** Longitude, latitude, zoom of the map; null where it was not moved. */
  place: readonly [number, number, number] | null;
  /** Patch that is looked at. */
  patch: string;
  /** Bands that are red, green and blue, or a kind of picture. */
  picture: string;
  /** Pixel of the patch whose spectrum is shown, counted from the upper left; null for none. */
  pixel: readonly [number, number] | null;
  /** Distance by which look-alikes of the patch are shown; empty for none. */
  alike: string;
  /** Model whose look-alikes they are; empty for the first. */
  model: string;
  /** Whether look-alikes are sought within the filters. */
  within: boolean;
}

export const START: State = {
  collection: "",
  view: "map",
  classes: 19,
  labels: [],
  every: false,
  seasons: [],
  countries: [],
  splits: [],
  from: "",
  to: "",
  snow: "any",
  cloud: "any",
  share: "",
  place: null,
  patch: "",
  picture: "true_color",
  pixel: null,
  alike: "",
  model: "",
  within: false,
};

/** Pixels of a side of a patch, at 10 m. */
export const SIZE = 120;

/** Look at a patch, or at none; a pixel and look-alikes were of the one before. */
export const lookAt = (patch: string): Partial<State> => ({ patch, pixel: null, alike: "", model: "", within: false });

const LISTS = ["labels", "seasons", "countries", "splits"] as const;
const TEXTS = ["collection", "from", "to", "share", "patch", "picture", "alike", "model"] as const;
const SWITCHES = ["every", "within"] as const;
const VIEWS: readonly string[] = ["map", "patches", "charts", "copy"];
const FLAGS: readonly string[] = ["no", "yes"];

/** Read a state from the query part of an address; what is not understood is left out. */
export function fromAddress(query: string): State {
  const given = new URLSearchParams(query);
  const state: State = { ...START };
  for (const name of LISTS) state[name] = given.getAll(name);
  for (const name of TEXTS) state[name] = given.get(name) ?? START[name];
  const view = given.get("view") ?? "";
  if (VIEWS.includes(view)) state.view = view as View;
  if (given.get("classes") === "43") state.classes = 43;
  for (const name of SWITCHES) state[name] = given.has(name);
  for (const name of ["snow", "cloud"] as const) {
    const flag = given.get(name) ?? "";
    if (FLAGS.includes(flag)) state[name] = flag as Flag;
  }
  const numbers = (name: string) => (given.get(name) ?? "").split(",").map(Number);
  const pixel = numbers("pixel");
  if (pixel.length === 2 && pixel.every((v) => Number.isInteger(v) && v >= 0 && v < SIZE)) {
    state.pixel = [pixel[0]!, pixel[1]!];
  }
  const place = numbers("at");
  if (place.length === 3 && place.every(Number.isFinite)) {
    state.place = [place[0]!, place[1]!, place[2]!];
  }
  return state;
}

/** Write a state as the query part of an address; what is as at the start is left out. */
export function toAddress(state: State): string {
  const said = new URLSearchParams();
  for (const name of TEXTS) if (state[name] !== START[name]) said.set(name, state[name]);
  if (state.view !== START.view) said.set("view", state.view);
  if (state.classes === 43) said.set("classes", "43");
  for (const name of LISTS) for (const value of state[name]) said.append(name, value);
  for (const name of SWITCHES) if (state[name]) said.set(name, "");
  for (const name of ["snow", "cloud"] as const) if (state[name] !== "any") said.set(name, state[name]);
  if (state.place) said.set("at", state.place.map((v) => Math.round(v * 1e4) / 1e4).join(","));
  if (state.pixel) said.set("pixel", state.pixel.join(","));
  const text = said.toString();
  return text ? `?${text}` : "";
}

const quoted = (text: string) => `'${text.replaceAll("'", "''")}'`;

/** Property that holds the classes of a nomenclature. */
export function labelsOf(state: State): string {
  return state.classes === 43 ? "bec:labels_43" : "bec:labels";
}

type Facet = "labels" | "seasons" | "countries" | "splits" | "snow" | "cloud";

/** The filter as CQL2 text; empty where everything is wanted. One facet may be left out of it. */
export function filterOf(state: State, without?: Facet): string {
  const parts: string[] = [];
  if (without !== "labels" && state.labels.length) {
    const list = state.labels.map(quoted).join(", ");
    parts.push(`${state.every ? "A_CONTAINS" : "A_OVERLAPS"}("${labelsOf(state)}", (${list}))`);
  }
  for (const [facet, property] of [
    ["seasons", "bec:season"],
    ["countries", "bec:country"],
    ["splits", "bec:split"],
  ] as const) {
    const chosen = state[facet];
    if (without === facet || !chosen.length) continue;
    parts.push(
      chosen.length === 1
        ? `"${property}" = ${quoted(chosen[0]!)}`
        : `"${property}" IN (${chosen.map(quoted).join(", ")})`,
    );
  }
  for (const [flag, property] of [
    ["snow", "bec:snow"],
    ["cloud", "bec:cloud_or_shadow"],
  ] as const) {
    if (without !== flag && state[flag] !== "any") parts.push(`"${property}" = ${state[flag] === "yes" ? "TRUE" : "FALSE"}`);
  }
  return parts.join(" AND ");
}

/** The interval of dates as STAC has it; empty where none is chosen. */
export function datetimeOf(state: State): string {
  if (!state.from && !state.to) return "";
  const from = state.from ? `${state.from}T00:00:00Z` : "..";
  const to = state.to ? `${state.to}T23:59:59Z` : "..";
  return `${from}/${to}`;
}

/** What narrows the archive, as parameters of a request. */
export function questionOf(state: State, without?: Facet): Record<string, string> {
  const question: Record<string, string> = {};
  const filter = filterOf(state, without);
  const datetime = datetimeOf(state);
  if (filter) question.filter = filter;
  if (datetime) question.datetime = datetime;
  return question;
}
