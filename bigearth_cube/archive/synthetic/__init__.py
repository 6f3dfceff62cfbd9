"""A synthetic archive: drawn, but in the published layout to the byte.

It stands in for 144 GB of files wherever the software is to be tried, tested or shown.
"""

from __future__ import annotations

from bigearth_cube.archive.synthetic.write import SynthReport, write_archive

__all__ = ["SynthReport", "write_archive"]
