"""``bec`` and ``python -m bigearth_cube``: an interrupt while modules load is one line too."""

from __future__ import annotations

import sys


def main() -> None:
    """Load the commands and run the one that was asked for."""
    try:
        from bigearth_cube.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("bec: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
