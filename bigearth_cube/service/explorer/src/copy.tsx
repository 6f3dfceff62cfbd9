// The same question for other tools: as a STAC request, Python, a command, and a file of the rows.
import { useState } from "preact/hooks";
import * as api from "./api";
import { datetimeOf, filterOf, questionOf, type State } from "./state";

export function CopyAs({ state, collection }: { state: State; collection: api.Collection }) {
  const store = collection.links.find((l) => l.rel === "store")?.href ?? "";
  const cube = store.replace(/\/cube\.zarr$/, "") || "CUBE";
  const ways: ReadonlyArray<readonly [string, string]> = [
    ["STAC query", curl(state)],
    ["Python, through pystac-client", client(state, cube)],
    ["Python, straight from the cube", python(state, cube)],
    ["Command", command(state, cube)],
  ];
  const file = api.urlOf(`collections/${encodeURIComponent(state.collection)}/selection`, questionOf(state));
  return (
    <section class="copy" aria-label="Copy as">
      {ways.map(([title, text]) => (
        <Snippet key={title} title={title} text={text} />
      ))}
      <h2>Selection file</h2>
      <p>
        The rows that are left, frozen, for <code>bec.Selection.load</code> and <code>python -m training fit --selection</code>:{" "}
        <a href={file} download={`${state.collection}-selection.parquet`}>
          selection.parquet
        </a>
      </p>
    </section>
  );
}

function Snippet({ title, text }: { title: string; text: string }) {
  const [said, say] = useState("");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      say("copied");
    } catch {
      say("your browser does not let this page copy; select the text instead");
    }
    setTimeout(() => say(""), 3000);
  };
  return (
    <>
      <h2>{title}</h2>
      <div class="snippet">
        <pre tabIndex={0}>{text}</pre>
        <button type="button" onClick={copy} aria-label={`Copy: ${title}`}>
          Copy
        </button>
        <span role="status">{said}</span>
      </div>
    </>
  );
}

const shell = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`;
const literal = (text: string) => JSON.stringify(text);

function curl(state: State): string {
  const body: Record<string, unknown> = { collections: [state.collection], limit: 100 };
  const question = questionOf(state);
  if (question.datetime) body.datetime = question.datetime;
  if (question.filter) Object.assign(body, { filter: question.filter, "filter-lang": "cql2-text" });
  return `curl ${shell(`${api.ROOT}search`)} \\\n  -H 'Content-Type: application/json' \\\n  -d ${shell(JSON.stringify(body))}`;
}

const keywords = (state: State): string[] => {
  const parts: string[] = [];
  const filter = filterOf(state);
  const datetime = datetimeOf(state);
  if (datetime) parts.push(`datetime=${literal(datetime)}`);
  if (filter) parts.push(`filter=${literal(filter)}`);
  return parts;
};

function client(state: State, cube: string): string {
  // Without a limit a page is of 10 items, and each page a request.
  const given = [`collections=[${literal(state.collection)}]`, ...keywords(state), "limit=1000"].map((k) => `    ${k},\n`).join("");
  return `import bigearth_cube as bec
import pystac_client

client = pystac_client.Client.open(${literal(api.ROOT)})
items = client.search(
${given}).item_collection()
sel = bec.Selection.from_items(items, bec.open_cube(${literal(cube)}))`;
}

function python(state: State, cube: string): string {
  const given = keywords(state);
  const inner = given.length ? `\n${given.map((k) => `    ${k},\n`).join("")}` : "";
  return `import bigearth_cube as bec

cube = bec.open_cube(${literal(cube)})
sel = cube.search(${inner})
loader = bec.BatchLoader(cube, sel, batch_size=512)`;
}

function command(state: State, cube: string): string {
  const parts = [`bec search ${shell(cube)}`];
  const question = questionOf(state);
  if (question.datetime) parts.push(`--datetime ${shell(question.datetime)}`);
  if (question.filter) parts.push(`--filter ${shell(question.filter)}`);
  return [...parts, "--out selection.parquet"].join(" \\\n  ");
}
