"""Where patches come from: the published archives, as folders or as tars."""

from bigearth_cube.archive.base import Patch, PatchRecord, PatchSource, SetAside
from bigearth_cube.archive.folders import FolderSource, open_archive
from bigearth_cube.archive.tar import TarSource

__all__ = [
    "FolderSource",
    "Patch",
    "PatchRecord",
    "PatchSource",
    "SetAside",
    "TarSource",
    "open_archive",
]
