"""Commands that find patches: search by what is known of them, similar by what they look like."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import click

from bigearth_cube.cli.group import (
    LocalFolder,
    box_of,
    cli,
    json_option,
    load,
    new_table,
    open_named,
    print_table,
)
from bigearth_cube.errors import CubeIntegrityError, NotFoundError


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
    query = {"bbox": box_of(bbox), "datetime": when, "filter": cql2, "split": split}
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


def _selected(url: str, collection: str | None, query: dict[str, Any]) -> Any:
    """Ask a cube; or, where a web address is none, the STAC API that it is of."""
    is_web = url.startswith(("http://", "https://"))
    if collection is None or not is_web:
        if collection is not None:
            raise click.BadParameter(f"{url} is a cube; --collection is of a STAC API")
        try:
            return open_named(url).search(**query)
        except (NotFoundError, CubeIntegrityError):
            if not is_web:
                raise
    remote = load("bigearth_cube.remote")
    try:
        return remote.search_api(url, collection=collection, **query)
    except NotFoundError as error:
        raise NotFoundError(str(error) + ("" if collection else "; nor is a cube there")) from None


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
    type=LocalFolder(),
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
    retrieval = load("bigearth_cube.retrieval")
    plots = load("bigearth_cube.plots") if plot else None
    opened = open_named(cube)
    query = {"bbox": box_of(bbox), "datetime": when, "filter": cql, "split": split}
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
    table = new_table("rank", "patch", "distance")
    for rank, neighbor in enumerate(found, 1):
        table.add_row(str(rank), neighbor.id, f"{neighbor.score:.4f}")
    print_table(table)
    if fast:
        click.echo(f"recall@10 {index.recall:.3f}, measured when the index was made")


def _vector_index(cube: Any, model: str | None, metric: str, folder: str | None, fast: bool) -> Any:
    """Read the index kept in a folder, or make it and keep it there."""
    retrieval = load("bigearth_cube.retrieval")
    ivf = load("bigearth_cube.retrieval.ivf") if fast else None
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
