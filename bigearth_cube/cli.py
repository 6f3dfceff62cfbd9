"""The ``bec`` command: parse, make one library call, print.

Results go to standard output, progress and warnings to standard error. Exit codes: 0 done,
1 damaged (verify), 2 wrong input, no such thing or storage unreachable, 3 done with patches in
quarantine, 130 interrupted, 141 if who reads the output went away.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bigearth_cube.errors import BigEarthCubeError, CubeIntegrityError, NotFoundError
from bigearth_cube.terminal import dask_client, os_error_text, progress_bars, silence_dask

EXIT_DAMAGED, EXIT_WRONG, EXIT_QUARANTINE, EXIT_INTERRUPTED = 1, 2, 3, 130
EXIT_NO_READER = 141  # as the shell has it of a process that SIGPIPE ended
EXIT_CODES = (
    "Exits with 0 when done, even if a search finds no patch, 2 on wrong input, what does not exist "
    "or storage out of reach, and 130 when interrupted."
)
_EXTRAS = {
    "matplotlib": "train",
    "faiss": "similar",
    **dict.fromkeys(("pystac", "pystac_client"), "client"),
    **dict.fromkeys(("psycopg", "pypgstac"), "pgstac"),
    **dict.fromkeys(
        ("attr", "brotli", "fastapi", "orjson", "pydantic", "stac_fastapi", "starlette", "uvicorn"),
        "service",
    ),
}
ARCHIVE_FIELDS = ("found", "ingested", "orphans", "quarantined")


def main(argv: list[str] | None = None) -> None:
    """Run the command and turn errors into one line each."""
    logging.basicConfig(format="bec: %(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        cli.main(argv, standalone_mode=False)
    except BigEarthCubeError as error:
        click.echo(f"bec: {error}", err=True)
        code = EXIT_DAMAGED if isinstance(error, CubeIntegrityError) else EXIT_WRONG
        sys.exit(code)
    except click.exceptions.Abort:
        arguments = sys.argv[1:] if argv is None else argv
        go_on = "; run the same command again to go on" if "ingest" in arguments[:1] else ""
        click.echo(f"bec: interrupted{go_on}", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_WRONG)
    except OSError as error:  # a folder that may not be written, a full disk
        click.echo(f"bec: {os_error_text(error)}", err=True)
        sys.exit(EXIT_WRONG)


class _Command(click.Command):
    """A command whose help ends with the exit codes that all of them have."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        super().__init__(name, **{"epilog": EXIT_CODES, **settings})


