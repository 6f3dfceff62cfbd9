"""What all commands share: the group they are of, opening a cube, progress and tables."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bigearth_cube.errors import NotFoundError
from bigearth_cube.terminal import dask_client, progress_bars

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

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


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


class LocalFolder(click.Path):
    """A folder of this machine."""

    def __init__(self) -> None:
        super().__init__(file_okay=False)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Refuse a URL."""
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


def box_of(text: str | None) -> list[float] | None:
    """Read the four numbers of a --bbox."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not west,south,east,north") from None


def open_named(url: str, release: str | None = None) -> Any:
    """Open the cube that was named; who names the root document in it is told its folder."""
    try:
        return load("bigearth_cube.cube").open_cube(url, release=release)
    except NotFoundError:
        folder, _, name = url.rstrip("/").rpartition("/")
        if name != "cube.zarr":
            raise
        raise NotFoundError(
            f"no cube at {url}; a cube is the folder that holds cube.zarr: name {folder or '.'}"
        ) from None


def load(module: str) -> Any:
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
def client_of(scheduler: str | None) -> Iterator[Any]:
    """Yield a client of the Dask scheduler that was named, or None."""
    if scheduler is None:
        yield None
        return
    with dask_client(scheduler) as client:
        yield client


@contextmanager
def progress_bar(what: str, total: int | None) -> Iterator[Any]:
    """Show a bar on standard error; yields a function of (done, total)."""
    with progress_bars() as bars:
        task = bars.add_task(what, total=total)
        yield lambda done, of: bars.update(task, completed=done, total=of)


def new_table(first: str, *others: str, wrap_first: bool = False) -> Table:
    """Make a table of names and numbers; ``wrap_first`` keeps the numbers whole if it is narrow."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=not wrap_first)
    for name in others:
        table.add_column(name, justify="right", no_wrap=wrap_first)
    return table


def print_table(table: Table) -> None:
    """Print it, as wide as the terminal is."""
    console = Console(width=140 if not sys.stdout.isatty() else None)
    with console.capture() as drawn:  # written by rich, a broken pipe would be exit code 1
        console.print(table)
    click.echo(drawn.get(), nl=False)
