"""The command ``python -m training``: parse, make one call, print.

Results go to standard output, progress and warnings to standard error. Exit codes: 0 done,
1 damaged bytes or a loss that is not finite, 2 wrong input, no such thing or storage
unreachable, 130 interrupted.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

from bigearth_cube.errors import BigEarthCubeError, InvalidInputError, NotFoundError, StorageError
from bigearth_cube.nomenclature import NOMENCLATURES, SPLITS
from bigearth_cube.terminal import dask_client, os_error_text, progress_bars, silence_dask

if TYPE_CHECKING:
    from bigearth_cube.cube import Cube
    from bigearth_cube.search import Selection

EXIT_FAILED, EXIT_WRONG, EXIT_INTERRUPTED = 1, 2, 130


def main(argv: list[str] | None = None) -> None:
    """Run the command and turn errors into one line each."""
    logging.basicConfig(format="training: %(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("training").setLevel(logging.INFO)
    try:
        cli.main(argv, prog_name="python -m training", standalone_mode=False)
    except (InvalidInputError, NotFoundError, StorageError) as error:
        _fail(str(error), EXIT_WRONG)
    except BigEarthCubeError as error:
        _fail(str(error), EXIT_FAILED)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in {"bigearth_cube", "training"}:
            raise
        _fail(f'this needs {error.name}: pip install "bigearth-cube[demo]"', EXIT_WRONG)
    except (click.exceptions.Abort, KeyboardInterrupt):
        arguments = sys.argv[1:] if argv is None else argv
        go_on = "; run the same command with --resume to go on" if "fit" in arguments[:1] else ""
        _fail(f"interrupted{go_on}", EXIT_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_WRONG)
    except OSError as error:  # a folder that may not be written, a full disk
        _fail(os_error_text(error), EXIT_WRONG)


def _fail(message: str, code: int) -> None:
    click.echo(f"training: {message}", err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Train, evaluate and embed with a cube.

    CUBE is a path or URL such as s3://bucket/bigearthnet-v2; --out and --checkpoint take paths
    and URLs too. Credentials and endpoint come from the AWS environment (AWS_PROFILE,
    AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...).

    Exits with 0 when done, 1 for damaged bytes or a loss that is not finite, 2 for wrong input
    or storage that cannot be reached, 130 when interrupted.
    """