class _Group(click.Group):
    command_class = _Command
    group_class = type  # the same for a group within

    def invoke(self, ctx: click.Context) -> Any:
        """Stop when nobody reads any more (``| head -1``): click exits with 1, which is damage."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
            sys.exit(EXIT_NO_READER)


class _LocalFolder(click.Path):
    """A folder of this machine."""

    def __init__(self) -> None:
        super().__init__(file_okay=False)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if "://" in str(value):
            self.fail(f"{value!r} is a URL; DIRECTORY is a local folder", param, ctx)
        return super().convert(value, param, ctx)


@click.group(
    cls=_Group,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="bigearth-cube", prog_name="bec")
def cli() -> None:
    """BigEarthNet as a cloud-native cube.

    CUBE is a path or URL such as s3://bucket/bigearthnet-v2. Credentials and endpoint come from
    the AWS environment (AWS_PROFILE, AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...).
    """


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@cli.command()
@click.argument("directory", type=_LocalFolder())
@click.option("--archive", type=click.Choice(["v1", "v2"]), default="v2", show_default=True)
@click.option("--patches", type=click.IntRange(min=1), required=True, help="How many.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same bytes.")
@click.option(
    "--metadata",
    type=click.Path(exists=True, dir_okay=False),
    help="Official metadata.parquet: take real names, labels, splits, countries and dates.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes; one a core by default.")
def synth(
    directory: str,
    archive: str,
    patches: int,
    seed: int,
    metadata: str | None,
    workers: int | None,
) -> None:
    """Write a believable archive in the published layout.

    \b
    Example:
      bec synth /tmp/archive --archive v2 --patches 1000
    """
    synthetic = _extra("bigearth_cube.archive.synthetic")
    with _progress("writing", patches) as advance:
        synthetic.write_archive(
            directory,
            archive=archive,
            n_patches=patches,
            seed=seed,
            metadata=metadata,
            workers=workers,
            progress=advance,
        )
    click.echo(f"wrote {patches:,} patches in the {archive} layout to {directory}")


@cli.command()
@click.argument("sources", nargs=-1, required=True)
@click.argument("cube")
@click.option("--archive", type=click.Choice(["auto", "v1", "v2"]), default="auto")
@click.option("--id", "cube_id", help="Name of a new cube, which is its collection.")
@click.option(
    "--profile",
    type=click.Choice(["default", "fast"]),
    default="default",
    help="Compression of a new cube: zstd, or lz4.",
    show_default=True,
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Dask workers here, of tars threads that encode; one a core.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Dask scheduler to run on instead. Tars are read and encoded by this process all the same.",
)
@click.option(
    "--metadata-only",
    is_flag=True,
    help="Make a cube of the v2 parquets alone: all items and labels, no pixels.",
)
@click.option(
    "--require-complete", is_flag=True, help="Refuse a source that lacks patches of its own lists."
)
@click.option(
    "--spill",
    metavar="URL",
    help="Where chunks of tars go that do not fit into memory.  [default: below the cube]",
)
@click.option("--break-lock", is_flag=True, help="Take the cube over from a run that holds it.")
@json_option
def ingest(
    sources: tuple[str, ...],
    cube: str,
    archive: str,
    cube_id: str | None,
    profile: str,
    workers: int | None,
    scheduler: str | None,
    metadata_only: bool,
    require_complete: bool,
    spill: str | None,
    break_lock: bool,
    as_json: bool,
) -> None:
    """Ingest archive folders or tars into a cube; run it again to resume.

    SOURCES are folders of one archive (or its root), or its published tars, path or URL, which
    are read as streams; and its metadata files: the v2 parquets, the v1 lists. Sentinel-1 and
    reference maps may come in a later run, and so may lists: what they say of published rows is
    in the next release. Exits with 3 if patches had to be put into quarantine.

    \b
    Examples:
      bec ingest BigEarthNet-S2/ BigEarthNet-S1/ metadata.parquet s3://bucket/bigearthnet-v2
      bec ingest BigEarthNet-S2.tar.zst metadata.parquet s3://bucket/bigearthnet-v2
      bec ingest --metadata-only metadata.parquet s3://bucket/bigearthnet-v2-catalog
    """
    ingesting = _extra("bigearth_cube.ingest")
    silence_dask()
    with _client(scheduler) as client, _progress("ingesting", None) as advance:
        report = ingesting.ingest(
            list(sources),
            cube,
            archive=archive,
            cube_id=cube_id,
            profile=profile,
            workers=workers,
            client=client,
            metadata_only=metadata_only,
            require_complete=require_complete,
            spill=spill,
            break_lock=break_lock,
            progress=advance,
        )
    if as_json:
        click.echo(json.dumps(asdict(report), indent=1, default=str))
    else:
        _print_report(report, sources)
    if report.quarantined:
        sys.exit(EXIT_QUARANTINE)


def _print_report(report: Any, sources: Sequence[str]) -> None:
    table = _table("", *ARCHIVE_FIELDS)
    for kind, account in report.accounts.items():
        if account.found:
            table.add_row(kind, *(f"{getattr(account, name):,}" for name in ARCHIVE_FIELDS))
    if table.row_count:
        _print(table)
    state = f"release {report.release}" if report.release else "nothing new"
    click.echo(f"{report.cube_url}: {state}, {report.n_rows:,} patches, {report.seconds:.1f} s")
    if report.resumed_shards:
        click.echo(f"resumed: {report.resumed_shards:,} shards were already written")
    if report.n_absent:
        click.echo(f"absent: {report.n_absent:,} patches that the lists hold are not in the source")
    has_lists = any(source.endswith((".parquet", ".csv", ".csv.bz2")) for source in sources)
    if report.n_unlabeled:
        advice = "run again with metadata.parquet and metadata_for_patches_with_…parquet"
        advice = "the lists that were given do not name them" if has_lists else advice
        click.echo(f"without labels: {report.n_unlabeled:,} patches; {advice}")
    elif report.n_unsplit:
        advice = "run again with the official lists"
        advice = "the lists that were given do not name them" if has_lists else advice
        click.echo(f"without a split: {report.n_unsplit:,} patches; {advice}")
    if report.n_restated:
        click.echo(
            f"learned: labels, split, country or flags of {report.n_restated:,} rows of earlier "
            f"releases, which keep what they knew"
        )
    for name in ("quarantined", "orphans"):
        entries = getattr(report, name)
        for entry in entries[:5]:
            click.echo(f"{name}: {entry.id}: {entry.reason} ({entry.file})")
        if len(entries) > 5:
            where = f"ingest/{report.release}/" if report.release else "--json"
            click.echo(f"{name}: and {len(entries) - 5:,} more, see {where}")


@cli.command("give-up")
@click.argument("cube")
@click.option("--break-lock", is_flag=True, help="Take the cube over from a run that holds it.")
@json_option
def give_up(cube: str, break_lock: bool, as_json: bool) -> None:
    """Undo an ingest that did not end: the cube is again as its last release left it.

    \b
    Example:
      bec give-up s3://bucket/bigearthnet-v2
    """
    done = _extra("bigearth_cube.ingest").give_up(cube, break_lock=break_lock)
    if as_json:
        click.echo(json.dumps(asdict(done), indent=1))
        return
    click.echo(
        f"gave up release {done.release}: {done.n_removed:,} objects removed, "
        f"{done.n_restored:,} written back as they were"
    )


@cli.command()
@click.argument("sources", nargs=-1, required=True)
@click.argument("cube")
@click.option("--archive", type=click.Choice(["auto", "v1", "v2"]), default="auto")
@click.option(
    "--profile",
    type=click.Choice(["default", "fast"]),
    default="default",
    help="Compression: zstd, or lz4.",
    show_default=True,
)
@click.option("--workers", type=click.IntRange(min=1), help="Cores to reckon with.")
@json_option
def plan(
    sources: tuple[str, ...],
    cube: str,
    archive: str,
    profile: str,
    workers: int | None,
    as_json: bool,
) -> None:
    """Say what an ingest would read and write, how long it would take and what it would cost.

    Nothing is written. Bytes and time are those of up to 64 patches, read and encoded here.

    \b
    Example:
      bec plan BigEarthNet-S2.tar.zst metadata.parquet s3://bucket/bigearthnet-v2
    """
    ingesting = _extra("bigearth_cube.ingest")
    found = ingesting.forecast(
        list(sources), cube, archive=archive, profile=profile, workers=workers
    )
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1))
        return
    if found.release is None:
        click.echo("nothing new")
        return
    views = ", ".join(f"{n:,} {kind}" for kind, n in found.views.items() if n)
    minutes, seconds = divmod(round(found.seconds), 60)
    took = f"{minutes} min {seconds} s" if minutes or seconds else "less than 1 s"
    for name, value in (
        ("release", found.release),
        ("patches", f"{found.patches:,} new rows; {views}"),
        ("read", f"{found.read_bytes / 1e9:,.3f} GB"),
        ("write", f"{found.write_bytes / 1e9:,.3f} GB in {found.objects:,} objects, a PUT each"),
        ("time", f"{took} on {found.workers} cores; network and reading of lists not counted"),
        ("keeping", f"${found.dollars_a_month:,.2f} a month ({found.prices})"),
        ("writing", f"${found.dollars_of_requests:,.4f} of requests"),
    ):
        click.echo(f"{name:<9}{value}")


@cli.command("plan-training")
@click.argument("cube")
@click.option("--split", help="train, validation or test.  [default: every patch]")
@click.option("--selection", metavar="FILE", help="Rows to read, instead of --split.")
@click.option(
    "--epochs", type=click.IntRange(min=1), default=1, show_default=True, help="How many."
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=256, show_default=True, help="Its rows."
)
@click.option(
    "--group", "groups", multiple=True, help="Pixel group; may be repeated.  [default: Sentinel-2]"
)
@click.option(
    "--shuffle",
    type=click.Choice(["pool", "exact", "none"]),
    default="pool",
    show_default=True,
    help="How rows are mixed: exact reads a chunk again for nearly every row.",
)
@click.option("--bucket-region", default="us-east-1", show_default=True, help="Of the bucket.")
@click.option(
    "--region", help="Of the compute, or 'outside' the cloud.  [default: that of the bucket]"
)
@json_option
def plan_training(
    cube: str,
    split: str | None,
    selection: str | None,
    epochs: int,
    batch_size: int,
    groups: tuple[str, ...],
    shuffle: str,
    bucket_region: str,
    region: str | None,
    as_json: bool,
) -> None:
    """Say what reading for a training would ask of storage, and what that would cost.

    Read are the index of some shards and the items; no pixels. The machines are not reckoned.

    \b
    Example:
      bec plan-training s3://bucket/bigearthnet-v2 --split train --epochs 100
    """
    cost = _extra("bigearth_cube.loader.cost")
    opened = _open(cube, None)
    rows = None
    if selection is not None:
        rows = _extra("bigearth_cube.search").Selection.load(selection)
    elif split is not None:
        rows = opened.search(split=split)
    found = cost.plan_training(
        opened,
        rows,
        batch_size=batch_size,
        epochs=epochs,
        groups=groups or cost.S2,
        shuffle=shuffle,
        region=region,
        bucket_region=bucket_region,
    )
    if found.warning:
        click.echo(f"bec: {found.warning}", err=True)
    if as_json:
        more = {"dollars": found.dollars, "dollars_an_epoch": found.dollars_an_epoch}
        click.echo(json.dumps({**asdict(found), **more}, indent=1))
        return
    epoch, total = found.first, found.total
    for name, value in (
        ("patches", f"{found.patches:,} in {found.batches:,} batches of up to {batch_size:,}"),
        ("epoch", f"{epoch.requests:,} GETs, {epoch.bytes / 1e9:,.3f} GB, the first"),
        ("in all", f"{total.requests:,} GETs, {total.bytes / 1e9:,.3f} GB in {epochs:,} epochs"),
        ("requests", f"${found.dollars_of_requests:,.4f} ({found.prices})"),
        ("transfer", f"${found.dollars_of_transfer:,.4f}, {found.bucket_region} to {found.region}"),
        ("dollars", f"${found.dollars:,.4f}, ${found.dollars_an_epoch:,.4f} an epoch"),
    ):
        click.echo(f"{name:<9}{value}")


@cli.command()
@click.argument("cube")
@click.option("--release", help="An older release.")
@json_option
def info(cube: str, release: str | None, as_json: bool) -> None:
    """Say what a cube holds.

    \b
    Example:
      bec info s3://bucket/bigearthnet-v2
    """
    opened = _open(cube, release)
    groups = {
        path: {
            "shape": [layout.n_rows, *layout.patch_shape],
            "dtype": layout.dtype,
            "chunk_rows": layout.chunk_rows,
            "shard_rows": layout.shard_rows,
        }
        for path in opened.layout.groups
        if (layout := opened.pixel_layout(path))
    }
    facts = {
        "id": opened.id,
        "archive": opened.archive,
        "release": opened.release.name,
        "patches": opened.n_patches,
        "rows": opened.n_rows,
        "groups": groups,
    }
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    for name in ("id", "archive", "release", "patches", "rows"):
        value = facts[name]
        click.echo(f"{name:<9}{value:,}" if isinstance(value, int) else f"{name:<9}{value}")
    if not groups:
        click.echo("no pixels: it was made from lists alone")
        return
    table = _table("group", "shape", "dtype", "chunk", "shard")
    for path, group in groups.items():
        shape = " x ".join(map(str, group["shape"]))
        table.add_row(
            path, shape, group["dtype"], *(str(group[k]) for k in ("chunk_rows", "shard_rows"))
        )
    _print(table)


@cli.command()
@click.argument("cube")
@click.option("--plot", metavar="FILE", help="Draw the counts too, e.g. to counts.png.")
@json_option
def stats(cube: str, plot: str | None, as_json: bool) -> None:
    """Count patches by split, season, country, flag and class, with and without flagged ones.

    \b
    Example:
      bec stats s3://bucket/bigearthnet-v2 --plot counts.png
    """
    plots = None if plot is None else _extra("bigearth_cube.plots")
    opened = _open(cube, None)
    counts = opened.counts()
    if plot is not None and plots is not None:
        plots.draw_counts(counts, f"{opened.id}, release {opened.release.name}", plot)
        click.echo(f"drawn to {plot}", err=True)
    if as_json:
        click.echo(json.dumps(counts, indent=1))
        return
    splits = [cells["total"] for cells in counts["split"].values()]
    n_patches, n_unflagged = (sum(n[kind] for n in splits) for kind in ("all", "unflagged"))
    n_unknown = counts["flag"].get("unknown", {}).get("total", {}).get("all", 0)
    unknown = f", flags unknown of {n_unknown:,}" if n_unknown else ""
    click.echo(f"{n_patches:,} patches, {n_unflagged:,} of them unflagged{unknown}")
    for title, rows in counts.items():
        for kind in ("all",) if title == "flag" or not n_unflagged else ("all", "unflagged"):
            columns = list(next(iter(rows.values()), {}))
            heading = title if kind == "all" else f"{title}, {kind}"
            table = _table(heading, *columns, wrap_first=True)
            for name, cells in rows.items():
                table.add_row(name, *(f"{cells[column][kind]:,}" for column in columns))
            click.echo()
            _print(table)


@cli.command()
@click.argument("cube")
@json_option
def releases(cube: str, as_json: bool) -> None:
    """List the releases of a cube.

    \b
    Example:
      bec releases s3://bucket/bigearthnet-v2
    """
    found = _open(cube, None).releases
    if as_json:
        click.echo(json.dumps([asdict(r) for r in found], indent=1))
        return
    table = _table("release", "patches", "rows", "groups", "created", "digest")
    for r in found:
        rows = f"{r.start}..{r.stop - 1}" if r.stop > r.start else "-"
        late = [f"{group} (late)" for group in dict.fromkeys(group for group, *_ in r.late)]
        learned = ["labels (learned)"] if r.label_arrays else []
        groups = " ".join([*r.arrays, *late, *learned])
        table.add_row(r.name, f"{r.n_patches:,}", rows, groups, r.created, r.digest[:12])
    _print(table)


@cli.command()
@click.argument("cube")
@json_option
def verify(cube: str, as_json: bool) -> None:
    """Re-read every object of a cube against its checksum; exits with 1 if any is damaged.

    \b
    Example:
      bec verify s3://bucket/bigearthnet-v2
    """
    opened = _open(cube, None)
    objects = opened.recorded_objects()
    faults: list[CubeIntegrityError] = []
    with _progress("verifying", len(objects)) as advance:
        for done, fault in opened.verify(objects):
            advance(done, len(objects))
            if fault is not None:
                faults.append(fault)
    if as_json:
        listed = [
            {
                "key": f.key,
                "reason": f.reason,
                "rows": list(f.rows),
                "patches": opened.patches_in(f.rows),
            }
            for f in faults
        ]
        click.echo(json.dumps({"objects": len(objects), "damaged": listed}, indent=1))
    else:
        for fault in faults:
            click.echo(str(fault))
            patches = opened.patches_in(fault.rows)
            if patches:
                click.echo(f"  {len(patches):,} patches: {patches[0]} to {patches[-1]}")
        click.echo(f"{len(objects):,} objects read, {len(faults):,} damaged or missing")
    if faults:
        sys.exit(EXIT_DAMAGED)


@cli.command()
@click.argument("cube", metavar="CUBE|API_URL")
@click.option("--collection", metavar="ID", help="Of a STAC API that has several.")
@click.option("--bbox", help="west,south,east,north in degrees.")
@click.option("--datetime", "when", help="Instant or interval, e.g. 2018-03/2018-05.")
@click.option("--filter", "cql2", help='CQL2 text, e.g. "\\"bec:season\\" = \'summer\'".')
@click.option("--split", help="train, validation or test.")
@click.option("--out", metavar="FILE", help="Save the selection, for training.")
@click.option(
    "--limit", type=click.IntRange(min=0), default=10, show_default=True, help="Ids to print."
)
@json_option
def search(
    cube: str,
    collection: str | None,
    bbox: str | None,
    when: str | None,
    cql2: str | None,
    split: str | None,
    out: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Find patches by place, time, labels and every other property.

    A cube and a STAC API that serves it give the same selection.

    \b
    Examples:
      bec search s3://bucket/bigearthnet-v2 --split train --out train.parquet
      bec search http://127.0.0.1:8000 --collection bigearthnet-v2 --split train
    """
    query = {"bbox": _box(bbox), "datetime": when, "filter": cql2, "split": split}
    asked = {name: value for name, value in query.items() if value is not None}
    selection = _selected(cube, collection, asked)
    first = selection.ids[:limit].to_pylist()
    if out is not None:
        selection.save(out)
    if as_json:
        facts = {
            "cube": selection.cube_id,
            "release": selection.release,
            "digest": selection.digest,
            "patches": len(selection),
            "ids": first,
        }
        click.echo(json.dumps(facts, indent=1))
        return
    for patch_id in first:
        click.echo(patch_id)
    click.echo(f"{len(selection):,} patches, selection {selection.digest[:12]}")
    if out is not None:
        click.echo(f"saved to {out}")


