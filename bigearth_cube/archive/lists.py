"""The official lists: the two Parquet files of v2 and the lists of v1, recognized by name.

Only what concerns the patches at hand becomes Python objects: the lists hold up to 590,326
names, a folder often a few.
"""

from __future__ import annotations

import bz2
import csv
import logging
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bigearth_cube.archive.names import archive_of, is_l1c_product
from bigearth_cube.archive.sources import file_name, opened
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.nomenclature import Archive

logger = logging.getLogger(__name__)

_V1_SPLITS: Final = {
    "train": "train",
    "val": "validation",
    "validation": "validation",
    "test": "test",
}
_SNOW, _CLOUD = "patches_with_seasonal_snow", "patches_with_cloud_and_shadow"
_NO_CLASS, _PAIRS = "patches_with_no_19_class_targets", "s1_s2_name_country_season"
_TILES: Final = "tile_names_and_links"
_V1_LISTS: Final = (*_V1_SPLITS, _SNOW, _CLOUD, _NO_CLASS, _PAIRS, _TILES)
_V1_NAME: Final = re.compile(rf"(?:v1_)?({'|'.join(_V1_LISTS)})\.csv(?:\.bz2)?")
# Published beside the lists of v1; they say nothing of single patches.
_V1_OTHERS: Final = re.compile(r"bigearthnet_s2_tile_ids\.csv")
_V2_NAMES: Final = (
    "metadata.parquet",
    "metadata_for_patches_with_snow_cloud_or_shadow.parquet",
)
_V2_COLUMNS: Final = (
    "patch_id",
    "labels",
    "split",
    "country",
    "s1_name",
    "contains_seasonal_snow",
    "contains_cloud_or_shadow",
)
_BATCH_ROWS: Final = 65_536  # a whole list as Python objects is 0.5 GB


@dataclass(frozen=True, slots=True)
class Listed:
    """What the lists say of one patch; None where they say nothing."""

    labels: tuple[str, ...] | None = None
    split: str | None = None
    country: str | None = None
    s1_id: str | None = None
    flagged_snow: bool | None = None
    flagged_cloud_or_shadow: bool | None = None
    tile: str | None = None


@dataclass(frozen=True)
class Lists:
    """What the lists say of the patches at hand.

    Attributes
    ----------
    names
        Files that were read, without their folders.
    patches
        Name of a Sentinel-2 patch to what is said of it.
    pairs
        Name of a Sentinel-1 patch to that of its Sentinel-2 patch.
    absent
        Names that are listed and not at hand, sorted.
    """

    names: tuple[str, ...] = ()
    patches: Mapping[str, Listed] = field(default_factory=dict)
    pairs: Mapping[str, str] = field(default_factory=dict)
    absent: Sequence[str] = ()


def archive_of_list(path: str) -> Archive | None:
    """Archive that the list of this name belongs to, or None if the name is none of a list.

    Examples
    --------
    >>> archive_of_list("v1_val.csv.bz2"), archive_of_list("metadata.parquet")
    ('v1', 'v2')
    """
    name = file_name(path)
    if name in _V2_NAMES:
        return "v2"
    return "v1" if _V1_NAME.fullmatch(name) or _V1_OTHERS.fullmatch(name) else None


def expected_lists() -> str:
    """Names of the lists, for messages."""
    v1 = f"train, val, test, {_SNOW}, {_CLOUD}, {_NO_CLASS}, {_PAIRS}, {_TILES}"
    return f"{', '.join(_V2_NAMES)}, or of v1 {v1} ([v1_]….csv[.bz2])"


def can_plan(archive: Archive, paths: Sequence[str], *, with_s1: bool) -> bool:
    """Whether lists name every patch: of v2 both, of v1 the tiles, and the pairs for Sentinel-1.

    Examples
    --------
    >>> can_plan("v1", ["v1_train.csv.bz2"], with_s1=False)
    False
    """
    if archive == "v2":
        return missing_v2_list([file_name(path) for path in paths]) is None
    contents = {_v1_content(path) for path in paths if _V1_NAME.fullmatch(file_name(path))}
    return _TILES in contents and (_PAIRS in contents or not with_s1)


def listed_pairs(archive: Archive, paths: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield each Sentinel-2 patch that lists which can plan hold, and its Sentinel-1 patch.

    Raises
    ------
    InvalidInputError
        If a file is not what its name promises.
    """
    if archive == "v2":
        for path in paths:
            for patch_id, listed in read_v2_list(path):
                yield patch_id, listed.s1_id
        return
    contents = {path: _v1_content(path) for path in paths if _V1_NAME.fullmatch(file_name(path))}
    s1_of: dict[str, str] = {}
    for path, content in contents.items():
        if content == _PAIRS:
            for s1_id, s2_id, _ in _rows(path):
                s1_of.setdefault(s2_id, s1_id)
    for path, content in contents.items():
        if content == _TILES:
            for s2_id, _ in _tile_rows(path):
                yield s2_id, s1_of.get(s2_id)


def missing_v2_list(names: Collection[str]) -> str | None:
    """Name of the Parquet file to add to ``names``, or None if both are there."""
    return next((name for name in _V2_NAMES if name not in names), None)


def read_lists(
    archive: Archive, paths: Sequence[str], *, s2_ids: Collection[str], s1_ids: Collection[str]
) -> Lists:
    """Read what the lists of one archive say of the patches at hand.

    Parameters
    ----------
    archive
        Archive the lists belong to.
    paths
        The files, paths or URLs; what an earlier one says of a patch holds. Those that say nothing of patches
        are left out with a warning.
    s2_ids, s1_ids
        Names of the patches at hand.

    Raises
    ------
    InvalidInputError
        If a file is not what its name promises.
    """
    others = [path for path in paths if _V1_OTHERS.fullmatch(file_name(path))]
    for path in others:
        logger.warning("%s says nothing of patches; it is not read", path)
    paths = [path for path in paths if path not in others]
    names = tuple(file_name(path) for path in paths)
    if not paths:
        return Lists()
    read = _read_v1 if archive == "v1" else _read_v2
    patches, pairs, absent = read(paths, s2_ids, s1_ids)
    return Lists(names, patches, pairs, absent)


_Content = tuple[dict[str, Listed], dict[str, str], list[str]]


def _read_v2(paths: Sequence[str], s2_ids: Collection[str], s1_ids: Collection[str]) -> _Content:
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted_s2 = pa.array(list(s2_ids), pa.string())
    wanted_s1 = pa.array(list(s1_ids), pa.string())
    patches: dict[str, Listed] = {}
    pairs: dict[str, str] = {}
    absent: set[str] = set()
    for path in paths:
        table = _read_parquet(path)
        at_hand = pc.is_in(table["patch_id"], value_set=wanted_s2)
        for patch_id, listed in _listed(table.filter(at_hand)):
            patches.setdefault(patch_id, listed)
        paired = table.filter(pc.is_in(table["s1_name"], value_set=wanted_s1))
        for s1_id, patch_id in zip(
            paired["s1_name"].to_pylist(), paired["patch_id"].to_pylist(), strict=True
        ):
            pairs.setdefault(s1_id, patch_id)
        absent.update(table.filter(pc.invert(at_hand))["patch_id"].to_pylist())
    return patches, pairs, sorted(absent)


def read_v2_list(path: str) -> Iterator[tuple[str, Listed]]:
    """Yield all that one of the Parquet files says: a patch's name, and what is said of it.

    Raises
    ------
    InvalidInputError
        If the file is not what its name promises.
    """
    yield from _listed(_read_parquet(path))


def _listed(table: Any) -> Iterator[tuple[str, Listed]]:
    """Take a table apart, a part at a time; the words that rows share are kept once."""
    known: dict[Any, Any] = {}
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        columns = (batch[name].to_pylist() for name in _V2_COLUMNS)
        for patch_id, labels, split, country, s1_id, snow, cloud in zip(*columns, strict=True):
            names = None if labels is None else tuple(labels)
            names, split, country = (known.setdefault(x, x) for x in (names, split, country))
            yield patch_id, Listed(names, split, country, s1_id, snow, cloud)


def _read_parquet(path: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(path) as source:
        data = source.read()
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names = file.schema_arrow.names
        missing = [name for name in _V2_COLUMNS if name not in names]
        if missing:
            raise InvalidInputError(
                f"{path} has no column {missing[0]!r}; expected the published columns of v2"
            )
        # Threads of Arrow let go of the bytes late, which aborts a process that is exiting.
        table = file.read(columns=list(_V2_COLUMNS), use_threads=False).cast(_v2_schema())
    except (pa.ArrowException, OSError) as error:
        line = str(error).splitlines()[0]
        raise InvalidInputError(f"{path} cannot be read as a table of v2: {line}") from None
    if table["patch_id"].null_count:
        raise InvalidInputError(f"{path} has rows without a patch_id; expected a name in each")
    return table


def _v2_schema() -> Any:
    import pyarrow as pa

    types = {
        "labels": pa.list_(pa.string()),
        "contains_seasonal_snow": pa.bool_(),
        "contains_cloud_or_shadow": pa.bool_(),
    }
    return pa.schema([(name, types.get(name, pa.string())) for name in _V2_COLUMNS])


def _read_v1(paths: Sequence[str], s2_ids: Collection[str], s1_ids: Collection[str]) -> _Content:
    wanted_s2, wanted_s1 = set(s2_ids), set(s1_ids)
    members: dict[str, set[str]] = {}  # list to those of its patches that are at hand
    countries: dict[str, str] = {}
    tiles: dict[str, str] = {}
    s1_of: dict[str, str] = {}
    pairs: dict[str, str] = {}
    listed: set[str] = set()
    for path in paths:
        content = _v1_content(path)
        if content == _PAIRS:
            for s1_id, s2_id, country in _rows(path):
                listed.add(s2_id)
                if s2_id in wanted_s2:
                    countries.setdefault(s2_id, country)
                    s1_of.setdefault(s2_id, s1_id)
                if s1_id in wanted_s1:
                    pairs.setdefault(s1_id, s2_id)
        elif content == _TILES:
            for s2_id, tile in _tile_rows(path):
                listed.add(s2_id)
                if s2_id in wanted_s2:
                    tiles.setdefault(s2_id, tile)
        else:
            ids = set(_ids(path))
            listed |= ids
            members.setdefault(_V1_SPLITS.get(content, content), set()).update(ids & wanted_s2)
    split_of = {s2_id: s for s in _V1_SPLITS.values() for s2_id in members.get(s, ())}

    def flag(s2_id: str, content: str) -> bool | None:
        return s2_id in members[content] if content in members else None

    patches = {
        s2_id: Listed(
            split=split_of.get(s2_id),
            country=countries.get(s2_id),
            s1_id=s1_of.get(s2_id),
            flagged_snow=flag(s2_id, _SNOW),
            flagged_cloud_or_shadow=flag(s2_id, _CLOUD),
            tile=tiles.get(s2_id),
        )
        for s2_id in wanted_s2
    }
    return patches, pairs, sorted(listed - wanted_s2)


def _v1_content(path: str) -> str:
    match = _V1_NAME.fullmatch(file_name(path))
    assert match is not None  # archive_of_list has let it pass
    return match[1]


def _lines(path: str) -> list[str]:
    with opened(path) as file:
        data = file.read()
    try:
        is_packed = file_name(path).endswith(".bz2")
        text = (bz2.decompress(data) if is_packed else data).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from None
    return [line for line in text.splitlines() if line.strip()]


def _ids(path: str) -> Iterator[str]:
    for i, line in enumerate(_lines(path), start=1):
        patch_id = line.strip().strip('"')
        if i == 1 and archive_of(patch_id) != "v1":
            raise InvalidInputError(
                f"{path} begins with {line[:60]!r}; expected one v1 patch name a line, no heading"
            )
        yield patch_id


def _tile_rows(path: str) -> Iterator[tuple[str, str]]:
    """Yield patch and L1C product, without ``.SAFE``; the list has no heading."""
    reader = csv.reader(_lines(path))
    for row in reader:
        if len(row) < 2 or archive_of(row[0]) != "v1" or not is_l1c_product(row[1]):
            raise InvalidInputError(
                f"{path}: line {reader.line_num} is {','.join(row)[:90]!r}; expected a v1 patch "
                f"name, its L1C product and a link"
            )
        yield row[0], sys.intern(row[1].removesuffix(".SAFE"))


def _rows(path: str) -> Iterator[tuple[str, str, str]]:
    reader = csv.reader(_lines(path))
    heading = next(reader, [])
    wanted = ("s1_name", "s2_name", "country")
    if not set(wanted) <= set(heading):
        raise InvalidInputError(
            f"{path} has the columns {', '.join(heading)}; expected {', '.join(wanted)}"
        )
    s1, s2, country = (heading.index(name) for name in wanted)
    for row in reader:
        if len(row) != len(heading):
            raise InvalidInputError(f"{path}: line {reader.line_num} has {len(row)} columns")
        yield row[s1], row[s2], row[country]
