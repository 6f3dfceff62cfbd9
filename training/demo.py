"""The whole story on a small synthetic archive: from files to scores, straight from S3.

Every stage is one call that a user would make, timed. The archive is taken away after ingest,
so that training can read from S3 only.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import botocore.session
import intake
import numpy as np
import torch
from distributed import Client, LocalCluster
from rich.progress import Progress

from bigearth_cube.archive.synthetic import write_archive
from bigearth_cube.cube import Cube
from bigearth_cube.ingest import ingest
from bigearth_cube.nomenclature import GROUPS, SPLITS
from bigearth_cube.plots import LabeledPatch, draw_look_alikes, montage, true_color
from bigearth_cube.retrieval import neighbors
from bigearth_cube.storage import Storage
from bigearth_cube.terminal import progress_bars, silence_dask
from training.baselines import band_table, baseline_rows
from training.checkpoint import arranged, load
from training.config import Config
from training.data import Pass, computes_in_bfloat16, default_device
from training.embed import embed
from training.evaluate import Evaluation, evaluate
from training.feed import TensorBatch
from training.history import METRICS
from training.losses import MultiLabelLoss
from training.models import build
from training.plots import learning_curve
from training.recipes import recipe
from training.results import TALK_2019, ResultRow, as_text
from training.train import fit, train_step

CLEAN: Final = '"bec:snow" = false AND "bec:cloud_or_shadow" = false'
DATA: Final = "synthetic: v2, 19 classes"
DEMO_S: Final = 330.0
"""What the whole may take. Where the recipe's epochs do not fit, fewer are trained."""
AFTER_TRAINING: Final = 0.7
"""Time of the stages after training, as a share of those before it; measured."""
TRAINING_SHARE: Final = 0.85
"""Of an epoch's time; the rest measures batch norm and validates."""
LEAST_EPOCHS: Final = 3
N_MONTAGE: Final = 12
N_ALIKE: Final = 6

Say = Callable[[str], object]


class Story:
    """Stages with their times, told as they end."""

    def __init__(self, say: Say, progress: Progress) -> None:
        self.say = say
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[str], None]]:
        """Time a stage; what is passed to the yielded function is told when it ends."""
        told: list[str] = []
        began = time.perf_counter()
        yield told.append
        self.seconds[name] = time.perf_counter() - began
        self.say(f"{self.seconds[name]:6.1f} s  {name}: {'; '.join(told)}")

    def bar(self, name: str) -> Callable[[int, int], None]:
        """Progress bar of a stage; returns a function of how many are done, and of how many."""
        task = self.progress.add_task(name, total=None)
        return lambda done, of: self.progress.update(task, completed=done, total=of)