@cli.command()
@click.argument("cube")
@click.option("--patch", "patch_id", required=True, metavar="ID", help="The query.")
@click.option("-k", default=10, show_default=True, help="How many, 1 to 10,000.")
@click.option("--model", help="Whose embeddings; not needed where the cube has one model.")
@click.option(
    "--query-model",
    metavar="MODEL",
    help="Embeddings that the query's vector is taken from, of the same space as --model: its "
    "Sentinel-1 view finds Sentinel-2 views by --query-model NAME-s1 --model NAME-s2.",
)
@click.option(
    "--metric",
    type=click.Choice(["chi2", "cosine", "euclidean", "hamming"]),
    default="chi2",
    show_default=True,
    help="Distance. chi2 needs features that are never negative; hamming counts the features "
    "that are above zero in one of the two only.",
)
@click.option("--bbox", metavar="W,S,E,N", help="Answers from this box only.")
@click.option("--datetime", "when", metavar="WHEN", help="Answers of this time only.")
@click.option("--filter", "cql", metavar="CQL2", help="Answers that this filter finds only.")
@click.option("--split", help="Answers of this split only.")
@click.option(
    "--index",
    "folder",
    type=_LocalFolder(),
    help="Keep the vectors here: written by the first call, mapped into memory by later ones.",
)
@click.option(
    "--fast",
    is_flag=True,
    help="Look into some cells of an inverted file only; its measured recall is printed.",
)
@click.option("--plot", metavar="FILE", help="Draw query and answers as PNG.")
@json_option
def similar(
    cube: str,
    patch_id: str,
    k: int,
    model: str | None,
    query_model: str | None,
    metric: str,
    bbox: str | None,
    when: str | None,
    cql: str | None,
    split: str | None,
    folder: str | None,
    fast: bool,
    plot: str | None,
    as_json: bool,
) -> None:
    """List the patches that look most like one patch.

    \b
    Example:
      bec similar s3://bucket/bigearthnet-v2 --patch S2A_..._26_57 -k 5 --split train
    """
    retrieval = _extra("bigearth_cube.retrieval")
    plots = _extra("bigearth_cube.plots") if plot else None
    opened = _open(cube, None)
    query = {"bbox": _box(bbox), "datetime": when, "filter": cql, "split": split}
    asked = {name: value for name, value in query.items() if value is not None}
    chosen = retrieval.the_model(opened, model)
    if retrieval.asking_model(opened, chosen, query_model) != chosen and fast:
        raise click.UsageError(
            f"--fast has its recall measured on queries of {chosen!r}, not of {query_model!r}; leave "
            f"one of --fast and --query-model out"
        )
    index = _vector_index(opened, chosen, metric, folder, fast)
    found = retrieval.neighbors(
        opened,
        patch_id,
        query_model=query_model,
        k=k,
        metric=metric,
        among=opened.search(**asked) if asked else None,
        index=index,
    )
    if plots:
        model = index.origin.model
        asked_by = f", asked by {query_model}" if query_model else ""
        title = f"Nearest by {metric} of {model}{asked_by}"
        plots.draw_look_alikes(opened, patch_id, found, plot, title)
        click.echo(f"drawn to {plot}", err=True)
    if as_json:
        click.echo(json.dumps([asdict(n) for n in found], indent=1))
        return
    table = _table("rank", "patch", "distance")
    for rank, neighbor in enumerate(found, 1):
        table.add_row(str(rank), neighbor.id, f"{neighbor.score:.4f}")
    _print(table)
    if fast:
        click.echo(f"recall@10 {index.recall:.3f}, measured when the index was made")


