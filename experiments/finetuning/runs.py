"""Fine-tuning: a run for each combination of options and each seed, the best of which is kept.

An output folder is a model directory (bert_config.json, vocab.txt, labels.txt, bert_model.ckpt.*)
and holds metrics.jsonl, config.json, curves.png, eval_results.txt and .json. With several runs each
has a folder of its own within it, and the best run's model lies in the output folder.
"""

import dataclasses
import filecmp
import json
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bert_tf.files import original_names, read_json, replacing, write_json
from bert_tf.options import to_dict
from bert_tf.tasks.trained_task import TRAINED_TASK_NAME, TrainedTask, read_trained_task
from bert_tf.training.distribution import is_chief
from bert_tf.training.log import METRICS_NAME, RUN_CONFIG_NAME, write_config
from bert_tf.weights.locate import WEIGHTS_NAME
from bert_tf.weights.tensor_files import checkpoint_steps
from experiments.command_line import training_setup
from experiments.command_line.exit_status import InputError
from experiments.command_line.result_files import REPORT_NAME
from experiments.command_line.training_options import TRAJECTORY_NAMES
from experiments.finetuning.initial_model import InitialModel
from experiments.finetuning.options import RESULT_NAMES, FineTuningOptions
from experiments.finetuning.results import FineTuningRun, rank_of
from experiments.finetuning.seed_training import (
    ADAPTER_NAME,
    BEST_NAME,
    Job,
    SeedTraining,
    num_steps,
)

_RUN_NAME = "run.json"  # of a finished seed
_PLACES = ("seed-*", "learning_rate-*/seed-*")  # of runs, where there are several


# === All runs ===


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run of a command.

    Attributes:
        options: of the command, with the run's learning rate and batch size.
        seed: of initial head, dropout and order.
        folder: where it trains.
    """

    options: FineTuningOptions
    seed: int
    folder: pathlib.Path


def planned_runs(options: FineTuningOptions) -> list[PlannedRun]:
    """Return the runs of a command: of each combination of options one for each seed."""
    runs = []
    for of_one in options.combinations():
        place = pathlib.Path(options.output_dir)
        if options.is_grid:
            rate, size = of_one.learning_rate, of_one.train_batch_size
            place /= f"learning_rate-{rate!r}-batch_size-{size}"
        for seed in options.seeds:
            # Of a grid always, so that it may get more seeds.
            of_seed = options.is_grid or len(options.seeds) > 1
            runs.append(PlannedRun(of_one, seed, place / f"seed-{seed}" if of_seed else place))
    return runs


def train_all(job: Job, start: InitialModel, options: FineTuningOptions) -> list[FineTuningRun]:
    """Train the runs of a command; the best one's model then lies in the output folder.

    A run that is finished is not trained again, and one that was stopped goes on. Of several hosts
    only the chief returns.

    Args:
        job: what is trained.
        start: the model to begin with.
        options: of the command.

    Raises:
        InputError: the folder holds a run of other settings, or a model of other origin, or another
            process trains in it; or the examples are too few for a batch.
        ValueError: the replicas cannot share a batch evenly.
        SystemExit: this is not the chief, and its part is done.
    """
    output, planned = pathlib.Path(options.output_dir), planned_runs(options)
    several = planned[0].folder != output
    strategy = training_setup.strategy_of(options.training)
    _check_batches(job, planned, strategy)
    if not is_chief(strategy):
        for one in planned:
            if not (one.folder / _RUN_NAME).exists() or options.overwrite:
                SeedTraining(job, start, one.options, one.folder, one.seed).run()
        print("this worker has finished; results are written by the chief, worker 0")
        sys.exit(0)
    _check_not_source(start, output)
    with training_setup.locked(output):
        if several:
            _prepare_folder_of_best(output, overwrite=options.overwrite)
        runs = [_train_one(job, start, one.options, one.folder, one.seed) for one in planned]
        best = best_run(job, runs)
        if several:
            _keep_best(job.task, pathlib.Path(best.folder), output, adapter=bool(options.lora_rank))
    return runs


def train_runs(job: Job, start: InitialModel, options: FineTuningOptions) -> list[FineTuningRun]:
    """Train the runs of a command as `train_all` does, on this host alone; keep each in its folder.

    Args:
        job: what is trained.
        start: the model to begin with.
        options: of the command.

    Raises:
        InputError, ValueError: as for `train_all`.
    """
    planned, strategy = planned_runs(options), training_setup.strategy_of(options.training)
    _check_batches(job, planned, strategy)
    with training_setup.locked(pathlib.Path(options.output_dir)):
        return [_train_one(job, start, one.options, one.folder, one.seed) for one in planned]


def _check_batches(job: Job, planned: Sequence[PlannedRun], strategy: Any) -> None:
    """Refuse batches that replicas cannot share, or for which there are too few examples."""
    for one in planned:
        size = one.options.train_batch_size
        training_setup.check_batch_sizes(one.options.training, strategy, size)
        num_steps(job, one.options)


def _keep_best(task: TrainedTask, best: pathlib.Path, output: pathlib.Path, *, adapter: bool):
    """Put the best run's model into the output folder, with what was chosen for its weights."""
    names = [path.name for path in best.glob(f"{WEIGHTS_NAME}.*")]
    same, _, _ = filecmp.cmpfiles(best, output, names, shallow=False)
    if len(same) < len(names):
        # Of another model: its temperature and thresholds are not this one's.
        (output / TRAINED_TASK_NAME).unlink(missing_ok=True)
    _copy_model(best, output)
    shutil.rmtree(output / ADAPTER_NAME, ignore_errors=True)
    if adapter:
        shutil.copytree(best / ADAPTER_NAME, output / ADAPTER_NAME)
    _decided_task(task, output, best).write(output)


