"""Fixtures that several test modules share."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import botocore.session
import distributed
import pytest
from hypothesis import settings

from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.ingest import ingest
from tests.sources import MemorySource

# How long an example takes says more of the machine than of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder of real patches and official lists, named by BEC_SAMPLES."""
    folder = os.environ.get("BEC_SAMPLES")
    if not folder or not Path(folder).is_dir():
        pytest.skip("BEC_SAMPLES names no folder of real patches")
    return Path(folder)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say in the test report which tests stand on real samples."""
    for item in items:
        if item.get_closest_marker("samples"):
            item.user_properties.append(("samples", "yes"))


@pytest.fixture(scope="session")
def s3_options() -> Iterator[dict[str, str]]:
    """storage_options of an S3 server on loopback, stopped at the end."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {"key": "test", "secret": "test", "endpoint_url": f"http://{host}:{port}"}
    server.stop()


@pytest.fixture
def bucket(s3_options: dict[str, str]) -> str:
    """URL of a new, empty bucket on that server."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client = botocore.session.get_session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=s3_options["endpoint_url"],
        aws_access_key_id=s3_options["key"],
        aws_secret_access_key=s3_options["secret"],
    )
    client.create_bucket(Bucket=name)
    client.close()
    return f"s3://{name}"


@pytest.fixture(scope="session")
def dask_client() -> Iterator[distributed.Client]:
    """A Dask cluster in this process."""
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="session")
def cube_url(tmp_path_factory: pytest.TempPathFactory, dask_client: distributed.Client) -> str:
    """A v2 cube of 600 known patches (tests/sources.py), on disk."""
    url = str(tmp_path_factory.mktemp("cube"))
    ingest(MemorySource(600), url, client=dask_client)
    return url


@pytest.fixture(scope="session")
def cube(cube_url: str) -> Cube:
    """The same, opened."""
    return open_cube(cube_url)