def _vector_index(cube: Any, model: str | None, metric: str, folder: str | None, fast: bool) -> Any:
    """Read the index kept in a folder, or make it and keep it there."""
    retrieval = _extra("bigearth_cube.retrieval")
    ivf = _extra("bigearth_cube.retrieval.ivf") if fast else None
    index: Any = None
    if folder is not None:
        with suppress(NotFoundError):  # so this is the first call
            if ivf:
                index = ivf.IvfIndex.load(folder, cube, metric, model)
            else:
                index = retrieval.VectorIndex.load(folder, cube, model)
    if index is None:
        index = retrieval.VectorIndex.of(cube, model)
        if ivf:
            index = ivf.IvfIndex.of(index, metric)
        if folder is not None:
            index.save(folder)
    return index


@cli.command()
@click.argument("cubes", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8000,
    show_default=True,
    help="Where to listen; 0 takes a free one.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes; each holds the items of all cubes.",
)
def serve(cubes: tuple[str, ...], host: str, port: int, workers: int) -> None:
    """Serve cubes: STAC API, thumbnails, look-alikes, and an explorer for the browser.

    Requests are logged on standard error. An interrupt or SIGTERM ends it after the requests
    that are under way.

    \b
    Example:
      bec serve s3://bucket/bigearthnet-v2 --port 8000
    """
    # It warns of settings that the application has of its own.
    logging.getLogger("stac_fastapi").setLevel(logging.ERROR)
    _extra("bigearth_cube.service.process").serve(cubes, host=host, port=port, workers=workers)


