"""Which code made a result."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path


@functools.cache
def commit() -> str | None:
    """Return the commit of this checkout, with ``+`` where files differ from it.

    Of a copy without one, as in an image, it is what ``BEC_COMMIT`` says, or None.
    """
    return commit_of(Path(__file__)) or os.environ.get("BEC_COMMIT") or None


def commit_of(file: Path) -> str | None:
    """Return the commit of the checkout that tracks a file; an installed copy is in none."""
    git = ["git", "-C", str(file.parent)]
    try:
        # Whoever installs the package below a repository of their own is not asked for theirs.
        _told([*git, "ls-files", "--error-unmatch", file.name])
        return _told(
            [*git, "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _told(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout
