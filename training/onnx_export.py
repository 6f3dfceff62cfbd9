"""An encoder as ONNX: patches as the cube stores them in, vectors out, no torch needed."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch

from bigearth_cube.nomenclature import GROUPS
from training.models.layers import Encoder

OUTPUT: Final = "embedding"
_MOST_ROWS: Final = 65_536


def input_name(group: str) -> str:
    """Name of the input that takes a group: ``s2/r10m`` is ``s2_r10m``.

    Examples
    --------
    >>> input_name("s2/r10m")
    's2_r10m'
    """
    return group.replace("/", "_")


def as_onnx(encoder: Encoder, about: Mapping[str, Any]) -> bytes:
    """Export an encoder.

    Parameters
    ----------
    encoder
        On the CPU, in evaluation mode.
    about
        Put into the file's metadata, as text.

    Returns
    -------
    bytes
        An ONNX model. Inputs, one a group: `input_name` of it, (batch, band, y, x) in the dtype and
        band order of the cube (uint16 DN, float32 dB); it normalizes them itself. Output:
        ``embedding``, (batch, n_features) float32. The metadata names the bands of each input.
    """
    shapes = {group: GROUPS[group] for group in encoder.groups}
    example = tuple(
        torch.zeros((2, *group.patch_shape), dtype=getattr(torch, group.dtype))
        for group in shapes.values()
    )
    batch = torch.export.Dim("batch", min=1, max=_MOST_ROWS)
    with _quiet():
        program = torch.onnx.export(
            encoder.eval(),
            example,
            input_names=[input_name(path) for path in shapes],
            output_names=[OUTPUT],
            dynamic_shapes=(tuple({0: batch} for _ in example),),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    stated = {key: str(value) for key, value in about.items() if value is not None}
    stated["bands"] = json.dumps({input_name(path): g.bands for path, g in shapes.items()})
    for key, value in stated.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    return bytes(model.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says of its own insides: deprecations, and that it lacks torchvision."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
