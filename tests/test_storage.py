"""One behavior on every kind of storage, and errors that say what to do."""

from __future__ import annotations

import contextlib
import http.server
import pickle
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zarr.core.buffer
import zarr.core.sync
from hypothesis import given
from hypothesis import strategies as st

from bigearth_cube.errors import BigEarthCubeError, InvalidInputError, NotFoundError, StorageError
from bigearth_cube.storage import Storage, normalized_url
from bigearth_cube.storage.s3 import open_bucket


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        url = request.getfixturevalue("bucket")
        return Storage(f"{url}/cube", request.getfixturevalue("s3_options"))
    if request.param == "memory":
        return Storage(f"memory://{tmp_path.name}/cube")
    return Storage(tmp_path / "not" / "yet" / "there")


def test_what_is_written_is_read_whole_in_parts_and_from_the_end(storage: Storage) -> None:
    storage.write("a/b", b"0123456789")
    assert storage.read("a/b") == b"0123456789"
    assert bytes(storage.read_range("a/b", 7, 9)) == b"78"
    assert storage.read_tail("a/b", 4) == b"6789"
    assert storage.size("a/b") == 10


def test_listing_gives_keys_and_sizes_and_nothing_where_nothing_is(storage: Storage) -> None:
    assert storage.list() == []
    storage.write("b", b"1")
    storage.write("a/c", b"")
    assert storage.list() == [("a/c", 0), ("b", 1)]
    assert storage.list("a") == [("a/c", 0)]
    assert storage.list("none") == []


def test_a_new_object_is_put_once_only(storage: Storage) -> None:
    assert storage.write_new("lock", b"first")
    assert not storage.write_new("lock", b"second")
    assert storage.read("lock") == b"first"


def test_deleting_is_done_when_the_object_is_gone(storage: Storage) -> None:
    storage.write("a", b"")
    assert storage.exists("a")
    storage.delete("a")
    storage.delete("a")
    assert not storage.exists("a")


def test_a_missing_object_is_named(storage: Storage) -> None:
    for ask in (storage.read, storage.size, lambda key: storage.read_range(key, 0, 1)):
        with pytest.raises(NotFoundError, match=r"no object at .*/(cube|there)/x"):
            ask("x")


def test_storage_travels_to_workers(storage: Storage) -> None:
    storage.write("a", b"1")
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.read("a") == b"1"
    assert copy.child("a").url == f"{storage.url}/a"


def test_looking_at_a_path_does_not_make_it(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "x")
    assert storage.list() == []
    with pytest.raises(NotFoundError):
        storage.read("a")
    storage.delete("a")
    assert not storage.exists("a")
    assert not (tmp_path / "x").exists()
    storage.write("b/c", b"1")
    assert storage.read("b/c") == b"1"


def test_a_missing_bucket_is_told_from_an_empty_one(
    bucket: str, s3_options: dict[str, str]
) -> None:
    Storage(f"{bucket}/any", s3_options).check_bucket()
    with pytest.raises(NotFoundError, match="bucket 'no-such-bucket' does not exist"):
        Storage("s3://no-such-bucket/any", s3_options).check_bucket()


