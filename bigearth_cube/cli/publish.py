"""Commands that hand a cube to others: serve, catalog build, export pgstac."""

from __future__ import annotations

import logging

import click

from bigearth_cube.cli.group import LocalFolder, cli, load, open_named, progress_bar


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
@click.option(
    "--root-path",
    default="",
    metavar="PATH",
    help="What a proxy in front takes off each path, e.g. /stac, so that links have it.",
)
def serve(cubes: tuple[str, ...], host: str, port: int, workers: int, root_path: str) -> None:
    """Serve cubes: STAC API, thumbnails, look-alikes, and an explorer for the browser.

    Requests are logged on standard error. An interrupt or SIGTERM ends it after the requests
    that are under way.

    \b
    Example:
      bec serve s3://bucket/bigearthnet-v2 --port 8000
    """
    # It warns of settings that the application has of its own.
    logging.getLogger("stac_fastapi").setLevel(logging.ERROR)
    load("bigearth_cube.service.process").serve(
        cubes, host=host, port=port, workers=workers, root_path=root_path
    )


@cli.group()
def catalog() -> None:
    """Make static STAC catalogs."""


@catalog.command("build")
@click.argument("directory", type=LocalFolder())
@click.option("--base-url", help="Where it will be published; links are relative without it.")
def catalog_build(directory: str, base_url: str | None) -> None:
    """Write the description of the published archives: STAC catalog, collections, tiles, Intake.

    \b
    Example:
      bec catalog build catalog
    """
    written = load("bigearth_cube.catalog").build_catalog(directory, base_url=base_url)
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
    room = load("bigearth_cube.pgstac")
    opened = open_named(cube, release)
    with progress_bar("exporting", opened.n_patches) as advance:
        n_items = room.export_pgstac(opened, dsn, migrate=migrate, progress=advance)
    click.echo(f"{n_items:,} items of {opened.id}, release {opened.release.name}, are in pgstac")
