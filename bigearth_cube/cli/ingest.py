"""Commands that make cubes: synth, plan, ingest, give-up."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from bigearth_cube.cli.group import (
    EXIT_QUARANTINE,
    LocalFolder,
    cli,
    client_of,
    json_option,
    load,
    new_table,
    print_table,
    progress_bar,
)
from bigearth_cube.terminal import silence_dask

_ACCOUNT = ("found", "ingested", "orphans", "quarantined")


@cli.command()
@click.argument("directory", type=LocalFolder())
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
    synthetic = load("bigearth_cube.archive.synthetic")
    with progress_bar("writing", patches) as advance:
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
    ingesting = load("bigearth_cube.ingest")
    silence_dask()
    with client_of(scheduler) as client, progress_bar("ingesting", None) as advance:
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
    table = new_table("", *_ACCOUNT)
    for kind, account in report.accounts.items():
        if account.found:
            table.add_row(kind, *(f"{getattr(account, name):,}" for name in _ACCOUNT))
    if table.row_count:
        print_table(table)
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
    done = load("bigearth_cube.ingest").give_up(cube, break_lock=break_lock)
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
@click.option("--region", default="us-east-1", show_default=True, help="Of the bucket.")
@json_option
def plan(
    sources: tuple[str, ...],
    cube: str,
    archive: str,
    profile: str,
    workers: int | None,
    region: str,
    as_json: bool,
) -> None:
    """Say what an ingest would read and write, how long it would take and what it would cost.

    Nothing is written. Bytes and time are those of up to 64 patches, read and encoded here.

    \b
    Example:
      bec plan BigEarthNet-S2.tar.zst metadata.parquet s3://bucket/bigearthnet-v2
    """
    ingesting = load("bigearth_cube.ingest")
    found = ingesting.forecast(
        list(sources), cube, archive=archive, profile=profile, workers=workers, region=region
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
