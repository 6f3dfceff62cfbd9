"""The tables of the three papers, trained and evaluated anew under one protocol.

A row that cannot be trained here says why, and the others run. A comparison that was stopped goes
on when it is asked for again: every row is a run of its own below one folder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, get_args

from rich.progress import Progress

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError, NotFoundError
from bigearth_cube.nomenclature import NOMENCLATURES, S1_GROUP, SPLITS
from bigearth_cube.storage import Storage
from training.checkpoint import load
from training.config import Config
from training.data import Engine
from training.evaluate import Evaluation, evaluate
from training.models import build
from training.models.backbones import IMAGENET, TIMM, cached_weights
from training.protocols import (
    Leakage,
    Protocol,
    Splits,
    leakage,
    leakage_text,
    protocols_of,
    split_cube,
)
from training.provenance import commit
from training.recipes import SMALL, recipe
from training.results import (
    MM,
    PAPER_2019,
    PRF,
    REBEN,
    RELEASED,
    TALK_2019,
    ResultRow,
    as_text,
)
from training.tables import aligned, figure
from training.train import fit

logger = logging.getLogger(__name__)

TableName = Literal["igarss2019", "mm", "reben"]
TABLES: Final[tuple[TableName, ...]] = get_args(TableName)
RESULTS: Final = "comparison.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """One row to train.

    Attributes
    ----------
    title
        Name of the row; published rows of that model stand below it.
    recipe
        How it is trained.
    labels
        What it learns.
    published
        Model whose published rows are shown beside.
    pretrained
        Architecture whose ImageNet weights it begins with; None begins with chance.
    """

    title: str
    recipe: str
    labels: str
    published: str
    pretrained: str | None = None

    @property
    def key(self) -> str:
        """Name of its run's folder."""
        begun = f"-{IMAGENET}" if self.pretrained else ""
        return f"{self.recipe.replace(':', '-')}{begun}-{self.labels}"


@dataclass(frozen=True, slots=True)
class Table:
    """What a table trains, and what it shows.

    Attributes
    ----------
    entries
        Rows to train.
    published
        Rows of the sources.
    columns
        Figures shown; keys of ``results.COLUMNS``.
    """

    entries: tuple[Entry, ...]
    published: tuple[ResultRow, ...]
    columns: tuple[str, ...]


def table_of(name: TableName, archive: str) -> Table:
    """Return what a table trains on a cube of an archive.

    Raises
    ------
    InvalidInputError
        If there is no such table.
    """
    nomenclatures = {"v1": ("label_43", "label_19"), "v2": ("label_19",)}[archive]
    if name == "igarss2019":
        models = (
            ("Inception-v2, last layer", "inception-v2", "bninception"),
            ("S-CNN RGB", "s-cnn-rgb", None),
            ("S-CNN all bands", "s-cnn-all", None),
            ("TB-CNN", "tb-cnn", None),
        )
        entries = tuple(
            Entry(title, recipe_name, nomenclatures[0], title, pretrained)
            for title, recipe_name, pretrained in models
        )
        return Table(entries, (*TALK_2019, *PAPER_2019, RELEASED[0]), PRF)
    inputs = {"S1": "s1", "S2": "s2", "S1+S2": "s1-s2"}
    if name == "mm":
        known = {("label_19", "S1+S2"): "ResNet50 S1+S2", ("label_43", "S2"): "ResNet50 S2"}
        entries = tuple(
            Entry(
                f"ResNet50 {shown}, {len(NOMENCLATURES[labels])} classes, "
                f"{'ImageNet' if pretrained else 'from scratch'}",
                f"resnet50-{suffix}",
                labels,
                "" if pretrained else known.get((labels, shown), ""),
                pretrained,
            )
            for labels in nomenclatures
            for shown, suffix in inputs.items()
            for pretrained in (None, "resnet50")
        )
        return Table(entries, (*MM, RELEASED[1]), PRF)
    if name == "reben":
        resnets = tuple(
            Entry(f"ResNet50 {shown}", f"reben-resnet50-{suffix}", "label_19", f"ResNet50 {shown}")
            for shown, suffix in inputs.items()
        )
        others = (
            Entry(
                "ConvNeXtV2 S1+S2", f"{TIMM}convnextv2_base-s1-s2", "label_19", "ConvNeXtV2 S1+S2"
            ),
            Entry("RDNet S2", f"{TIMM}rdnet_base-s2", "label_19", "RDNet S2"),
        )
        return Table((*resnets, *others), REBEN, ("F1", "F2", "AP macro", "AP micro"))
    raise InvalidInputError(f"unknown table {name!r}; choose one of: {', '.join(TABLES)}")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A table with what was measured.

    Attributes
    ----------
    name
        Of the table.
    rows
        Measured rows, the published ones of a model below its own.
    columns
        Figures shown.
    evaluations
        Title of a row to all its figures; rows that could not be trained are missing.
    leakages
        By protocol; the one that was used first.
    about
        Cube, protocol, seed, commit, and the digest of each selection.
    """

    name: str
    rows: Sequence[ResultRow]
    columns: Sequence[str]
    evaluations: Mapping[str, Evaluation]
    leakages: Sequence[Leakage]
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, every figure included."""
        return {
            "table": self.name,
            **self.about,
            "rows": [row.to_dict() for row in self.rows],
            "evaluations": {title: e.to_dict() for title, e in self.evaluations.items()},
            "leakage": [report.to_dict() for report in self.leakages],
        }

    def as_text(self) -> str:
        """Tables of rows, of F2 by class where asked for, and of leakage; Markdown too."""
        parts = [as_text(self.rows, self.columns)]
        if self.name == "mm":
            parts += _by_class(self.evaluations)
        parts += [
            "Distance of each test patch from the nearest training patch, by protocol:",
            leakage_text(self.leakages),
        ]
        return "\n\n".join(parts)


