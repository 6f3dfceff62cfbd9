"""Commands that look at a cube as a whole: info, stats, releases, verify, plan-training."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from bigearth_cube.cli.group import (
    EXIT_DAMAGED,
    cli,
    json_option,
    load,
    new_table,
    open_named,
    print_table,
    progress_bar,
)
from bigearth_cube.errors import CubeIntegrityError


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
    opened = open_named(cube, release)
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
    table = new_table("group", "shape", "dtype", "chunk", "shard")
    for path, group in groups.items():
        shape = " x ".join(map(str, group["shape"]))
        table.add_row(
            path, shape, group["dtype"], *(str(group[k]) for k in ("chunk_rows", "shard_rows"))
        )
    print_table(table)


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
    plots = None if plot is None else load("bigearth_cube.plots")
    opened = open_named(cube)
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
            table = new_table(heading, *columns, wrap_first=True)
            for name, cells in rows.items():
                table.add_row(name, *(f"{cells[column][kind]:,}" for column in columns))
            click.echo()
            print_table(table)


@cli.command()
@click.argument("cube")
@json_option
def releases(cube: str, as_json: bool) -> None:
    """List the releases of a cube.

    \b
    Example:
      bec releases s3://bucket/bigearthnet-v2
    """
    found = open_named(cube).releases
    if as_json:
        click.echo(json.dumps([asdict(r) for r in found], indent=1))
        return
    table = new_table("release", "patches", "rows", "groups", "created", "digest")
    for r in found:
        rows = f"{r.start}..{r.stop - 1}" if r.stop > r.start else "-"
        late = [f"{group} (late)" for group in dict.fromkeys(group for group, *_ in r.late)]
        learned = ["labels (learned)"] if r.label_arrays else []
        groups = " ".join([*r.arrays, *late, *learned])
        table.add_row(r.name, f"{r.n_patches:,}", rows, groups, r.created, r.digest[:12])
    print_table(table)


@cli.command()
@click.argument("cube")
@json_option
def verify(cube: str, as_json: bool) -> None:
    """Re-read every object of a cube against its checksum; exits with 1 if any is damaged.

    \b
    Example:
      bec verify s3://bucket/bigearthnet-v2
    """
    opened = open_named(cube)
    objects = opened.recorded_objects()
    faults: list[CubeIntegrityError] = []
    with progress_bar("verifying", len(objects)) as advance:
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
@click.option(
    "--kept",
    is_flag=True,
    help="Patches stay in memory after the first epoch, as 'training fit' keeps them where three "
    "quarters of what is free hold them.",
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
    kept: bool,
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
    cost = load("bigearth_cube.loader.cost")
    opened = open_named(cube)
    rows = None
    if selection is not None:
        rows = load("bigearth_cube.search").Selection.load(selection)
    elif split is not None:
        rows = opened.search(split=split)
    found = cost.plan_training(
        opened,
        rows,
        batch_size=batch_size,
        epochs=epochs,
        groups=groups or cost.S2,
        shuffle=shuffle,
        kept=kept,
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
    keeping = "they are" if kept else "they are not, so each epoch reads them (see --kept)"
    for name, value in (
        ("patches", f"{found.patches:,} in {found.batches:,} batches of up to {batch_size:,}"),
        ("epoch", f"{epoch.requests:,} GETs, {epoch.bytes / 1e9:,.3f} GB, the first"),
        ("memory", f"{found.memory_bytes / 1e9:,.3f} GB to keep the patches; {keeping}"),
        ("in all", f"{total.requests:,} GETs, {total.bytes / 1e9:,.3f} GB in {epochs:,} epochs"),
        ("requests", f"${found.dollars_of_requests:,.4f} ({found.prices})"),
        ("transfer", f"${found.dollars_of_transfer:,.4f}, {found.bucket_region} to {found.region}"),
        ("dollars", f"${found.dollars:,.4f}, ${found.dollars_an_epoch:,.4f} an epoch"),
    ):
        click.echo(f"{name:<9}{value}")