_engine = click.option(
    "--engine",
    type=click.Choice(["threads", "dask"]),
    default="threads",
    show_default=True,
    help="Who reads: threads of this process, or Dask workers.",
)
_scheduler = click.option(
    "--scheduler", metavar="ADDRESS", help="Dask scheduler to read on; implies --engine dask."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_split_choice = click.Choice([*SPLITS, "all"])


@cli.command()
@click.argument("cube")
@click.option("--recipe", "recipe_name", default="tb-cnn", show_default=True, help="What to train.")
@click.option(
    "--labels", type=click.Choice(list(NOMENCLATURES)), help="[default: the archive's own]"
)
@click.option("--train-split", type=_split_choice, default="train", show_default=True)
@click.option(
    "--validation-split",
    type=click.Choice([*SPLITS, "all", "none"]),
    default="validation",
    show_default=True,
    help="Chooses best epoch and threshold.",
)
@click.option("--selection", metavar="FILE", help="Rows to train on, instead of --train-split.")
@click.option("--validation-selection", metavar="FILE", help="Instead of --validation-split.")
@click.option("--epochs", type=click.IntRange(min=1), help="[default: the recipe's]")
@click.option("--batch-size", type=click.IntRange(min=2), help="[default: the recipe's]")
@click.option("--learning-rate", type=float, help="[default: the recipe's]")
@click.option(
    "--augment/--no-augment", default=None, help="Flip and rotate.  [default: the recipe's]"
)
@click.option("--seed", type=click.IntRange(min=0), help="[default: the recipe's]")
@click.option("--weights", metavar="URL", help="File of weights that a backbone begins with.")
@_engine
@_scheduler
@click.option(
    "--cache",
    type=click.Choice(["auto", "none", "host", "device"]),
    default="auto",
    show_default=True,
    help="Where patches stay after the first epoch, if they fit.",
)
@click.option("--out", metavar="URL", help="Folder of the run.  [default: runs/CUBE-RECIPE]")
@click.option("--resume", is_flag=True, help="Go on with the run in --out; a finished one is done.")
@click.option(
    "--save-every",
    type=click.FloatRange(min=0),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
)
@click.option("--tensorboard", metavar="DIR", help="Write the figures for TensorBoard too.")
def fit(
    cube: str,
    recipe_name: str,
    labels: str | None,
    train_split: str,
    validation_split: str,
    selection: str | None,
    validation_selection: str | None,
    epochs: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    augment: bool | None,
    seed: int | None,
    weights: str | None,
    engine: str,
    scheduler: str | None,
    cache: str,
    out: str | None,
    resume: bool,
    save_every: float,
    tensorboard: str | None,
) -> None:
    """Train a network by a recipe.

    A killed run goes on with --resume: on a CPU, with the same number of threads, to the very
    weights it would have had. The folder holds metrics.jsonl, learning-curve.png, best.pt and the
    two newest checkpoints to go on from.

    Started by torchrun, 1, 2, 4 or 8 processes train together, with the steps of one; a killed
    one is restarted where --resume stands too.

    \b
    Example:
      python -m training fit s3://bucket/bigearthnet-v2 --recipe tb-cnn-small --out runs/first
      torchrun --nproc-per-node 4 --max-restarts 3 -m training fit CUBE --out runs/four --resume
    """
    from training.distributed import joined
    from training.history import tensorboard as told_to
    from training.plots import draw_run
    from training.recipes import recipe
    from training.train import fit as run_fit

    opened = _open(cube)
    config = recipe(
        recipe_name,
        labels or {"v1": "label_43", "v2": "label_19"}[opened.archive],
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        augment=augment,
        seed=seed,
        weights=weights,
    )
    train = _select(opened, train_split, selection)
    validation = (
        None
        if validation_split == "none" and validation_selection is None
        else _select(opened, validation_split, validation_selection)
    )
    out = out or f"runs/{opened.id}-{recipe_name}"
    with ExitStack() as leaving:
        team = leaving.enter_context(joined())
        if team.leads:
            leaving.callback(draw_run, out, f"{recipe_name} on {opened.id}")
        else:
            logging.getLogger("training").setLevel(logging.WARNING)
        run = run_fit(
            opened,
            config,
            train=train,
            validation=validation,
            out=out,
            engine=leaving.enter_context(_loading(engine, scheduler)),
            cache=cache,  # type: ignore[arg-type]  # click checked it
            resume=resume,
            save_every_s=save_every,
            team=team,
            progress=leaving.enter_context(progress_bars()) if team.leads else None,
            after_epoch=leaving.enter_context(told_to(tensorboard))
            if tensorboard and team.leads
            else None,
        )
    if not team.leads:
        return
    best = "" if run.best_f1 is None else f", best epoch {run.best_epoch} with F1 {run.best_f1:.4f}"
    click.echo(
        f"{len(run.history)} epochs on {len(train)} patches{best}, threshold {run.threshold:.2f}: "
        f"{run.url}"
    )


@cli.command()
@click.argument("cube")
@click.option("--checkpoint", metavar="URL", required=True, help="A run's folder, or a .pt file.")
@click.option("--split", type=_split_choice, default="test", show_default=True)
@click.option("--selection", metavar="FILE", help="Rows to evaluate, instead of --split.")
@click.option("--threshold", type=click.FloatRange(0, 1), help="[default: the checkpoint's]")
@click.option(
    "--tune-on",
    type=click.Choice(SPLITS),
    help="Split to choose the threshold on, instead of --threshold.",
)
@click.option(
    "--by",
    multiple=True,
    type=click.Choice(["country", "season", "tile", "purity"]),
    help="Break the figures down, too; may be repeated.",
)
@click.option("--per-class", is_flag=True, help="Show the figures of each class, too.")
@click.option("--baselines", is_flag=True, help="Fit the baselines on the cube's own splits too.")
@click.option("--published", is_flag=True, help="Show the rows of the 2019 talk beside.")
@click.option(
    "--predictions",
    metavar="URL",
    help="Keep the scores: 'cube' for predictions/NAME/score, else a parquet file.",
)
@click.option("--name", help="Name of the predictions in the cube.  [default: the recipe's]")
@_engine
@_scheduler
@_json
def evaluate(
    cube: str,
    checkpoint: str,
    split: str,
    selection: str | None,
    threshold: float | None,
    tune_on: str | None,
    by: tuple[str, ...],
    per_class: bool,
    baselines: bool,
    published: bool,
    predictions: str | None,
    name: str | None,
    engine: str,
    scheduler: str | None,
    as_json: bool,
) -> None:
    """Measure a checkpoint on a split; precision, recall and F are averaged by sample.

    Every figure is scikit-learn's: a class that no patch of the split has counts as 0 in macro
    averages, ap_macro among them. --json has the figures, their averaging and the patches of each
    class. --by purity groups patches by the share of their reference map that has one class.

    \b
    Example:
      python -m training evaluate s3://bucket/bigearthnet-v2 --checkpoint runs/first --by country
    """
    from training import breakdown
    from training.baselines import band_table, baseline_rows
    from training.checkpoint import load
    from training.evaluate import evaluate as run_evaluate
    from training.evaluate import save_predictions, store_predictions
    from training.metrics import averaging
    from training.results import TALK_2019, as_text, per_class_text

    opened = _open(cube)
    state = load(checkpoint)
    rows = _select(opened, split, selection)
    tuned = None if tune_on is None else _select(opened, tune_on, None)
    with _loading(engine, scheduler) as loading:
        result = run_evaluate(
            opened, state, rows, threshold=threshold, tune_on=tuned, by=by, engine=loading
        )
        table = [result.row]
        if baselines:
            train, validation, test = (
                band_table(opened, chosen, state.config.labels, loading)
                for chosen in (
                    opened.search(split="train"),
                    opened.search(split="validation"),
                    rows,
                )
            )
            table = [*baseline_rows(train, validation, test, result.row.data), *table]
    if predictions == "cube":
        store_predictions(opened, state, result.predictions, name=name)
    elif predictions is not None:
        save_predictions(opened, state, result.predictions, predictions)
    if published:
        table = [*TALK_2019, *table]
    if as_json:
        click.echo(json.dumps({**result.to_dict(), "rows": [row.to_dict() for row in table]}))
        return
    click.echo(as_text(table))
    click.echo("")
    for metric, value in sorted(result.row.metrics.items()):
        click.echo(f"{metric:<18} {value:8.4f}  by {averaging(metric)}")
    if per_class:
        click.echo(f"\n{per_class_text(result.per_class)}")
    if by:
        click.echo(f"\n{breakdown.as_text(result.breakdown)}")


@cli.command()
@click.argument("cube")
@click.option(
    "--table",
    type=click.Choice(["igarss2019", "mm", "reben"]),
    default="igarss2019",
    show_default=True,
)
@click.option(
    "--protocol",
    type=click.Choice(["paper", "v1-official", "v2-official"]),
    help="Which patches train and test.  [default: the archive's official split]",
)
@click.option("--small", is_flag=True, help="Use the recipes for a small machine.")
@click.option("--epochs", type=click.IntRange(min=1), help="[default: each recipe's]")
@click.option("--subset", type=click.IntRange(min=10), help="Use only so many patches.")
@click.option("--seed", type=click.IntRange(min=0), help="[default: each recipe's]")
@click.option(
    "--weights",
    metavar="FOLDER",
    help="ImageNet weights, ARCHITECTURE.pth each.  [default: pytorchcv's folder]",
)
@click.option("--download", is_flag=True, help="Let pytorchcv download weights that are missing.")
@click.option("--data", metavar="TEXT", help="What the patches are, e.g. 'synthetic: v2'.")
@click.option(
    "--out", metavar="URL", help="Folder of runs and results.  [default: runs/CUBE-TABLE]"
)
@click.option("--leakage", "leakage_only", is_flag=True, help="Train nothing: report leakage.")
@_engine
@_scheduler
@_json
def compare(
    cube: str,
    table: str,
    protocol: str | None,
    small: bool,
    epochs: int | None,
    subset: int | None,
    seed: int | None,
    weights: str | None,
    download: bool,
    data: str | None,
    out: str | None,
    leakage_only: bool,
    engine: str,
    scheduler: str | None,
    as_json: bool,
) -> None:
    """Train and evaluate the rows of a published table, and print them beside what was published.

    Every row sees the same patches. A row without its ImageNet weights reads "weights missing",
    and the others run. Given again, the command goes on where it stopped. The folder holds a run
    a row, comparison.json, comparison.md and comparison.png. Below the table stands how far
    test patches lie from training patches, by protocol.

    \b
    Example:
      python -m training compare s3://bucket/bigearthnet-v1 --table igarss2019 --protocol paper
    """
    from bigearth_cube.storage import Storage
    from training.compare import compare as run_compare
    from training.plots import comparison_png
    from training.protocols import leakage, leakage_text, protocols_of, split_cube

    opened = _open(cube)
    if leakage_only:
        labels = {"v1": "label_43", "v2": "label_19"}[opened.archive]
        chosen = [protocol] if protocol else protocols_of(opened)
        reports = [
            leakage(
                opened,
                split_cube(
                    opened,
                    each,  # type: ignore[arg-type]  # click checked it
                    labels,
                    seed=42 if seed is None else seed,
                    subset=subset,
                ),
            )
            for each in chosen
        ]
        told = [report.to_dict() for report in reports]
        click.echo(json.dumps(told) if as_json else leakage_text(reports))
        return
    folder = Storage(out or f"runs/{opened.id}-{table}")
    with _loading(engine, scheduler) as loading, progress_bars() as progress:
        made = run_compare(
            opened,
            table,  # type: ignore[arg-type]  # click checked it
            out=folder.url,
            protocol=protocol,  # type: ignore[arg-type]
            small=small,
            epochs=epochs,
            seed=seed,
            subset=subset,
            weights=weights,
            download=download,
            data=data,
            engine=loading,
            progress=progress,
        )
    source = f", measured on {data}" if data else ""
    title = f"{table}: {made.about['cube']}, {made.about['protocol']}{source}"
    folder.write("comparison.md", f"{made.as_text()}\n".encode())
    folder.write("comparison.png", comparison_png(made.rows, made.columns, title))
    click.echo(json.dumps(made.to_dict()) if as_json else made.as_text())


@cli.command()
@click.argument("cube")
@click.option("--checkpoint", metavar="URL", required=True, help="A run's folder, or a .pt file.")
@click.option("--name", help="Id of the item.  [default: recipe, cube and release]")
def publish(cube: str, checkpoint: str, name: str | None) -> None:
    """Write a STAC Item (mlm) beside a checkpoint: what it is, reads, and was trained on.

    \b
    Example:
      python -m training publish s3://bucket/bigearthnet-v2 --checkpoint runs/first
    """
    from training.publish import publish as run_publish

    click.echo(run_publish(_open(cube), checkpoint, name=name))


@cli.command()
@click.argument("cube")
@click.option("--checkpoint", metavar="URL", required=True, help="A run's folder, or a .pt file.")
@click.option("--name", help="Name of the embeddings.  [default: the recipe's]")
@click.option("--out", metavar="URL", help="Folder beside the cube, instead of the cube itself.")
@_engine
@_scheduler
def embed(
    cube: str,
    checkpoint: str,
    name: str | None,
    out: str | None,
    engine: str,
    scheduler: str | None,
) -> None:
    """Write the features of every patch into the cube, for retrieval, and the encoder as ONNX.

    Given again, a killed run goes on where it stopped. With --out the cube is only read, and the
    folder holds encoder.onnx and a parquet file for every 8,192 rows.

    \b
    Example:
      python -m training embed s3://bucket/bigearthnet-v2 --checkpoint runs/first
    """
    from training.checkpoint import load
    from training.embed import embed as run_embed

    opened = _open(cube)
    state = load(checkpoint)
    with _loading(engine, scheduler) as loading, progress_bars() as progress:
        for made in run_embed(opened, state, name=name, out=out, engine=loading, progress=progress):
            click.echo(
                f"wrote {made.n_features} features of {made.n_patches} patches to {made.url}"
            )
            click.echo(f"wrote their encoder to {made.encoder_url}")


@cli.command()
@click.argument("cube")
@click.option("--model", help="Whose embeddings; not needed where the cube has one model.")
@click.option(
    "--query-model",
    metavar="MODEL",
    help="Embeddings of the queries, of the same space as --model.",
)
@click.option("--queries", type=_split_choice, default="test", show_default=True)
@click.option("--answers", type=_split_choice, default="train", show_default=True)
@click.option("--queries-selection", metavar="FILE", help="Queries, instead of --queries.")
@click.option("--answers-selection", metavar="FILE", help="Answers, instead of --answers.")
@click.option(
    "--labels", type=click.Choice(list(NOMENCLATURES)), help="[default: the archive's own]"
)
@click.option("-k", default=10, show_default=True, help="Answers looked at.")
@click.option(
    "--metric",
    type=click.Choice(["chi2", "cosine", "euclidean", "hamming"]),
    default="chi2",
    show_default=True,
)
@_engine
@_scheduler
@_json
def retrieve(
    cube: str,
    model: str | None,
    query_model: str | None,
    queries: str,
    answers: str,
    queries_selection: str | None,
    answers_selection: str | None,
    labels: str | None,
    k: int,
    metric: str,
    engine: str,
    scheduler: str | None,
    as_json: bool,
) -> None:
    """Measure look-alikes by the labels they share with their queries.

    Beside the model stand random features and band statistics. Precision, recall and F are of
    shared labels, averaged over answers and queries; ACG is the labels shared. With --query-model
    queries are of one sensor and answers of another, each way, beside each sensor alone.

    \b
    Example:
      python -m training retrieve s3://bucket/bigearthnet-v2 --queries test --answers train -k 10
    """
    from training.retrieve import as_text, retrieval_rows

    opened = _open(cube)
    with _loading(engine, scheduler) as loading:
        rows = retrieval_rows(
            opened,
            queries=_select(opened, queries, queries_selection),
            answers=_select(opened, answers, answers_selection),
            model=model,
            query_model=query_model,
            labels=labels or {"v1": "label_43", "v2": "label_19"}[opened.archive],
            k=k,
            metric=metric,  # type: ignore[arg-type]  # click checked it
            engine=loading,
        )
    if as_json:
        click.echo(json.dumps([row.to_dict() for row in rows]))
        return
    click.echo(as_text(rows))
    click.echo(f"{rows[0].scores.n_queries} queries, {k} answers each")


@cli.command()
@click.argument("cube", required=False)
@click.option("--recipe", "recipe_name", default="tb-cnn", show_default=True, help="What to train.")
@click.option("--patches", type=click.IntRange(min=2), default=269_695, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=2), help="[default: the recipe's]")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto")
@_json
def measure(
    cube: str | None,
    recipe_name: str,
    patches: int,
    batch_size: int | None,
    precision: str,
    as_json: bool,
) -> None:
    """Measure training on this machine, as a section for RESULTS.md.

    Random patches are trained on from the device's memory; where a CUBE is named, its patches as
    they stream in too, beside its loader alone.

    \b
    Example:
      python -m training measure s3://bucket/bigearthnet-v2 >> training/RESULTS.md
    """
    from training.data import default_device
    from training.measure import as_dict, as_markdown
    from training.measure import measure as run_measure
    from training.recipes import recipe

    config = recipe(
        recipe_name,
        "label_43",
        batch_size=batch_size,
        precision=precision,
        augment=True,
        channels_last=True,
    )
    report = run_measure(
        config, default_device(), n_patches=patches, cube=_open(cube) if cube else None
    )
    click.echo(json.dumps(as_dict(report)) if as_json else as_markdown(report))