@cli.group()
def catalog() -> None:
    """Make static STAC catalogs."""


@catalog.command("build")
@click.argument("directory", type=_LocalFolder())
@click.option("--base-url", help="Where it will be published; links are relative without it.")
def catalog_build(directory: str, base_url: str | None) -> None:
    """Write the description of the published archives: STAC catalog, collections, tiles, Intake.

    \b
    Example:
      bec catalog build catalog
    """
    written = _extra("bigearth_cube.catalog").build_catalog(directory, base_url=base_url)
    for path in written:
        click.echo(str(path))


@cli.group()
def export() -> None:
    """Hand a cube's items to other systems."""


@export.command("pgstac")
@click.argument("cube")
@click.argument("dsn")
@click.option("--release", help="An older release.")
@click.option("--migrate", is_flag=True, help="Install pgstac there, or bring it up to date.")
def export_pgstac(cube: str, dsn: str, release: str | None, migrate: bool) -> None:
    """Load collection and items of a cube into a pgstac database; again to bring them up to date.

    DSN is as PostgreSQL has it. The database needs PostGIS.

    \b
    Example:
      bec export pgstac s3://bucket/bigearthnet-v2 postgresql://user@host/stac --migrate
    """
    room = _extra("bigearth_cube.pgstac")
    opened = _open(cube, release)
    with _progress("exporting", opened.n_patches) as advance:
        n_items = room.export_pgstac(opened, dsn, migrate=migrate, progress=advance)
    click.echo(f"{n_items:,} items of {opened.id}, release {opened.release.name}, are in pgstac")


