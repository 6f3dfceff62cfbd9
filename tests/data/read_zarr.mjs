// Read rows of arrays with zarrita, as a web page would: node read_zarr.mjs CUBE.zarr <wanted.json
// Standard input is a list of {path, start, stop}; standard output says of each what came back:
// shape, dimension names, and the values (strings) or the SHA-256 of their bytes (numbers).
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import FileSystemStore from "@zarrita/storage/fs";
import * as zarr from "zarrita";

const root = zarr.root(new FileSystemStore(process.argv[2]));
const wanted = JSON.parse(readFileSync(0, "utf8"));
const found = [];
for (const { path, start, stop } of wanted) {
  const array = await zarr.open.v3(root.resolve(path), { kind: "array" });
  const rows = zarr.slice(start, stop);
  const { data, shape } = await zarr.get(array, [rows, ...array.shape.slice(1).map(() => null)]);
  const bytes = () => Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  const content =
    array.dtype === "string"
      ? { values: Array.from(data) }
      : { sha256: createHash("sha256").update(bytes()).digest("hex") };
  found.push({ shape, dims: array.dimensionNames, ...content });
}
process.stdout.write(JSON.stringify(found));
