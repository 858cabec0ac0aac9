"""Fine-tuning: a run for each seed, the best of which is kept.

An output folder is a model directory (bert_config.json, vocab.txt, labels.txt, bert_model.ckpt.*)
and holds metrics.jsonl, config.json, curves.png, eval_results.txt and .json. With several
seeds each has a folder of its own within it, and the best run's model lies in the output folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from bert_tf.files import write_json
from bert_tf.options import read
from bert_tf.tasks.trained_task import TRAINED_TASK_NAME, TrainedTask
from experiments.command_line import preemption, training_setup
from experiments.command_line.exit_status import InputError
from experiments.command_line.training_options import TRAJECTORY_NAMES, TrainingOptions
from experiments.finetuning.initial_model import StartingPoint
from experiments.finetuning.results import Run

_RUN_NAME = "run.json"  # of a finished seed
_BEST_NAME = "best"
_ADAPTER_NAME = "adapter"
# Flags that a run's result depends on, beside its records and its model.
_OF_THE_RUN = [
    *(
        "train_batch_size learning_rate num_train_epochs num_train_steps warmup_proportion "
        "eval_every_steps early_stop_evals keep_best bias_correction clip_norm weight_decay_rate "
        "group_by_length pad_to_max_seq_length bilstm lora_rank lora_alpha lora_targets"
    ).split(),
    *TRAJECTORY_NAMES,
]


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained.

    Attributes:
        task: what the model is for.
        labels: names of the labels; None where there are none.
        records: training records, `finetuning_pipeline.TaskRecords`.
        num_examples: examples among them; the number of steps follows from it.
        fingerprint: digest of the records.
        evaluate: model -> dev figures by name, with the selection metric; None not to evaluate.
        selection_metric: the figure by which weights and runs are chosen; higher is better.
        baseline: what a constant answer has in it; a run that is not above it counts as failed.
    """

    task: TrainedTask
    labels: tuple[str, ...] | None
    records: Any
    num_examples: int
    fingerprint: str
    evaluate: Callable[[Any], dict[str, float]] | None
    selection_metric: str
    baseline: float | None = None

    @property
    def kind(self) -> str:
        """Kind of task, key of `tasks.KINDS`."""
        return self.task.kind

    @property
    def num_labels(self) -> int | None:
        """Number of labels for `finetuning.make_model`."""
        return len(self.labels) if self.labels is not None else None


def num_steps(job: Job, values: flags.FlagValues) -> int:
    """Return the number of training steps, as the original counts them.

    Raises:
        InputError: there would be none.
    """
    steps = values.num_train_steps
    if steps is None:
        steps = int(job.num_examples / values.train_batch_size * values.num_train_epochs)
    if steps < 1:
        raise InputError(
            f"{job.num_examples} examples in batches of {values.train_batch_size} make no step; "
            "lower --train_batch_size or raise --num_train_epochs"
        )
    return steps


def train_all(job: Job, start: StartingPoint, values: flags.FlagValues) -> list[Run]:
    """Train a run for each seed; the best one's model then lies in the output folder.

    A run that is finished is not trained again, and one that was stopped goes on. Of several hosts
    only the chief returns.

    Raises:
        InputError: the folder holds a run of other settings, or a model of other origin.
        ValueError: the replicas cannot share a batch evenly.
        SystemExit: this is not the chief, and its part is done.
    """
    from bert_tf.training.distribution import is_chief

    training = read(TrainingOptions, values)
    strategy = training_setup.strategy_of(training)
    training_setup.check_batch_sizes(training, strategy, values.train_batch_size)
    if not is_chief(strategy):
        for seed in map(int, values.seeds):
            folder = pathlib.Path(values.output_dir)
            folder = folder if len(values.seeds) == 1 else folder / f"seed-{seed}"
            if not (folder / _RUN_NAME).exists() or values.overwrite:
                _Training(job, start, values, folder, seed).run()
        print("this worker has finished; results are written by the chief, worker 0")
        sys.exit(0)
    output, seeds = pathlib.Path(values.output_dir), [int(seed) for seed in values.seeds]
    _check_source(start, output)
    if len(seeds) > 1:
        _make_way(output, overwrite=values.overwrite)
    runs = []
    for seed in seeds:
        folder = output if len(seeds) == 1 else output / f"seed-{seed}"
        runs.append(_train_one(job, start, values, folder, seed))
    best = best_run(job, runs)
    if len(seeds) > 1:
        _copy_model(pathlib.Path(best.folder), output)
        shutil.rmtree(output / _ADAPTER_NAME, ignore_errors=True)
        if values.lora_rank:
            shutil.copytree(pathlib.Path(best.folder) / _ADAPTER_NAME, output / _ADAPTER_NAME)
    job.task.write(output)
    return runs


