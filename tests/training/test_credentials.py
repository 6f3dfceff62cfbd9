"""A secret is known to the clients of storage and to nobody else."""

from __future__ import annotations

import http.server
import io
import logging
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bigearth_cube.cli import main
from bigearth_cube.cube import open_cube
from bigearth_cube.errors import BigEarthCubeError, InvalidInputError, StorageError
from bigearth_cube.ingest import ingest
from bigearth_cube.loader.batches import BatchLoader
from bigearth_cube.storage import Storage, backends, s3
from tests.sources import LearnableSource
from training import publish
from training.recipes import recipe
from training.train import fit

SECRET = "PLANTEDsecretKeyThatNobodyMaySee000000000"
TOKEN = "PLANTEDsessionTokenThatNobodyMaySee111111"
PLANTED = re.compile("PLANTED")


def contents(storage: Storage) -> Iterator[tuple[str, str]]:
    """Every object as text, tables as their values and schema."""
    for key, _ in storage.list():
        data = storage.read(key)
        text = data.decode("latin-1")
        if key.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data))
            text += f"{table.schema.metadata}{table.to_pylist()[:50]}"
        yield key, text


@pytest.mark.parametrize(
    "planted_in", ["storage_options", pytest.param("environment", marks=pytest.mark.slow)]
)
def test_a_secret_is_in_no_object_log_output_name_or_error(
    planted_in: str,
    s3_options: dict[str, str],
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    endpoint = s3_options["endpoint_url"]
    options: dict[str, str] | None = None
    if planted_in == "environment":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAPUBLIC")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    else:
        options = {"key": "AKIAPUBLIC", "secret": SECRET, "token": TOKEN, "endpoint_url": endpoint}
    caplog.set_level(logging.DEBUG)
    url = f"{bucket}/cube"
    told = [ingest(LearnableSource(48), url, storage_options=options, workers=1)]
    cube = open_cube(url, storage_options=options)
    selection = cube.search(split="train")
    with BatchLoader(cube, selection, batch_size=8, groups=["s2/r60m"]) as loader:
        told += [cube, selection, loader, loader.state(), loader.counters, next(loader.epoch(0))]
    run = fit(
        cube,
        recipe("tb-cnn-small", "label_19", epochs=1, batch_size=8),
        train=selection,
        out=f"{bucket}/run",
        storage_options=options,
    )
    told += [run, cube.storage, cube.storage.child("x"), cube.items.slice(0, 3).to_pylist()]
    told += [cube.tree.attrs, *cube.releases]
    if planted_in == "environment":
        publish.publish(cube, run.url)
        main(["info", url])
        with pytest.raises(SystemExit):
            main(["info", f"{bucket}/none"])
    refused = {
        "no such object": (f"{bucket}/none", options),
        "no such bucket": ("s3://no-such-bucket/cube", options),
        "no server": (url, {"key": "k", "secret": SECRET, "endpoint_url": "http://127.0.0.1:9"}),
        "no URL": (url, {"key": "k", "secret": SECRET, "endpoint_url": f"http://u:{SECRET}@h"}),
        "an option": (url, {"secrets": SECRET}),
        "in the URL": (f"https://user:{SECRET}@127.0.0.1:9/cube", None),
        "in the S3 URL": (f"s3://user:{SECRET}@bucket/cube", None),
    }
    monkeypatch.setitem(backends._RETRY, "max_retries", 0)
    for refused_url, its_options in refused.values():
        with pytest.raises(BigEarthCubeError) as error:
            open_cube(refused_url, storage_options=its_options)
        told.append(f"{error.value!s} {error.value!r} {error.value.__cause__!r}")
    for thing in told:
        assert not PLANTED.search(f"{thing!r} {thing!s}")
    seen = dict(contents(Storage(bucket, options)))
    assert len(seen) > 20
    assert [key for key, text in seen.items() if PLANTED.search(key + text)] == []
    assert not PLANTED.search(caplog.text)
    out, err = capfd.readouterr()
    assert not PLANTED.search(out + err)


def test_a_url_may_not_hold_a_password() -> None:
    for url in (f"https://user:{SECRET}@host/cube", f"https://{SECRET}@host", f"s3://k:{SECRET}@b"):
        with pytest.raises(InvalidInputError, match="holds credentials; pass them") as error:
            Storage(url)
        assert SECRET not in str(error.value)
    assert Storage("https://host/a@b").url == "https://host/a@b"


@contextmanager
def rotating_server(body: bytes) -> Iterator[tuple[str, dict[str, int], list[str]]]:
    """An S3 that takes only keys of a number not below ``state["oldest"]``."""
    state, used = {"oldest": 0}, list[str]()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            key = re.search(r"Credential=KEY(\d+)/", self.headers["Authorization"])
            assert key is not None
            used.append(f"{key[1]} {self.headers['x-amz-security-token']}")
            fits = int(key[1]) >= state["oldest"]
            self.send_response(200 if fits else 403)
            self.send_header("Content-Length", str(len(body) if fits else 0))
            self.send_header("ETag", '"1"')
            self.send_header("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT")
            self.end_headers()
            self.wfile.write(body if fits else b"")

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", state, used
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def rotating_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An AWS profile whose keys end in five minutes; each call of its command gives new ones."""
    counter, command = tmp_path / "n", tmp_path / "keys.py"
    counter.write_text("0")
    command.write_text(
        "import datetime, json, pathlib\n"
        f"file = pathlib.Path({str(counter)!r})\n"
        "n = int(file.read_text()); file.write_text(str(n + 1))\n"
        "ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=5)\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': f'KEY{n}', 'SecretAccessKey': f's{n}',\n"
        "    'SessionToken': f'token{n}', 'Expiration': ends.isoformat()}))\n"
    )
    config = tmp_path / "config"
    config.write_text(f"[profile rotating]\ncredential_process = {sys.executable} {command}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    return "rotating"


def test_keys_that_end_are_asked_for_again_in_a_long_run(
    rotating_profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of the time for which keys are kept, the part beyond the five minutes of obstore's own.
    kept = s3._CREDENTIALS_LIVE.total_seconds() - 300
    assert 0 < kept <= 60
    monkeypatch.setattr(s3, "_CREDENTIALS_LIVE", s3._CREDENTIALS_LIVE / 360 * 301)
    with rotating_server(b"bytes") as (endpoint, state, used):
        storage = Storage(
            "s3://bucket/cube", {"profile": rotating_profile, "endpoint_url": endpoint}
        )
        assert storage.read("key") == b"bytes"
        first = int(used[-1].split()[0])
        for _ in range(5):
            assert storage.read("key") == b"bytes"
        assert {int(line.split()[0]) for line in used} == {first}  # not asked for each time
        state["oldest"] = first + 1  # the first have ended
        time.sleep(1.5)
        assert storage.read("key") == b"bytes"
        assert used[-1].split()[1] == f"token{used[-1].split()[0]}"
        state["oldest"] = 10**6
        with pytest.raises(StorageError, match="access denied"):
            storage.read("key")
