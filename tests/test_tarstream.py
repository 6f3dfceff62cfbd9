"""Members of tars, read as streams: those that tarfile finds, or a refusal."""

from __future__ import annotations

import gzip
import random
import tarfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bigearth_cube.archive.tarstream import members
from bigearth_cube.errors import InvalidInputError, NotFoundError
from tests.tars import Files, tar_bytes, write_tar

paths = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=90).filter(
        lambda part: part not in (".", "..") and part == part.strip()
    ),
    min_size=1,
    max_size=4,
).map("/".join)


@given(
    files=st.dictionaries(paths, st.binary(max_size=1500), max_size=6),
    format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_members_are_those_that_tarfile_finds(
    files: Files, format: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    path.write_bytes(tar_bytes(files, format))
    with tarfile.open(path) as tar:
        expected = [(m.name, tar.extractfile(m).read()) for m in tar if m.isfile()]  # type: ignore[union-attr]
    assert list(members(str(path))) == expected


def test_names_in_two_fields_links_and_folders(tmp_path: Path) -> None:
    long = f"{'a' * 90}/{'b' * 90}"
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, kind in (("d", tarfile.DIRTYPE), ("l", tarfile.SYMTYPE), (long, tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.type = kind
            tar.addfile(member)
    assert [member.path for member in members(str(path))] == [long]


@pytest.mark.parametrize("frames", [1, 3])
def test_zstd_of_any_number_of_frames_and_gzip(tmp_path: Path, frames: int) -> None:
    data = tar_bytes({"a": b"1" * 5000, "b": b"2"})
    step = -(-len(data) // frames)
    parts = [zstandard.compress(data[i : i + step]) for i in range(0, len(data), step)]
    (tmp_path / "x.tar.zst").write_bytes(b"".join(parts))
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(data))
    for name in ("x.tar.zst", "x.tar.gz"):
        assert [m.path for m in members(str(tmp_path / name))] == ["a", "b"]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
def test_a_tar_that_ends_early_or_is_none_is_refused_with_its_name(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"x{suffix}"
    write_tar(path, {f"file-{i}": random.Random(i).randbytes(3000) for i in range(5)})
    whole = path.read_bytes()
    for cut in (0, 1, 700, len(whole) // 2):
        path.write_bytes(whole[:cut])
        with pytest.raises(InvalidInputError, match=f"x{suffix} is damaged or not the tar"):
            list(members(str(path)))
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(InvalidInputError, match="damaged or not the tar"):
        list(members(str(path)))
    with pytest.raises(NotFoundError, match="does not exist"):
        list(members(str(tmp_path / f"none{suffix}")))


@given(at=st.integers(0, 10**6), bit=st.integers(0, 7), suffix=st.sampled_from(["gz", "zst"]))
def test_a_flipped_bit_gives_the_same_members_or_is_refused(
    at: int, bit: int, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("flip") / f"x.tar.{suffix}"
    expected = [(f"file-{i}", random.Random(i).randbytes(700)) for i in range(3)]
    if suffix == "gz":
        path.write_bytes(gzip.compress(tar_bytes(dict(expected)), 6))
    else:
        compressor = zstandard.ZstdCompressor(write_checksum=True)
        path.write_bytes(compressor.compress(tar_bytes(dict(expected))))
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)
    try:
        assert [tuple(member) for member in members(str(path))] == expected
    except InvalidInputError:
        return