@cli.command()
@click.option("--s3", "s3_url", metavar="URL", help="Bucket to use, instead of an embedded server.")
@click.option("--patches", type=click.IntRange(min=200), default=6000, show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), help="[default: as many as fit in the time]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--out", type=click.Path(file_okay=False), default="demo", show_default=True, help="Results."
)
def demo(s3_url: str | None, patches: int, epochs: int | None, seed: int, out: str) -> None:
    """Tell the whole story on a small synthetic archive, in minutes.

    Writes an archive, ingests it to S3, opens the cube through Intake, selects a split by search,
    trains TB-CNN reading from S3 only, evaluates it beside baselines and published rows, and
    retrieves look-alikes. Without --s3 an S3 server runs within this process.

    \b
    Example:
      python -m training demo --out demo
    """
    from training.demo import run_demo

    run_demo(out, s3_url=s3_url, n_patches=patches, n_epochs=epochs, seed=seed, say=click.echo)


def _open(url: str) -> Cube:
    from bigearth_cube.cube import open_cube

    return open_cube(url)


def _select(cube: Cube, split: str, file: str | None) -> Selection:
    """Rows of a split, of everything, or of a file."""
    from bigearth_cube.search import Selection

    if file is not None:
        return Selection.load(file)
    selection = cube.search(split=None if split == "all" else split)
    if not len(selection):
        raise InvalidInputError(
            f"no patch of cube {cube.id!r} is in split {split!r}; choose another, or 'all'"
        )
    return selection


@contextmanager
def _loading(engine: str, scheduler: str | None) -> Iterator[Any]:
    """``"threads"``, or a Dask client: of a scheduler, or of a cluster in this process."""
    if scheduler is None and engine == "threads":
        yield "threads"
        return
    if scheduler is not None:
        with dask_client(scheduler) as client:
            yield client
        return
    from distributed import Client, LocalCluster

    silence_dask()
    with (
        LocalCluster(
            processes=False, dashboard_address="127.0.0.1:0", worker_dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
