"""BigEarthNet as a cloud-native cube: open it, search it, train on it where it lies.

>>> import bigearth_cube as bec
>>> sorted(bec.__all__)[:3]
['Batch', 'BatchLoader', 'BigEarthCubeError']
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigearth_cube import nomenclature, retrieval
    from bigearth_cube.archive import Patch, PatchRecord, PatchSource
    from bigearth_cube.cube import Cube, open_cube
    from bigearth_cube.errors import (
        BigEarthCubeError,
        CubeIntegrityError,
        InvalidInputError,
        MalformedPatchError,
        NotFoundError,
        StorageError,
    )
    from bigearth_cube.loader.batches import Batch, BatchLoader
    from bigearth_cube.search import Selection
    from bigearth_cube.torch_batches import TorchBatches

__version__ = "0.1.0"
__all__ = [
    "Batch",
    "BatchLoader",
    "BigEarthCubeError",
    "Cube",
    "CubeIntegrityError",
    "InvalidInputError",
    "MalformedPatchError",
    "NotFoundError",
    "Patch",
    "PatchRecord",
    "PatchSource",
    "Selection",
    "StorageError",
    "TorchBatches",
    "nomenclature",
    "open_cube",
    "retrieval",
]

_ROOMS = {
    "archive": ("Patch", "PatchRecord", "PatchSource"),
    "cube": ("Cube", "open_cube"),
    "errors": (
        "BigEarthCubeError",
        "CubeIntegrityError",
        "InvalidInputError",
        "MalformedPatchError",
        "NotFoundError",
        "StorageError",
    ),
    "loader.batches": ("Batch", "BatchLoader"),
    "search": ("Selection",),
    "torch_batches": ("TorchBatches",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load what is asked for first: all of it takes a second, which ``bec --help`` need not wait."""
    if name in _ROOM_OF:
        value = getattr(import_module(f"bigearth_cube.{_ROOM_OF[name]}"), name)
    elif name in __all__:
        value = import_module(f"bigearth_cube.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
