"""Store the features of every patch where retrieval finds them, and what makes them as ONNX.

Vectors are computed in float32, whatever precision the network was trained in: those of a new
patch, made by the encoder without torch, then lie among them to within rounding.

Axes: N row, F feature.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from rich.progress import Progress

from bigearth_cube.cube import Cube, encoder_key
from bigearth_cube.errors import InvalidInputError, NotFoundError
from bigearth_cube.layout import MODEL_CHUNK_ROWS
from bigearth_cube.nomenclature import S1_GROUP
from bigearth_cube.search import Selection
from bigearth_cube.storage import Storage, StorageOptions
from training.checkpoint import Checkpoint
from training.data import Engine, default_device, evaluation_loader, tensor_batches
from training.evaluate import about_checkpoint
from training.models.layers import Encoder
from training.onnx_export import as_onnx

logger = logging.getLogger(__name__)

ENCODER: Final = "encoder.onnx"
_DIGEST: Final = b"bigearth_cube:of"


@dataclass(frozen=True, slots=True)
class Embedded:
    """Embeddings that were written.

    Attributes
    ----------
    name
        Of the embeddings.
    url
        Where they lie: the group of a cube, or a folder.
    encoder_url
        Where the encoder lies.
    n_patches, n_features
        How many vectors, and how long.
    """

    name: str
    url: str
    encoder_url: str
    n_patches: int
    n_features: int


def embed(
    cube: Cube,
    checkpoint: Checkpoint,
    *,
    name: str | None = None,
    out: str | None = None,
    storage_options: StorageOptions | None = None,
    engine: Engine = "threads",
    device: torch.device | None = None,
    progress: Progress | None = None,
    part_rows: int = MODEL_CHUNK_ROWS,
) -> list[Embedded]:
    """Compute the features of all patches and write them as ``embeddings/<name>/vector``.

    A part is kept once it is done, so a killed run goes on where it stopped. Labels are not needed:
    patches without them are embedded too; those without a view that the encoder reads are not.
    Embeddings of several encoders of one checkpoint are of one space, which they name: queries of
    one find answers of the other.

    Parameters
    ----------
    cube
        Where the patches are and, without ``out``, the vectors go.
    checkpoint
        Whose features.
    name
        Name of the embeddings; that of the recipe where it is None. A network of several encoders
        adds ``-s1`` and the like.
    out
        Folder at any URL that takes the vectors instead: ``part-*.parquet`` with the columns
        ``id``, ``bec:row`` and ``vector``, and ``encoder.onnx``.
    storage_options
        Of that folder.
    engine
        ``"threads"``, or a Dask client to load with.
    device
        The first GPU where there is one, else the CPU.
    progress
        Told after every batch.
    part_rows
        Rows of a part.

    Returns
    -------
    list of Embedded
        One for each encoder of the network.

    Raises
    ------
    InvalidInputError
        If the cube is of another archive than the checkpoint, or lacks what the network reads.
    StorageError
        If storage refuses or cannot be reached.
    """
    if cube.archive != checkpoint.archive:
        raise InvalidInputError(
            f"the checkpoint normalizes as archive {checkpoint.archive} needs, this cube is "
            f"{cube.archive}; embed a cube of that archive"
        )
    device = device or default_device()
    name = name or checkpoint.config.recipe.replace(":", "-")
    about = about_checkpoint(checkpoint)
    made = []
    for suffix, encoder in checkpoint.network().encoders().items():
        model = f"{name}{suffix}"
        if out is None:
            folder = cube.storage.child(f"ingest/embeddings/{model}")
        else:
            folder = Storage(f"{out}/{model}" if suffix else out, storage_options)
        parts = _Parts(folder, cube, encoder, checkpoint, suffix, part_rows)
        parts.compute(engine, device, progress)
        onnx = as_onnx(encoder.cpu(), {**about, "archive": cube.archive, "name": model})
        if out is None:
            told = {
                **about,
                "encoder": encoder_key(model),
                "groups": list(encoder.groups),
                "space": checkpoint.weights_digest,
            }
            cube.write_embeddings(model, parts, told, encoder=onnx)
            parts.remove()
            url = f"{cube.url}/cube.zarr/embeddings/{model}"
            encoder_url = f"{cube.url}/{encoder_key(model)}"
        else:
            folder.write(ENCODER, onnx)
            url, encoder_url = folder.url, f"{folder.url}/{ENCODER}"
        made.append(Embedded(model, url, encoder_url, len(parts.rows), encoder.n_features))
    return made


class _Parts:
    """Vectors of runs of rows, an object each; together they read as one array.

    Parameters
    ----------
    folder
        Where the parts lie.
    cube, encoder
        What is embedded, and by what.
    checkpoint
        What the encoder was taken from.
    suffix
        Which of its encoders it is.
    part_rows
        Rows of a part.
    """

    def __init__(
        self,
        folder: Storage,
        cube: Cube,
        encoder: Encoder,
        checkpoint: Checkpoint,
        suffix: str,
        part_rows: int,
    ) -> None:
        self._folder, self._cube, self._encoder = folder, cube, encoder
        self.shape = (cube.n_rows, encoder.n_features)
        self.rows = cube.rows
        if S1_GROUP.path in encoder.groups:
            cube.pixel_layout(S1_GROUP.path)
            self.rows = self.rows[cube.column(f"{S1_GROUP.path}/present")[self.rows]]
        self._starts = range(0, cube.n_rows, part_rows)
        self._part_rows = part_rows
        of = [
            str(part_rows),
            checkpoint.weights_digest,
            suffix,
            cube.id,
            cube.release.name,
            cube.release.digest,
        ]
        self._digest = hashlib.sha256("\n".join(of).encode()).hexdigest().encode()

    def compute(self, engine: Engine, device: torch.device, progress: Progress | None) -> None:
        """Compute and keep every part that is not there yet."""
        there = [start for start in self._starts if self._read(start) is not None]
        missing = self.rows[~np.isin(self._start_of(self.rows), there)]
        if there:
            logger.info("%d of %d parts are there: going on", len(there), len(self._starts))
        if len(missing):
            self._encoder.to(device)
            for start, rows, vectors_NF in self._computed(missing, engine, device, progress):
                self._write(start, rows, vectors_NF)

    def _start_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows // self._part_rows * self._part_rows

    def _computed(
        self,
        missing: NDArray[np.int64],
        engine: Engine,
        device: torch.device,
        progress: Progress | None,
    ) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float32]]]:
        """Yield the first row of a part, the rows it has and their vectors."""
        cube, encoder = self._cube, self._encoder
        selection = Selection.of(cube.index, missing, cube_id=cube.id, release=cube.release.name)
        bar = progress.add_task("embed", total=len(missing)) if progress else None
        rows_of_part = np.split(missing, np.flatnonzero(np.diff(self._start_of(missing))) + 1)
        vectors_NF = np.empty((0, encoder.n_features), np.float32)
        with evaluation_loader(cube, selection, encoder.groups, None, engine) as loader:
            batches = tensor_batches(loader, 0, device)
            for rows in rows_of_part:
                while len(vectors_NF) < len(rows):
                    batch = next(batches)
                    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
                        more = encoder(*(batch.images[path] for path in encoder.groups))
                    vectors_NF = np.concatenate([vectors_NF, more.float().cpu().numpy()])
                    if progress and bar is not None:
                        progress.advance(bar, len(more))
                part, vectors_NF = vectors_NF[: len(rows)], vectors_NF[len(rows) :]
                yield int(self._start_of(rows)[0]), rows, part

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        """Vectors of some rows, NaN where there are none."""
        first, stop = rows.start, min(rows.stop, self.shape[0])
        values = np.full((stop - first, self.shape[1]), np.nan, np.float32)
        for start in self._starts[first // self._part_rows : -(-stop // self._part_rows)]:
            found = self._read(start)
            if found is not None:
                inside = (found[0] >= first) & (found[0] < stop)
                values[found[0][inside] - first] = found[1][inside]
        return values

    def remove(self) -> None:
        """Remove the parts: the vectors are in the cube."""
        for start in self._starts:
            self._folder.delete(_key(start))

    def _write(self, start: int, rows: NDArray[np.int64], vectors_NF: NDArray[np.float32]) -> None:
        chosen = Selection.of(
            self._cube.index, rows, cube_id=self._cube.id, release=self._cube.release.name
        )
        vector = pa.FixedSizeListArray.from_arrays(vectors_NF.ravel(), vectors_NF.shape[1])
        table = pa.table({"id": chosen.ids, "bec:row": rows, "vector": vector})
        sink = pa.BufferOutputStream()
        # The values are as good as random: compression costs more than it saves.
        pq.write_table(
            table.replace_schema_metadata({_DIGEST: self._digest}),
            sink,
            compression="none",
            use_dictionary=False,
            write_page_checksum=True,
        )
        self._folder.write(_key(start), sink.getvalue().to_pybytes())

    def _read(self, start: int) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """Rows and vectors of a part; None where it is missing, damaged or of something else."""
        try:
            data = pa.BufferReader(self._folder.read(_key(start)))
            file = pq.ParquetFile(data, page_checksum_verification=True)
            of: Mapping[bytes, Any] = file.schema_arrow.metadata or {}
            if of.get(_DIGEST) != self._digest:
                return None
            table = file.read(use_threads=False).combine_chunks()
        except (NotFoundError, pa.ArrowException, OSError):
            return None
        values_F = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return table["bec:row"].to_numpy(), values_F.reshape(-1, self.shape[1])


def _key(start: int) -> str:
    return f"part-{start:09d}.parquet"