def compare(
    cube: Cube,
    name: TableName,
    *,
    out: str,
    protocol: Protocol | None = None,
    small: bool = False,
    epochs: int | None = None,
    seed: int | None = None,
    subset: int | None = None,
    weights: str | None = None,
    download: bool = False,
    data: str | None = None,
    engine: Engine = "threads",
    progress: Progress | None = None,
) -> Comparison:
    """Train and evaluate every row of a table on the same splits.

    Parameters
    ----------
    cube
        Where the patches are.
    name
        ``"igarss2019"``, ``"mm"`` or ``"reben"``.
    out
        Folder at any URL: a run a row, and ``comparison.json``. What is finished there is not
        trained again.
    protocol
        See ``split_cube``; that of the archive's own split where it is None.
    small
        Train by the recipes for a small machine, not the published ones.
    epochs, seed
        Instead of the recipe's.
    subset
        Use only so many patches.
    weights
        Folder with ImageNet weights, ``<architecture>.pth``; pytorchcv's own folder if None.
    download
        Let pytorchcv download what is missing.
    data
        What the patches are, for the table.
    engine
        ``"threads"``, or a Dask client to load with.
    progress
        Told after every batch.

    Returns
    -------
    Comparison
        A row that this cube or machine cannot train says why in its note. What stops a training
        that has begun, such as a loss that is no finite number, stops the comparison.

    Raises
    ------
    InvalidInputError
        If the table or protocol is unknown or not for this cube, a split is empty, or ``out`` holds
        runs of other settings.
    CubeIntegrityError
        If the cube or a checkpoint is damaged.
    StorageError
        If storage refuses or cannot be reached.
    """
    table = table_of(name, cube.archive)
    protocol = protocol or protocols_of(cube)[-1]
    drawn_by = 42 if seed is None else seed
    # The same patches for every row: what one of them cannot read or learn is left out for all.
    # A patch without one of the 19 classes may have one of the 43.
    with_s1 = name != "igarss2019" and S1_GROUP.path in cube.layout.groups
    labels = table.entries[-1].labels
    splits = split_cube(cube, protocol, labels, seed=drawn_by, subset=subset, with_s1=with_s1)
    by_protocol = {protocol: splits}
    for other in protocols_of(cube):
        if other == protocol:
            continue
        try:
            by_protocol[other] = split_cube(
                cube, other, labels, seed=drawn_by, subset=subset, with_s1=with_s1
            )
        except InvalidInputError as error:  # of which nobody asked more than a line of the report
            logger.info("no leakage by protocol %s: %s", other, error)
    rows: list[ResultRow] = []
    evaluations: dict[str, Evaluation] = {}
    for entry in table.entries:
        what = f"{data or f'{cube.id}, {protocol}'}, {len(NOMENCLATURES[entry.labels])} classes"
        name_of_recipe = f"{entry.recipe}{SMALL if small else ''}"
        config = recipe(name_of_recipe, entry.labels, epochs=epochs, seed=seed)
        try:
            config = _ready(cube, entry, config, weights, download=download)
        except (InvalidInputError, NotFoundError) as error:
            logger.info("%s: %s", entry.title, error)
            unknown = (None, None, None, None)
            rows.append(ResultRow(entry.title, "measured", what, *unknown, note=str(error)))
        else:
            logger.info("%s: recipe %s", entry.title, config.recipe)
            run_url = f"{out}/{entry.key}{SMALL if small else ''}"
            result = _measured(cube, config, splits, run_url, engine, progress)
            row = ResultRow.measured(entry.title, what, result.row.metrics, result.row.source)
            rows.append(row)
            evaluations[entry.title] = result
        rows += [_with_source(row) for row in table.published if row.model == entry.published]
    shown = {entry.published for entry in table.entries}
    rows += [_with_source(row) for row in table.published if row.model not in shown]

    about = {
        "cube": cube.id,
        "release": cube.release.name,
        "protocol": protocol,
        "commit": commit(),
        "small": small,
        "seed": drawn_by,
        "subset": subset,
        "selections": {
            split: selection.digest
            for split, selection in zip(SPLITS, splits.in_order, strict=True)
        },
    }
    reports = [leakage(cube, others) for others in by_protocol.values()]
    made = Comparison(name, rows, table.columns, evaluations, reports, about)
    Storage(out).write(RESULTS, json.dumps(made.to_dict(), indent=1).encode())
    return made