def _decided_task(task: TrainedTask, *folders: pathlib.Path) -> TrainedTask:
    """Return a task with the temperature and thresholds of the first folder that has a task."""
    for folder in folders:
        before = read_trained_task(folder)
        if before is not None and before.kind == task.kind:
            kept = {"temperature": before.temperature, "thresholds": before.thresholds}
            return dataclasses.replace(task, **kept)
    return task


def check_room(options: FineTuningOptions) -> None:
    """Refuse the folder of another model before anything is written into it.

    `train_all` does so again, where no other process can come between.

    Raises:
        InputError: it holds a model that is of no run of this command.
    """
    if options.overwrite:
        return
    planned, output = planned_runs(options), pathlib.Path(options.output_dir)
    if planned[0].folder != output:
        _prepare_folder_of_best(output, overwrite=False)
    for one in planned:
        begun = _is_begun(one.folder)
        if not begun and not (one.folder / _RUN_NAME).exists():
            _check_no_model(one.folder)


def holds_runs(output: pathlib.Path) -> bool:
    """Return whether a run was begun in an output folder, or in folders of runs within it."""
    folders = [output, *(path for place in _PLACES for path in output.glob(place))]
    return any(map(_is_begun, folders))


def _is_begun(folder: pathlib.Path) -> bool:
    config = folder / RUN_CONFIG_NAME  # a model directory of transformers has one of that name
    return config.exists() and "begins_with" in read_json(config)


