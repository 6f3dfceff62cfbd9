"""``python -m training``: an interrupt while its modules load is one line too."""

from __future__ import annotations

import sys


def main() -> None:
    """Load the commands and run the one that was asked for."""
    try:
        from training.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("training: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