def run_demo(
    out: str | Path,
    *,
    s3_url: str | None = None,
    n_patches: int = 6000,
    n_epochs: int | None = None,
    seed: int = 0,
    say: Say = print,
) -> list[ResultRow]:
    """Write, ingest, search, train, evaluate, retrieve and draw.

    Parameters
    ----------
    out
        Local folder for pictures, ``results.json`` and ``metrics.jsonl``.
    s3_url
        ``s3://bucket/prefix`` to use, credentials and endpoint from the AWS environment; an S3
        server is started in this process where it is None.
    n_patches
        Pairs of patches in the archive.
    n_epochs
        Epochs of training; those of the recipe, or as many as fit in the time, where it is None.
    seed
        Of the archive and of training.
    say
        Told a line at a time.

    Returns
    -------
    list of ResultRow
        Published rows, baselines, and TB-CNN last.

    Raises
    ------
    StorageError
        If the named storage refuses or cannot be reached.
    NotFoundError
        If the named bucket does not exist.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    silence_dask()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with (
        progress_bars() as progress,
        _s3(s3_url, say) as (prefix, options),
        LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            processes=False,
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
        tempfile.TemporaryDirectory(prefix="bec-demo-", ignore_cleanup_errors=True) as scratch,
    ):
        story = Story(say, progress)
        return _tell(story, Path(scratch), out, prefix, options, client, n_patches, n_epochs, seed)


def _tell(
    story: Story,
    scratch: Path,
    out: Path,
    prefix: str,
    options: dict[str, str] | None,
    client: Client,
    n_patches: int,
    n_epochs: int | None,
    seed: int,
) -> list[ResultRow]:
    began = time.perf_counter()
    cube_url, run_url = f"{prefix}/cube", f"{prefix}/runs/tb-cnn-small"

    archive = scratch / "archive"
    with story.stage("archive") as tell:
        report = write_archive(
            archive,
            archive="v2",
            n_patches=n_patches,
            seed=seed,
            progress=story.bar("archive"),
        )
        tell(f"wrote {n_patches:,} pairs of patches, {report.n_files:,} files in the v2 layout")
    with story.stage("ingest") as tell:
        ingested = ingest(
            [str(archive)],
            cube_url,
            storage_options=options,
            cube_id="bigearthnet-v2-synthetic",
            progress=story.bar("ingest"),
        )
        _take_away(archive)
        tell(f"{ingested.n_rows:,} rows in {cube_url}; the archive is taken away")

    with story.stage("search") as tell:
        catalog = intake.open_catalog(f"{cube_url}/intake.yaml", storage_options=options)
        cube: Cube = catalog["cube"](storage_options=options).cube
        train, validation, test = (cube.search(split=s, filter=CLEAN) for s in SPLITS)
        train.save(f"{run_url}/train.parquet", options)
        tell(
            f"opened through Intake; without snow and clouds {len(train):,} training, "
            f"{len(validation):,} validation and {len(test):,} test patches"
        )

    config = recipe("tb-cnn-small", "label_19", seed=seed)
    with story.stage("train") as tell:
        so_far = time.perf_counter() - began
        budget_s = DEMO_S - so_far * (1 + AFTER_TRAINING)
        config = _within(config, len(train), n_epochs, budget_s, tell)
        run = fit(
            cube,
            config,
            train=train,
            validation=validation,
            out=run_url,
            storage_options=options,
            engine=client,
            progress=story.progress,
        )
        rate = np.median([line.patches_per_s for line in run.history])
        waited = np.mean([line.wait_share for line in run.history])
        tell(
            f"{config.epochs} epochs of TB-CNN from S3 through Dask, {rate:.0f} patches/s, "
            f"{waited:.1%} of it waiting for the loader; best epoch {run.best_epoch}"
        )
    learning_curve(run.history, out / "learning-curve.png", "TB-CNN on a synthetic archive")
    (out / METRICS).write_bytes(Storage(run_url, options).read(METRICS))

    checkpoint = load(run_url, options)
    with story.stage("evaluate") as tell:
        result = evaluate(cube, checkpoint, test, data=DATA, engine=client)
        seen, chosen, unseen = (
            band_table(cube, part, config.labels, client) for part in (train, validation, test)
        )
        baselines = baseline_rows(seen, chosen, unseen, DATA)
        ours = replace(result.row, model="TB-CNN")
        tell(f"threshold {result.threshold:.2f}, as validation chose; baselines fitted")

    with story.stage("embed") as tell:
        embed(cube, checkpoint, engine=client, progress=story.progress)
        tell(f"128 features of {cube.n_patches:,} patches written into the cube")

    cube = catalog["cube"](storage_options=options).cube  # with the embeddings
    with story.stage("pictures") as tell:
        query = _draw(cube, result, out, seed)
        tell(f"learning curve, montage, and look-alikes of {query} in {out}/")

    rows = [*TALK_2019, *baselines, ours]
    story.seconds["total"] = time.perf_counter() - began
    _report(story, out, rows, baselines, ours, rate, config)
    return rows


def _take_away(archive: Path) -> None:
    """Let nobody find the archive any more; removing its 90,000 files now would slow training."""
    archive.rename(archive.with_name("removed"))


def _within(
    config: Config,
    n_train: int,
    n_epochs: int | None,
    budget_s: float,
    tell: Callable[[str], None],
) -> Config:
    """Give the run as many epochs as fit in the time, and say so where it is fewer."""
    if n_epochs is not None:
        return replace(config, epochs=n_epochs)
    rate = steps_per_s(config) * config.batch_size
    affordable = int(budget_s * TRAINING_SHARE * rate / n_train)
    if affordable >= config.epochs:
        return config
    epochs = max(LEAST_EPOCHS, affordable)
    tell(
        f"this machine trains {rate:.0f} patches/s, so {epochs} of the recipe's {config.epochs} "
        f"epochs are trained"
    )
    return replace(config, epochs=epochs)


def steps_per_s(config: Config, n_steps: int = 8) -> float:
    """Measure the fastest of some training steps on random pixels; the first steps allocate."""
    device = default_device()
    model = arranged(build(config.model, 19, "v2"), config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, fused=True)
    images = {
        path: torch.randint(0, 5000, (config.batch_size, *GROUPS[path].patch_shape))
        .to(torch.uint16)
        .to(device)
        for path in model.groups
    }
    labels_BC = torch.zeros(config.batch_size, 19, device=device)
    rows = np.arange(config.batch_size)
    batch = TensorBatch(images, labels_BC, rows, None, slice(0, len(rows)), len(rows))
    score, loss_of = Pass(model), MultiLabelLoss(config.loss)
    fastest_s = math.inf
    for _ in range(n_steps):
        began = time.perf_counter()
        train_step(score, optimizer, batch, loss_of, config).item()
        fastest_s = min(fastest_s, time.perf_counter() - began)
    return 1 / fastest_s


def _draw(cube: Cube, result: Evaluation, out: Path, seed: int) -> str:
    """Draw the montage and the look-alikes; returns the name of the query."""
    names = cube.class_names("label_19")
    predictions = result.predictions
    predicted_NC = predictions.scores_NC >= result.threshold
    ids: dict[int, str] = dict(
        zip(cube.items["bec:row"].to_pylist(), cube.items["id"].to_pylist(), strict=True)
    )

    def named(hot: np.ndarray) -> tuple[str, ...]:
        return tuple(names[c] for c in np.flatnonzero(hot))

    rng = np.random.default_rng(seed)
    n_shown = min(N_MONTAGE, len(predictions.rows))
    chosen = np.sort(rng.choice(len(predictions.rows), n_shown, replace=False))
    pixels = true_color(cube, [ids[int(predictions.rows[i])] for i in chosen])
    shown = [
        LabeledPatch(dn_YXC, named(predictions.labels_NC[i]), named(predicted_NC[i]))
        for i, dn_YXC in zip(chosen, pixels, strict=True)
    ]
    montage(shown, out / "montage.png", "Test patches of a synthetic archive, labels by TB-CNN")

    several = np.flatnonzero(predictions.labels_NC.sum(1) >= 2)
    query_row = int(predictions.rows[rng.choice(several if len(several) else len(predicted_NC))])
    query = ids[query_row]
    found = neighbors(cube, query, model="tb-cnn-small", k=N_ALIKE)
    title = "Nearest by chi-square distance of TB-CNN features"
    draw_look_alikes(cube, query, found, out / "look-alikes.png", title)
    return query


def _report(
    story: Story,
    out: Path,
    rows: list[ResultRow],
    baselines: list[ResultRow],
    ours: ResultRow,
    rate: float,
    config: Config,
) -> None:
    """Print the table and what it says; leave both as files."""
    say, table = story.say, as_text(rows)
    machine = {
        "cores": len(os.sched_getaffinity(0)),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "bfloat16": computes_in_bfloat16(default_device()),
    }
    say("")
    say(table)
    say("")
    say("Averaged by sample. Published rows are of real patches; ours are of a synthetic archive")
    say("and say nothing about real accuracy.")
    assert ours.f1 is not None
    for row in baselines:
        assert row.f1 is not None
        say(f"TB-CNN F1 is {ours.f1 - row.f1:+.3f} against {row.model}")
    say(
        f"{story.seconds['total']:.0f} s in all on {machine['cores']} cores, "
        f"{'bfloat16' if machine['bfloat16'] else 'float32'}, torch {machine['torch']}; "
        f"see {out}/"
    )
    (out / "results.md").write_text(table + "\n")
    about: dict[str, Any] = {
        "rows": [row.to_dict() for row in rows],
        "seconds": story.seconds,
        "train_patches_per_s": rate,
        "config": asdict(config),
        "machine": machine,
    }
    (out / "results.json").write_text(json.dumps(about, indent=1))


@contextmanager
def _s3(s3_url: str | None, say: Say) -> Iterator[tuple[str, dict[str, str] | None]]:
    """Where to write: a new prefix of the bucket named, or a server of our own."""
    if s3_url is not None:
        prefix = f"{s3_url.rstrip('/')}/demo-{datetime.now(UTC):%Y%m%dT%H%M%S}"
        Storage(prefix).check_bucket()
        say(f"using {prefix}, which stays there")
        yield prefix, None
        return
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {"key": "demo", "secret": "demo", "endpoint_url": f"http://{host}:{port}"}
        client = botocore.session.get_session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=options["endpoint_url"],
            aws_access_key_id=options["key"],
            aws_secret_access_key=options["secret"],
        )
        client.create_bucket(Bucket="demo")
        client.close()
        say(f"S3 server of this process at {options['endpoint_url']}, bucket demo")
        try:
            yield "s3://demo", options
        finally:
            # What such a server holds is of the process, not of the server: it would be there again.
            storage = Storage("s3://demo", options)
            for key, _ in storage.list():
                storage.delete(key)
    finally:
        server.stop()
