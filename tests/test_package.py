"""What the package promises about itself: its surface, its imports, its docstrings."""

from __future__ import annotations

import builtins
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import bigearth_cube
import training
from bigearth_cube import errors

SURFACE = {
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
}


def modules() -> Iterator[ModuleType]:
    for package in (bigearth_cube, training):
        yield package
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield importlib.import_module(info.name)


def test_the_public_surface_is_as_promised() -> None:
    assert set(bigearth_cube.__all__) == SURFACE
    for name in SURFACE:
        assert getattr(bigearth_cube, name) is not None


@pytest.mark.parametrize("module", ["bigearth_cube", "bigearth_cube.cli"])
def test_importing_the_library_imports_neither_torch_nor_readers_of_geotiff(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "heavy = {'torch', 'rasterio', 'tifffile', 'matplotlib', 'sklearn', 'moto'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def documented() -> Iterator[tuple[str, Any]]:
    for module in modules():
        for name, thing in vars(module).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(thing):
                yield f"{module.__name__}.{name}", thing
            elif inspect.isclass(thing):
                yield f"{module.__name__}.{name}", thing
                for method_name, method in vars(thing).items():
                    if inspect.isfunction(method) and not method_name.startswith("_"):
                        yield f"{module.__name__}.{name}.{method_name}", method


FUNCTIONS = dict(documented())


def _section(doc: str, title: str) -> list[str]:
    """Unindented entries of a numpy-style section."""
    found = re.search(rf"^{title}\n-+\n(.*?)(?=^\S+\n-+\n|\Z)", doc, re.DOTALL | re.MULTILINE)
    if not found:
        return []
    return [line.strip() for line in found[1].splitlines() if re.match(r"[\w*]", line)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_documented_errors_exist_and_documented_parameters_are_the_signature(name: str) -> None:
    function = FUNCTIONS[name]
    doc = inspect.cleandoc(function.__doc__ or "")
    known = {**vars(builtins), **vars(errors), **vars(sys.modules[function.__module__])}
    for error in _section(doc, "Raises"):
        kind = known.get(error)
        assert inspect.isclass(kind), f"{name} documents {error}, which does not exist"
        assert issubclass(kind, Exception)
    parameters = [
        part.strip().lstrip("*")
        for entry in _section(doc, "Parameters")
        for part in entry.split(",")
    ]
    if parameters:
        signature = [p for p in inspect.signature(function).parameters if p != "self"]
        assert sorted(parameters) == sorted(signature), name


def test_errors_can_be_caught_as_the_builtin_they_are() -> None:
    assert issubclass(errors.InvalidInputError, ValueError)
    assert issubclass(errors.NotFoundError, LookupError)
