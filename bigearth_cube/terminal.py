"""What the commands share: bars with rate and time left, and a Dask that answers quietly."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from bigearth_cube.errors import StorageError


class _Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        """Show the rate once there is one."""
        return Text("" if task.speed is None else f"{task.speed:,.0f}/s")


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Show bars on standard error while the body runs; they vanish when it ends."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield progress


def silence_dask() -> None:
    """Keep what Dask logs of failed and stopped tasks off standard error.

    The commands say it in one line. Ctrl-C leaves such remarks too, of Tornado where a call had
    not begun. Dask sets the level of each of these loggers when it is imported, so that comes
    first.
    """
    importlib.import_module("distributed")
    for name in ("distributed", "distributed.client", "distributed.gc", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def dask_client(address: str, *, timeout_s: float = 10) -> Iterator[Any]:
    """Connect to a Dask scheduler, and silence what Dask logs.

    Parameters
    ----------
    address
        Such as ``tcp://host:8786``.
    timeout_s
        How long to wait for an answer.

    Raises
    ------
    StorageError
        If none answers within that time.
    """
    from distributed import Client  # half a second that `--help` need not wait for

    silence_dask()
    try:
        client = Client(address, timeout=timeout_s)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise StorageError(f"no Dask scheduler answers at {address}: {reason}") from None
    with client:
        yield client


def os_error_text(error: OSError) -> str:
    """Say in one line what the file system refused, and where."""
    told = [str(part) for part in (error.filename, error.strerror) if part]
    return ": ".join(told) or str(error)