def _with_source(row: ResultRow) -> ResultRow:
    return replace(row, note=row.source)


def _ready(
    cube: Cube, entry: Entry, config: Config, folder: str | None, *, download: bool
) -> Config:
    """Return the config with its weights found, once this cube and this machine can train it.

    Raises
    ------
    NotFoundError
        If its weights are missing.
    InvalidInputError
        If the cube lacks a group it reads, or the library of its model cannot be imported.
    """
    if entry.pretrained is not None:
        config = replace(config, weights=_weights_at(entry.pretrained, folder, download=download))
    for group in build(config.model, 1, cube.archive).groups:
        cube.pixel_layout(group)
    return config


def _weights_at(architecture: str, folder: str | None, *, download: bool) -> str:
    if folder is None:
        cached = cached_weights(architecture)
        if cached.exists() or download:
            return IMAGENET
        raise NotFoundError(f"weights missing: {cached}")
    storage, key = Storage(folder), f"{architecture}.pth"
    if not storage.exists(key):
        raise NotFoundError(f"weights missing: {storage.url}/{key}")
    return f"{storage.url}/{key}"


def _measured(
    cube: Cube,
    config: Config,
    splits: Splits,
    run_url: str,
    engine: Engine,
    progress: Progress | None,
) -> Evaluation:
    """Train, or go on, or take what is finished; then measure on test."""
    fit(
        cube,
        config,
        train=splits.train,
        validation=splits.validation,
        out=run_url,
        engine=engine,
        resume=True,
        progress=progress,
    )
    return evaluate(cube, load(run_url), splits.test, engine=engine)


def _by_class(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Lay F2 of each class out, a table for each nomenclature and a column for each model."""
    tables = []
    for names in NOMENCLATURES.values():
        shown = {t: e.per_class for t, e in evaluations.items() if tuple(e.per_class) == names}
        if shown:
            lines = [(c, *(figure(of[c]["f2"]) for of in shown.values())) for c in names]
            tables += ["F2 by class:", aligned(("class", *shown), lines, range(1, len(shown) + 1))]
    return tables