def _selected(url: str, collection: str | None, query: dict[str, Any]) -> Any:
    """Ask a cube; or, where a web address is none, the STAC API that it is of."""
    is_web = url.startswith(("http://", "https://"))
    if collection is None or not is_web:
        if collection is not None:
            raise click.BadParameter(f"{url} is a cube; --collection is of a STAC API")
        try:
            return _open(url, None).search(**query)
        except (NotFoundError, CubeIntegrityError):
            if not is_web:
                raise
    remote = _extra("bigearth_cube.remote")
    try:
        return remote.search_api(url, collection=collection, **query)
    except NotFoundError as error:
        raise NotFoundError(str(error) + ("" if collection else "; nor is a cube there")) from None


def _box(text: str | None) -> list[float] | None:
    """Read the four numbers of a --bbox."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not west,south,east,north") from None


def _open(url: str, release: str | None) -> Any:
    try:
        return _extra("bigearth_cube.cube").open_cube(url, release=release)
    except NotFoundError:
        folder, _, name = url.rstrip("/").rpartition("/")
        if name != "cube.zarr":
            raise
        raise NotFoundError(
            f"no cube at {url}; a cube is the folder that holds cube.zarr: name {folder or '.'}"
        ) from None


def _extra(module: str) -> Any:
    """Import a room of the package, or say which extra brings what it needs.

    Rooms are imported when a command runs, so that ``bec --help`` answers at once.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("bigearth_cube"):
            raise
        package = error.name.split(".")[0]
        extra = _EXTRAS.get(package, "ingest")
        raise click.ClickException(
            f'this command needs {package}: pip install "bigearth-cube[{extra}]"'
        ) from None


@contextmanager
def _client(scheduler: str | None) -> Iterator[Any]:
    if scheduler is None:
        yield None
        return
    with dask_client(scheduler) as client:
        yield client


@contextmanager
def _progress(what: str, total: int | None) -> Iterator[Any]:
    """Show a bar on standard error; yields a function of (done, total)."""
    with progress_bars() as bars:
        task = bars.add_task(what, total=total)
        yield lambda done, of: bars.update(task, completed=done, total=of)


def _table(first: str, *others: str, wrap_first: bool = False) -> Table:
    """Make a table of names and numbers; ``wrap_first`` keeps the numbers whole if it is narrow."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=not wrap_first)
    for name in others:
        table.add_column(name, justify="right", no_wrap=wrap_first)
    return table


def _print(table: Table) -> None:
    console = Console(width=140 if not sys.stdout.isatty() else None)
    with console.capture() as drawn:  # written by rich, a broken pipe would be exit code 1
        console.print(table)
    click.echo(drawn.get(), nl=False)


if __name__ == "__main__":
    main()
