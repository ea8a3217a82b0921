"""``python -m kstream.training``: cache, train, evaluate, export."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..errors import KstreamError
from .experiment import Experiment, load_experiment

app = typer.Typer(help="Train and evaluate networks on simulated exams.", no_args_is_help=True, add_completion=False)
console = Console()

ExperimentFile = Annotated[Path, typer.Argument(help="experiment (TOML)", metavar="EXPERIMENT")]
CacheFolder = Annotated[Path, typer.Option("--cache", help="exams that went through the pipeline")]
RunFolder = Annotated[Path | None, typer.Option("--run", help="folder of the run; default runs/NAME")]
DEFAULT_CACHE = Path("cache")


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def _guarded(work: Callable[[], None]) -> None:
    """Run; show our own errors in their own form and exit with their code."""
    try:
        work()
    except KstreamError as error:
        console.print(str(error), markup=False, highlight=False)
        raise typer.Exit(error.exit_code) from error


def _run_folder(experiment: Experiment, run: Path | None) -> Path:
    return run or Path("runs") / experiment.name


@app.command()
def cache(
    file: ExperimentFile,
    folder: CacheFolder = DEFAULT_CACHE,
    workers: Annotated[int, typer.Option(help="processes")] = 2,
) -> None:
    """Simulate the exams that the cache lacks and stream each through the pipeline."""

    def work() -> None:
        from .data import build_cache

        os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread for each of the worker processes
        experiment = load_experiment(file)
        with _progress() as progress:
            task = progress.add_task("exams")
            for path, done, total in build_cache(experiment, folder, workers):
                progress.update(task, completed=done, total=total, description=path.stem)
        console.print(f"{sum(len(c.seeds) for c in experiment.cohorts.values())} exams in {folder}")

    _guarded(work)


@app.command()
def train(file: ExperimentFile, folder: CacheFolder = DEFAULT_CACHE, run: RunFolder = None) -> None:
    """Train, or go on with a run that was stopped."""

    def work() -> None:
        from ..engines.memory import keep_large_blocks
        from .data import load_cohort
        from .fit import fit

        experiment = load_experiment(file)
        keep_large_blocks()
        exams = {cohort: load_cohort(experiment, cohort, folder) for cohort in ("train", "validation")}
        with _progress() as progress:
            task = progress.add_task("training", total=experiment.schedule.steps)

            def report(record: dict[str, Any]) -> None:
                progress.update(task, completed=record["step"])
                if "loss" in record:
                    progress.update(task, description=f"loss {record['loss']:.3f}")
                else:
                    progress.print(_validation_line(record))

            result = fit(experiment, exams["train"], exams["validation"], _run_folder(experiment, run), report)
        console.print(f"best mean Dice {result.best_dice:.3f} at step {result.best_step}: {result.weights}")

    _guarded(work)


def _validation_line(record: dict[str, Any]) -> str:
    summary = record["validation"]
    return (
        f"step {record['step']:>6}  Dice {summary['mean_dice']:.3f}  failures {summary['failure_rate']:.0%}  "
        f"false positives {summary['false_positive_ml']:.2f} ml"
    )


def _evaluate(experiment: Experiment, folder: Path, run: Path, cohorts: list[str]) -> dict[str, list[Any]]:
    from ..engines.memory import keep_large_blocks
    from ..engines.torch_engine import TorchEngine
    from .data import load_cohort
    from .evaluate import evaluate as score
    from .fit import load_best

    keep_large_blocks()
    engine = TorchEngine(load_best(experiment, run), {"model": experiment.name})
    patch, frame = experiment.network, experiment.data.frame
    return {
        cohort: score(load_cohort(experiment, cohort, folder), engine, frame, patch.patch_depth, patch.patch_stride)
        for cohort in cohorts
    }


@app.command()
def evaluate(
    file: ExperimentFile,
    folder: CacheFolder = DEFAULT_CACHE,
    run: RunFolder = None,
    cohort: Annotated[list[str] | None, typer.Option(help="default: every test cohort")] = None,
) -> None:
    """Score the best weights of a run exam by exam; tables go into the run's folder."""

    def work() -> None:
        from .evaluate import to_csv, to_markdown

        experiment = load_experiment(file)
        target = _run_folder(experiment, run)
        scores = _evaluate(experiment, folder, target, cohort or list(experiment.test_cohorts))
        for name, rows in scores.items():
            (target / f"evaluation-{name}.csv").write_text(to_csv(rows), encoding="utf-8")
            (target / f"evaluation-{name}.md").write_text(to_markdown(rows), encoding="utf-8")
            console.print(f"{name}\n{to_markdown(rows)}", markup=False, highlight=False)

    _guarded(work)


@app.command()
def export(
    file: ExperimentFile,
    output: Annotated[Path, typer.Argument(help="folder of the bundle; its name is the bundle's")],
    folder: CacheFolder = DEFAULT_CACHE,
    run: RunFolder = None,
) -> None:
    """Evaluate the best weights of a run on the test cohorts and write them as a bundle with card and tables."""

    def work() -> None:
        from .data import load_cohort
        from .export import export as write

        experiment = load_experiment(file)
        target = _run_folder(experiment, run)
        scores = _evaluate(experiment, folder, target, list(experiment.test_cohorts))
        validation = load_cohort(experiment, "validation", folder)
        example = next((exam for exam in validation if exam.has_lesion), validation[0])
        bundle = write(experiment, file, target, output, scores, example)
        console.print(f"{bundle.folder}: sha256 {bundle.info.sha256[:12]}")

    _guarded(work)