def _copy_model(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copy a model directory; without its index, which goes last, there is no checkpoint."""
    index = f"{WEIGHTS_NAME}.index"
    (target / index).unlink(missing_ok=True)
    left = (index, TRAINED_TASK_NAME)
    for path in source.iterdir():
        if path.name.startswith(("bert_", "vocab.txt", "labels.txt")) and path.name not in left:
            shutil.copy2(path, target / path.name)
    with replacing(target / index) as temporary:
        shutil.copy2(source / index, temporary)


def best_run(job: Job, runs: Sequence[FineTuningRun]) -> FineTuningRun:
    """Return the run with the highest selection metric.

    Raises:
        InputError: all diverged.
    """
    good = [run for run in runs if run.diverged is None]
    if not good:
        several = len({(run.learning_rate, run.train_batch_size) for run in runs}) > 1
        raise InputError("; ".join(f"{_name(run, several)}: {_failure_text(run)}" for run in runs))
    return max(good, key=lambda run: rank_of(run.figures, job.selection_metric))


def _name(run: FineTuningRun, several: bool) -> str:
    name = f"seed {run.seed}"
    if not several:
        return name
    return f"learning rate {run.learning_rate}, batch size {run.train_batch_size}, {name}"


def _failure_text(run: FineTuningRun) -> str:
    kept = f"; its best weights before that, of step {run.best_step}, lie in {run.folder}"
    return f"{run.diverged}{kept if run.figures else ''}"


def _settings(
    job: Job, start: InitialModel, options: FineTuningOptions, seed: int
) -> dict[str, Any]:
    """Return all that a run's result depends on."""
    values = to_dict(options)
    settings = {name: values[name] for name in (*RESULT_NAMES, *TRAJECTORY_NAMES)}
    settings |= {
        "seed": seed,
        "kind": job.kind,
        "labels": job.labels,
        "class_weights": job.class_weights,
        "label_smoothing": job.label_smoothing or None,  # which runs before it did not name
        "records": job.fingerprint,
        "bert_config": start.config.to_dict(),
        "begins_with": start.weights_digest,
        **job.model_settings,
        **job.loss_settings,
    }
    settings["distillation"] = job.teacher.settings if job.teacher is not None else None
    if job.window_pooling is not None:  # a later setting
        settings["window_pooling"] = job.window_pooling
    return json.loads(json.dumps(settings))  # as they come back out of a file


def _train_one(
    job: Job, start: InitialModel, options: FineTuningOptions, folder: pathlib.Path, seed: int
) -> FineTuningRun:
    settings = _settings(job, start, options, seed)
    finished = folder / _RUN_NAME
    if finished.exists() and not options.overwrite:
        stored = read_json(finished)
        _check_same(folder, stored["settings"], settings)
        print(f"seed {seed}: is finished in {folder}; --overwrite trains it anew")
        _decided_task(job.task, folder).write(folder)
        # The folder may have been moved.
        return FineTuningRun(**{**stored["run"], "folder": str(folder)})
    _prepare_folder(folder, settings, overwrite=options.overwrite)
    run = SeedTraining(job, start, options, folder, seed).run()
    named = {**dataclasses.asdict(run), "folder": original_names(run.folder)}
    job.task.write(folder)
    write_json(finished, {"settings": settings, "run": named})
    return run


# === Folders ===


def _check_no_model(folder: pathlib.Path) -> None:
    """Refuse a folder with a model that is of no run of this command: it would be replaced."""
    for pattern in ("bert_model.ckpt*", "model.ckpt-*", "*.safetensors", "pytorch_model*.bin"):
        for path in folder.glob(pattern):
            raise InputError(
                f"output_dir: {path} is of another model, which would be replaced; use another "
                "folder or --overwrite"
            )


def _check_not_source(start: InitialModel, output: pathlib.Path) -> None:
    """Refuse to begin with a checkpoint of training that making room for the run would remove."""
    path = start.weights_path
    if path is None or not output.is_dir():
        return
    if path.name.startswith("model.ckpt-") and path.parent.samefile(output):
        raise InputError(
            f"output_dir: holds {path}, which the run is to begin with and would replace; use "
            "another folder"
        )


def _prepare_folder_of_best(output: pathlib.Path, *, overwrite: bool) -> None:
    """Make room for the best model of several runs, or refuse to."""
    if overwrite:
        # Those of a run of one seed would pass for those of the new model.
        names = (_RUN_NAME, RUN_CONFIG_NAME, METRICS_NAME, TRAINED_TASK_NAME, REPORT_NAME)
        for name in names:
            (output / name).unlink(missing_ok=True)
        return
    has_run = any(any(output.glob(f"{place}/{_RUN_NAME}")) for place in _PLACES)
    if (output / _RUN_NAME).exists() or not has_run:
        _check_no_model(output)


def _check_same(folder: pathlib.Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in now:
        if before.get(name) == now[name]:
            continue
        if name == "records":
            raise InputError(
                f"output_dir: {folder} holds a run of other records: data, vocabulary or "
                "--max_seq_length have changed, or it was with --do_eval and now is without, or "
                "the reverse; to evaluate its model leave out --do_train, to train use another "
                "folder or --overwrite"
            )
        raise InputError(
            f"output_dir: {folder} holds a run with {name} {_short(before.get(name))}, and now "
            f"it is {_short(now[name])}; use another folder or --overwrite"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _prepare_folder(folder: pathlib.Path, settings: dict[str, Any], *, overwrite: bool) -> None:
    """Make a run's folder ready: keep what a stopped run needs to continue, or clear it."""
    config = folder / RUN_CONFIG_NAME
    stored = read_json(config) if config.exists() else {}
    # With the same settings a stopped run ends as one that begins anew does.
    continues = not overwrite or (stored == settings and not (folder / _RUN_NAME).exists())
    if checkpoint_steps(folder) and config.exists() and continues:
        _check_same(folder, stored, settings)
    else:
        if not overwrite and stored != settings:
            _check_no_model(folder)
        for path in folder.glob("model.ckpt-*"):
            path.unlink()
        for name in (BEST_NAME, ADAPTER_NAME):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in (METRICS_NAME, _RUN_NAME, TRAINED_TASK_NAME, REPORT_NAME):
            (folder / name).unlink(missing_ok=True)
    write_config(folder, settings)
