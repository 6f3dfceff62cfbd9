"""The service as a process, or as several that answer alike.

The framework takes as long to import as the items take to read, so both happen at once: nothing
here may import it at the top.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from bigearth_cube.cube import open_cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.service.shelf import Shelf

_CUBES: Final = "BEC_SERVE_CUBES"
_ROOT_PATH: Final = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_GRACE_S: Final = 10
_KEEP_ALIVE_S: Final = 75
"""Longer than the 60 s after which a load balancer drops an idle connection: one that was closed
here first would be given a request, and the client a 502."""
_log = logging.getLogger(__name__)


def serve(
    urls: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    root_path: str = "",
) -> None:
    """Serve cubes until told to stop; requests that are under way are finished first.

    Parameters
    ----------
    urls
        Of the cubes.
    host, port
        Where to listen; port 0 takes a free one.
    workers
        Processes, each with the items in its own memory.
    root_path
        What a proxy takes off the front of each path, e.g. ``"/stac"``: links begin with it.

    Raises
    ------
    NotFoundError
        If there is no cube at a URL.
    InvalidInputError
        If two cubes have one name, or root_path is no such path.
    CubeIntegrityError
        If an items table is missing or damaged.
    StorageError
        If storage refuses or cannot be reached.
    OSError
        If the address cannot be listened at.
    """
    if root_path and not _ROOT_PATH.fullmatch(root_path):
        raise InvalidInputError(
            f"root path is {root_path!r}; expected e.g. '/stac', with no slash at its end"
        )
    logging.getLogger("bigearth_cube").setLevel(logging.INFO)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=2048) as listening:
        shown = f"[{host}]" if ":" in host else host
        where = f"http://{shown}:{listening.getsockname()[1]}/"
        if workers == 1:
            _serve_here(urls, listening, where, root_path)
        else:
            _serve_in_processes(urls, listening, where, workers, root_path)


def _serve_here(urls: Sequence[str], listening: socket.socket, where: str, root_path: str) -> None:
    app = _app_of(urls)
    import uvicorn

    _log.info("serving %s at %s", ", ".join(app.state.shelf.served), where)
    uvicorn.Server(uvicorn.Config(app, **_settings(root_path))).run(sockets=[listening])


def _serve_in_processes(
    urls: Sequence[str], listening: socket.socket, where: str, workers: int, root_path: str
) -> None:
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    names = [open_cube(url).id for url in urls]  # what is wrong is said once, and here
    os.environ[_CUBES] = json.dumps(list(urls))
    app = f"{__name__}:from_environment"
    config = uvicorn.Config(app, factory=True, workers=workers, **_settings(root_path))
    _log.info("serving %s at %s in %d processes", ", ".join(names), where, workers)
    Multiprocess(config, sockets=[listening]).run()


def _settings(root_path: str) -> dict[str, Any]:
    return {
        "root_path": root_path,
        "log_config": None,
        "access_log": False,
        "timeout_graceful_shutdown": _GRACE_S,
        "timeout_keep_alive": _KEEP_ALIVE_S,
    }


def from_environment() -> Any:
    """Make the application in one of several processes, from what ``serve`` left for it."""
    logging.basicConfig(format="bec: %(message)s", level=logging.WARNING)
    logging.getLogger("bigearth_cube").setLevel(logging.INFO)
    logging.getLogger("stac_fastapi").setLevel(logging.ERROR)
    return _app_of(json.loads(os.environ[_CUBES]))


def _app_of(urls: Sequence[str]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        shelf = pool.submit(lambda: Shelf([open_cube(url) for url in urls]))
        from bigearth_cube.service.app import app_of

        return app_of(shelf.result())
