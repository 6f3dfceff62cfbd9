"""BigEarthNet as a cloud-native cube: open it, search it, train on it where it lies.

>>> import bigearth_cube as bec
>>> sorted(bec.__all__)[:3]
['Batch', 'BatchLoader', 'BigEarthCubeError']
"""

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
    "nomenclature",
    "open_cube",
    "retrieval",
]