def _copy_model(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copy a model directory; without its index, which goes last, there is no checkpoint."""
    from bert_tf.weights.locate import WEIGHTS_NAME

    index = f"{WEIGHTS_NAME}.index"
    (target / index).unlink(missing_ok=True)
    for path in source.iterdir():
        if path.name.startswith(("bert_", "vocab.txt", "labels.txt")) and path.name != index:
            shutil.copy2(path, target / path.name)
    shutil.copy2(source / index, target / f"{index}.tmp")
    os.replace(target / f"{index}.tmp", target / index)


def best_run(job: Job, runs: Sequence[Run]) -> Run:
    """Return the run with the highest selection metric.

    Raises:
        InputError: all diverged.
    """
    good = [run for run in runs if run.diverged is None]
    if not good:
        raise InputError("; ".join(f"seed {run.seed}: {_how_it_ended(run)}" for run in runs))
    return max(good, key=lambda run: run.figures.get(job.selection_metric, -math.inf))


def _how_it_ended(run: Run) -> str:
    kept = f"; its best weights before that, of step {run.best_step}, lie in {run.folder}"
    return f"{run.diverged}{kept if run.figures else ''}"


def _settings(
    job: Job, start: StartingPoint, values: flags.FlagValues, seed: int
) -> dict[str, Any]:
    """Return all that a run's result depends on."""
    settings = {name: values[name].value for name in _OF_THE_RUN}
    settings |= {
        "seed": seed,
        "kind": job.kind,
        "labels": list(job.labels) if job.labels is not None else None,
        "records": job.fingerprint,
        "bert_config": start.config.to_dict(),
        "begins_with": start.weights_digest,
    }
    return json.loads(json.dumps(settings))


def _train_one(
    job: Job, start: StartingPoint, values: flags.FlagValues, folder: pathlib.Path, seed: int
) -> Run:
    settings = _settings(job, start, values, seed)
    finished = folder / _RUN_NAME
    if finished.exists() and not values.overwrite:
        stored = json.loads(finished.read_text(encoding="utf-8"))
        _check_same(folder, stored["settings"], settings)
        print(f"seed {seed}: is finished in {folder}; --overwrite trains it anew")
        return Run(**{**stored["run"], "folder": str(folder)})  # it may have been moved
    _begin(folder, settings, overwrite=values.overwrite)
    run = _Training(job, start, values, folder, seed).run()
    write_json(finished, {"settings": settings, "run": dataclasses.asdict(run)})
    return run


def _check_no_model(folder: pathlib.Path) -> None:
    """Refuse a folder with a model that is not a run's of this script: it would be replaced."""
    for pattern in ("bert_model.ckpt*", "model.ckpt-*", "*.safetensors", "pytorch_model*.bin"):
        for path in folder.glob(pattern):
            raise InputError(
                f"output_dir: {path} is of another model, which would be replaced; use another "
                "folder or --overwrite"
            )


def _check_source(start: StartingPoint, output: pathlib.Path) -> None:
    """Refuse to begin with a checkpoint of training that making room for the run would remove."""
    if start.checkpoint is None or not output.is_dir():
        return
    path = pathlib.Path(start.checkpoint.located.path)
    if path.name.startswith("model.ckpt-") and path.parent.samefile(output):
        raise InputError(
            f"output_dir: holds {path}, which the run is to begin with and would replace; use "
            "another folder"
        )


def _make_way(output: pathlib.Path, *, overwrite: bool) -> None:
    """Look at what lies where the best model of several seeds shall lie."""
    from bert_tf.training.log import CONFIG_NAME, METRICS_NAME

    if overwrite:  # of a run of one seed, which would pass for that of the new model
        for name in (_RUN_NAME, CONFIG_NAME, METRICS_NAME, TRAINED_TASK_NAME):
            (output / name).unlink(missing_ok=True)
    elif (output / _RUN_NAME).exists() or not any(output.glob(f"seed-*/{_RUN_NAME}")):
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


def _begin(folder: pathlib.Path, settings: dict[str, Any], *, overwrite: bool) -> None:
    """Make a run's folder, or look at what a stopped one has left there."""
    from bert_tf.training.log import CONFIG_NAME, METRICS_NAME, write_config
    from bert_tf.weights.tensor_files import checkpoint_steps

    config = folder / CONFIG_NAME
    stored = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
    # With the same settings a stopped run ends as one that begins anew does.
    goes_on = not overwrite or (stored == settings and not (folder / _RUN_NAME).exists())
    if checkpoint_steps(folder) and config.exists() and goes_on:
        _check_same(folder, stored, settings)
    else:
        if not overwrite and stored != settings:
            _check_no_model(folder)
        for path in folder.glob("model.ckpt-*"):
            path.unlink()
        for name in (_BEST_NAME, _ADAPTER_NAME):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in (METRICS_NAME, _RUN_NAME, TRAINED_TASK_NAME):
            (folder / name).unlink(missing_ok=True)
    write_config(folder, settings)


class _Training:
    """One run: the model, its training, and the weights that were best."""

    def __init__(
        self,
        job: Job,
        start: StartingPoint,
        values: flags.FlagValues,
        folder: pathlib.Path,
        seed: int,
    ):
        self.job, self.start, self.values, self.folder, self.seed = job, start, values, folder, seed
        self.steps = num_steps(job, values)
        steps_per_epoch = job.num_examples / values.train_batch_size
        self.eval_every = values.eval_every_steps or max(1, round(steps_per_epoch))
        self.best: dict[str, Any] = {}
        self.scores: list[float] = []  # of all evaluations, those before a resume included

    def run(self) -> Run:
        import keras
        import tensorflow as tf

        from bert_tf.models.lora import merge_lora
        from bert_tf.training.errors import NonFiniteLossError
        from bert_tf.training.finetuning import make_model
        from bert_tf.training.objectives import FineTuningObjective
        from bert_tf.training.options import TrainerOptions
        from bert_tf.training.trainer import Trainer, set_precision
        from bert_tf.weights import adapters, save
        from bert_tf.weights.adapters import load_adapters
        from bert_tf.weights.load import load_checkpoint
        from bert_tf.weights.tensor_files import checkpoint_steps

        values, job, folder = self.values, self.job, self.folder
        began, cpu_began = time.time(), time.process_time()
        if values.deterministic:
            tf.config.experimental.enable_op_determinism()
        keras.utils.set_random_seed(self.seed)
        set_precision(values.precision)
        training = read(TrainingOptions, values)
        strategy = training_setup.strategy_of(training)
        drawn = ()  # weights of the encoder that the checkpoint lacks
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            self.model = make_model(
                job.kind,
                dataclasses.replace(self.start.config, bilstm=values.bilstm),
                job.num_labels,
                recompute=values.recompute_layers,
            )
            if self.start.checkpoint is not None:
                transfer = load_checkpoint(self.model, self.start.checkpoint, heads=False)
                drawn = transfer.missing
            if values.lora_rank:
                self._add_lora(drawn)
            layers = self.start.config.num_hidden_layers
            frozen = training_setup.freeze_weights(training, self.model, layers)
            if frozen:
                print(f"frozen: {len(frozen)} weights")
            optimizer = self._optimizer()
        self.trainer = Trainer(
            self.model,
            optimizer,
            FineTuningObjective(job.kind),
            folder,
            TrainerOptions(
                jit_compile=values.jit_compile,
                steps_per_call=values.iterations_per_loop,
                log_steps=values.log_steps,
                save_checkpoints_steps=values.save_checkpoints_steps or None,
                keep_checkpoints=1,
                tensorboard=values.tensorboard,
                **training_setup.trainer_arguments(training),
            ),
            strategy=strategy,
        )
        if self.trainer.restore() is not None:
            self._remember()
        diverged = None
        try:
            with preemption.listening():
                self._train()
        except NonFiniteLossError as error:
            diverged = str(error)
        best_step = self.best.get("step", self.trainer.step)
        if self.trainer.is_chief:
            with self.trainer.averaged_weights():
                if self.best and values.keep_best:
                    if values.lora_rank:
                        load_adapters(folder / _BEST_NAME, self.model)
                    else:
                        load_checkpoint(self.model, folder / _BEST_NAME)
                trained = self.model
                if values.lora_rank:
                    adapters.save_adapters(folder / _ADAPTER_NAME, trained)
                    trained = merge_lora(trained)
                save.save_model_directory(
                    folder,
                    trained,
                    labels=job.labels,
                    tokenizer=self.start.tokenizer,
                    step=best_step,
                )
            for step in checkpoint_steps(folder):
                for path in folder.glob(f"model.ckpt-{step}.*"):
                    path.unlink()
            (folder / "checkpoint").unlink(missing_ok=True)  # which names the newest of these
            shutil.rmtree(folder / _BEST_NAME, ignore_errors=True)
        return Run(
            seed=self.seed,
            folder=str(folder),
            steps=self.trainer.step,
            figures=self.best.get("figures", {}),
            best_step=best_step,
            seconds=time.time() - began,
            cpu_seconds=time.process_time() - cpu_began,
            diverged=diverged,
        )

    def _remember(self) -> None:
        """Take up the evaluations of a run that was stopped."""
        from bert_tf.training.log import METRICS_NAME, read_metrics_or_nothing

        lines = read_metrics_or_nothing(self.folder / METRICS_NAME, "eval")
        self.scores = [line[f"eval_{self.job.selection_metric}"] for line in lines]
        stored = self.folder / _BEST_NAME / "best.json"
        if self.values.keep_best and stored.exists():
            best = json.loads(stored.read_text(encoding="utf-8"))
            self.best = best if best["step"] <= self.trainer.step else {}
        elif not self.values.keep_best and lines:
            names = [name for name in lines[-1] if name.startswith("eval_")]
            figures = {name.removeprefix("eval_"): lines[-1][name] for name in names}
            self.best = {"step": lines[-1]["step"], "figures": figures}

    def _add_lora(self, drawn: Sequence[str]) -> None:
        from bert_tf.models.lora import add_lora
        from bert_tf.models.variables import HEADS_PATTERN

        values = self.values
        also_train = [HEADS_PATTERN, *(f"^{re.escape(path)}$" for path in drawn)]
        add_lora(
            self.model,
            values.lora_rank,
            values.lora_alpha,
            values.lora_targets,
            also_train=also_train,
        )
        learning = sum(math.prod(weight.shape) for weight in self.model.trainable_weights)
        every = sum(math.prod(weight.shape) for weight in self.model.weights)
        print(f"trainable parameters: {learning:,} of {every:,} ({learning / every:.2%})")

    def _train(self) -> None:
        """Take the steps that are left, and evaluate what was not evaluated yet."""
        values, job = self.values, self.job
        self.trainer.train(
            lambda step: job.records.training_dataset(
                batch_size=values.train_batch_size,
                seed=self.seed,
                start_step=step,
                group_by_length=values.group_by_length,
                pad_to_max=values.pad_to_max_seq_length,
                with_mask=job.kind == "span" and not values.pad_to_max_seq_length,
            ),
            # One that had stopped early, and not yet written its model, shall not go on.
            self.trainer.step if self._should_stop() else self.steps,
            sequences_per_batch=values.train_batch_size,
            eval_every_steps=self.eval_every if job.evaluate else None,
            evaluate=self._evaluate if job.evaluate else None,
            should_stop=self._should_stop,
            interrupted=preemption.is_asked,
        )
        if job.evaluate and not self._was_evaluated():
            with self.trainer.averaged_weights():
                figures = self._evaluate()
            line = {f"eval_{name}": value for name, value in figures.items()}
            self.trainer.log_line("eval", line)

    def _optimizer(self) -> Any:
        values = self.values
        # LAMB has the correction anyway.
        arguments = {"bias_correction": True} if values.bias_correction else {}
        return training_setup.make_optimizer(
            read(TrainingOptions, values),
            self.start.config.num_hidden_layers,
            values.learning_rate,
            self.steps,
            int(self.steps * values.warmup_proportion),
            weight_decay_rate=values.weight_decay_rate,
            clip_norm=values.clip_norm or None,
            **arguments,
        )

    def _was_evaluated(self) -> bool:
        from bert_tf.training.log import METRICS_NAME, read_metrics_or_nothing

        lines = read_metrics_or_nothing(self.folder / METRICS_NAME, "eval")
        return any(line["step"] == self.trainer.step for line in lines)

    def _evaluate(self) -> dict[str, float]:
        from bert_tf.weights.adapters import save_adapters
        from bert_tf.weights.save import save_model_directory

        assert self.job.evaluate is not None  # noqa: S101
        figures = self.job.evaluate(self.model)
        score = figures[self.job.selection_metric]
        shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        if self.trainer.is_chief:
            print(f"step {self.trainer.step}: {shown}")
            sys.stdout.flush()
        self.scores.append(score)
        better = not self.best or score > self.best["figures"][self.job.selection_metric]
        if better or not self.values.keep_best:
            self.best = {"step": self.trainer.step, "figures": figures}
            if self.values.keep_best and self.trainer.is_chief:
                if self.values.lora_rank:
                    save_adapters(self.folder / _BEST_NAME, self.model)
                else:
                    step = self.trainer.step
                    save_model_directory(self.folder / _BEST_NAME, self.model, step=step)
                write_json(self.folder / _BEST_NAME / "best.json", self.best)
        return figures

    def _should_stop(self) -> bool:
        patience = self.values.early_stop_evals
        if not patience or not self.scores:
            return False
        return len(self.scores) - 1 - self.scores.index(max(self.scores)) >= patience
