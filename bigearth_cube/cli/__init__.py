"""The ``bec`` command: parse, make one library call, print.

Results go to standard output, progress and warnings to standard error. Exit codes: 0 done,
1 damaged (verify), 2 wrong input, no such thing or storage unreachable, 3 done with patches in
quarantine, 130 interrupted, 141 if who reads the output went away.
"""

from __future__ import annotations

import logging
import sys

import click

# Each adds its commands to the group.
from bigearth_cube.cli import cubes, find, ingest, publish  # noqa: F401
from bigearth_cube.cli.group import EXIT_DAMAGED, EXIT_INTERRUPTED, EXIT_WRONG, cli
from bigearth_cube.errors import BigEarthCubeError, CubeIntegrityError
from bigearth_cube.terminal import os_error_text

__all__ = ["cli", "main"]


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
