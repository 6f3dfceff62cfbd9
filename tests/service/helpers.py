"""What tests of the service share: an encoder, a server on loopback, names of patches."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import uvicorn
from onnx import helper

from bigearth_cube.cube import Cube
from bigearth_cube.service.app import create_app

N_PATCHES = 600
"""Of the cube of the fixture `cube`."""


def ids_of(cube: Cube) -> list[str]:
    return list(cube.items["id"].to_pylist())


def features_of(pixels: Any) -> Any:
    return pixels.astype(np.float32).mean(axis=(1, 2))


def encoder(order: tuple[int, ...] = (0, 1, 2, 3)) -> bytes:
    """An ONNX model that takes the mean of each 10 m band, in some order."""
    nodes = [
        helper.make_node("Cast", ["s2_r10m"], ["x"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["means"], keepdims=0),
        helper.make_node("Gather", ["means", "order"], ["embedding"], axis=1),
    ]
    given = helper.make_tensor_value_info("s2_r10m", onnx.TensorProto.UINT16, ["n", 4, 120, 120])
    made = helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, ["n", 4])
    axes = helper.make_tensor("axes", onnx.TensorProto.INT64, [2], [2, 3])
    kept = helper.make_tensor("order", onnx.TensorProto.INT64, [4], order)
    graph = helper.make_graph(nodes, "means", [given], [made], [axes, kept])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


@contextmanager
def serving(cubes: Sequence[Cube], *, root_path: str = "") -> Iterator[str]:
    """Run a real server in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        how: dict[str, Any] = {"log_config": None, "access_log": False, "ws": "none"}
        server = uvicorn.Server(uvicorn.Config(create_app(cubes), root_path=root_path, **how))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
