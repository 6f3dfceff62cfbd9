"""Where patches come from: the published archives as they lie on disk."""

from bigearth_cube.archive.base import Patch, PatchRecord, PatchSource, SetAside
from bigearth_cube.archive.folders import open_archive

__all__ = ["Patch", "PatchRecord", "PatchSource", "SetAside", "open_archive"]