def test_an_endpoint_that_does_not_answer_is_told_within_seconds() -> None:
    options = {"key": "a", "secret": "b", "endpoint_url": "http://127.0.0.1:9"}
    began = time.monotonic()
    told = "the endpoint http://127.0.0.1:9 cannot be reached; check endpoint_url"
    for ask in (Storage.read, Storage.list):
        with pytest.raises(StorageError, match=told):
            ask(Storage("s3://bucket/x", options), "c/403/401")
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "endpoint", ["127.0.0.1:5137", "nonsense", "http://", "http://a:b:c", "http://a b", "ftp://a:1"]
)
def test_an_endpoint_that_is_no_url_is_refused(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = re.escape(f"endpoint_url {endpoint!r} is no URL; expected http://host:port")
    with pytest.raises(InvalidInputError, match=told):
        Storage("s3://b/c", {"key": "a", "secret": "b", "endpoint_url": endpoint}).read("x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(InvalidInputError, match=told):
        Storage("s3://b/by-environment", {"key": "a", "secret": "b"}).read("x")


def test_an_empty_endpoint_is_none(
    bucket: str, s3_options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = {**s3_options, "endpoint_url": ""}
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_options["endpoint_url"])
    Storage(f"{bucket}/a", empty).check_bucket()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    store = Storage(f"{bucket}/b", empty).zarr_store().store
    assert store.config["endpoint"] == "https://s3.us-east-1.amazonaws.com"


@pytest.mark.parametrize("url", ["s3://b c/x", "s3://b%/x", "http://a b/x", "http://a:b:c/x"])
def test_a_url_that_no_client_takes_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(url)):
        Storage(url, {"key": "a", "secret": "b"}).read("x")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that takes no files")
@pytest.mark.timeout(20)
def test_a_folder_that_takes_no_files_is_told_at_once() -> None:
    for folder in ("/proc", "/proc/none"):
        for write in (Storage.write, Storage.write_new):
            with pytest.raises(StorageError, match=f"cannot write {folder}/a: No such file"):
                write(Storage(folder), "a", b"1")


def test_what_cannot_be_written_is_told_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    long = "x" * 300
    for key, reason in {"file/a": "Not a dir", "folder": "Is a dir", long: "name too long"}.items():
        with pytest.raises(StorageError) as caught:
            Storage(tmp_path).write(key, b"1")
        assert str(caught.value).startswith(f"cannot write {tmp_path}/{key}: ")
        assert reason in str(caught.value)
        assert "#" not in str(caught.value)
    with pytest.raises(StorageError, match="Not a directory"):
        Storage(tmp_path / "file").write_new("a", b"1")  # nobody holds that lock


def test_a_store_travels_without_the_keys_that_its_environment_gave(
    bucket: str, s3_options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "known-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    storage = Storage(f"{bucket}/travels", {"endpoint_url": s3_options["endpoint_url"]})
    storage.write("zarr.json", b"{}")
    sent = pickle.dumps(storage.zarr_store())
    assert b"planted-secret" not in sent
    assert b"known-key" not in sent
    arrived = pickle.loads(sent)
    found = zarr.core.sync.sync(
        arrived.get("zarr.json", zarr.core.buffer.default_buffer_prototype())
    )
    assert found.to_bytes() == b"{}"


def test_missing_credentials_are_told_before_any_request(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    options = {"endpoint_url": "http://127.0.0.1:9/without-credentials"}
    with pytest.raises(StorageError, match="no AWS credentials found; set AWS_ACCESS_KEY_ID"):
        Storage("s3://bucket/x", options).check_bucket()


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (403, "access denied; check the credentials"),
        (401, "credentials refused; check key and secret"),
        (400, "status code: 400 Bad Request"),  # and not what the numbers in the key would say
    ],
)
def test_what_a_server_refuses_is_told_in_one_line_by_its_status(status: int, advice: str) -> None:
    with _server_that_answers(status) as endpoint:
        options = {"key": "KEY", "secret": "SECRET", "token": "TOKEN", "endpoint_url": endpoint}
        storage = Storage("s3://bucket/x", options)
        for ask in (storage.read, storage.list, lambda key: storage.write(key, b"")):
            with pytest.raises(StorageError, match=advice) as caught:
                ask("c/403/401/0/0")
            assert "\n" not in str(caught.value)
            assert not any(told in f"{caught.value!r}" for told in ("KEY", "SECRET", "TOKEN"))


def test_urls_are_made_once_where_they_are_not_signed() -> None:
    endpoint = {"endpoint_url": "http://127.0.0.1:9"}
    for credentials, once in (({"anon": True}, True), ({"key": "k", "secret": "s"}, False)):
        _, address = open_bucket("s3://bucket", endpoint | credentials, {})
        assert address("a/b").split("?")[0] == "http://127.0.0.1:9/bucket/a/b"
        assert (address("a/b") is address("a/b")) is once


@contextlib.contextmanager
def _server_that_answers(status: int) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_PUT = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("url", ["s3://bucket/x", "https://example.com/x", "/a/path"])
def test_an_unknown_option_is_refused_with_the_known_ones(url: str) -> None:
    with pytest.raises(InvalidInputError, match="'acces_key'; choose from: key, secret"):
        Storage(url, {"acces_key": "x"})
    Storage(url, {"key": "x", "anon": False})  # one set of options serves every URL of a run


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no-such-profile"):
        Storage("s3://bucket/x", {"profile": "no-such-profile"}).check_bucket()


@pytest.mark.parametrize("url", ["", "s3://", "s3:///"])
def test_a_url_that_names_nothing_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError):
        normalized_url(url)


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1))
def test_a_trailing_slash_changes_nothing(name: str) -> None:
    assert normalized_url(f"s3://{name}/") == normalized_url(f"s3://{name}")


def test_every_error_survives_pickling() -> None:
    from bigearth_cube import errors

    samples: list[BigEarthCubeError] = [
        errors.MalformedPatchError("p", "f", "r"),
        errors.CubeIntegrityError("k", "r", (1, 2)),
        errors.InvalidInputError("x"),
    ]
    for error in samples:
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert str(copy) == str(error)
        assert copy.__dict__ == error.__dict__
