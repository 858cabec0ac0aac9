"""The run of one seed: its model, the training of it, and the weights that were best."""

import contextlib
import dataclasses
import math
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from bert_tf.files import read_json, write_json
from bert_tf.input_pipeline.finetuning import TaskRecords
from bert_tf.models.lora import add_lora, merge_lora
from bert_tf.models.variables import HEADS_PATTERN
from bert_tf.tasks.trained_task import TrainedTask
from bert_tf.training.errors import NonFiniteLossError
from bert_tf.training.finetuning import make_model
from bert_tf.training.log import METRICS_NAME, read_metrics_or_nothing
from bert_tf.training.objectives import FineTuningObjective, Objective
from bert_tf.training.options import TrainerOptions
from bert_tf.training.trainer import Trainer, set_precision
from bert_tf.weights.adapters import load_adapters, save_adapters
from bert_tf.weights.load import load_checkpoint
from bert_tf.weights.save import save_model_directory
from bert_tf.weights.tensor_files import checkpoint_steps
from experiments.command_line import preemption, remote_folders, training_setup
from experiments.command_line.exit_status import InputError
from experiments.finetuning.initial_model import InitialModel
from experiments.finetuning.options import FineTuningOptions
from experiments.finetuning.results import FineTuningRun, rank_of
from experiments.finetuning.teacher import Teacher

BEST_NAME = "best"
ADAPTER_NAME = "adapter"


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained.

    Attributes:
        task: what the model is for.
        labels: names of the labels; None where there are none.
        records: training records.
        num_examples: examples among them; the number of steps follows from it.
        fingerprint: digest of the records.
        evaluate: model -> dev figures by name, with the selection metric; None not to evaluate.
        selection_metric: the figure by which weights and runs are chosen; higher is better.
        baseline: what a constant answer has in it; a run that is not above it counts as failed.
        class_weights: what an example, or token, weighs in the loss, by its label; None for 1.
        label_smoothing: of the training loss; see `FineTuningObjective`.
        window_pooling: how the windows of a text become one vector; None where it is one sequence.
        model_settings: what else the model is made with.
        loss_settings: of `FineTuningObjective`.
        teacher: what the model learns from beside the labels; None for nothing.
    """

    task: TrainedTask
    labels: tuple[str, ...] | None
    records: TaskRecords
    num_examples: int
    fingerprint: str
    evaluate: Callable[[keras.Model], dict[str, float]] | None
    selection_metric: str
    baseline: float | None = None
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    window_pooling: str | None = None
    model_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    loss_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    teacher: Teacher | None = None

    @property
    def kind(self) -> str:
        """Kind of task, key of `tasks.KINDS`."""
        return self.task.kind

    @property
    def num_labels(self) -> int | None:
        """Number of labels for `make_model`."""
        return len(self.labels) if self.labels is not None else None


def num_steps(job: Job, options: FineTuningOptions) -> int:
    """Return the number of training steps, as the original counts them.

    Raises:
        InputError: there would be none, or less than are to be profiled.
    """
    steps = options.num_train_steps
    if steps is None:
        steps = int(job.num_examples / options.train_batch_size * options.num_train_epochs)
    if steps < 1:
        raise InputError(
            f"{job.num_examples} examples in batches of {options.train_batch_size} make no step; "
            "lower --train_batch_size or raise --num_train_epochs"
        )
    options.training.check_profile_of(steps)
    return steps


@dataclasses.dataclass(frozen=True)
class _Best:
    """The evaluation whose weights are kept; stored with them as best.json."""

    step: int
    figures: dict[str, float]


class SeedTraining:
    """The run of one seed: its model, the training of it, and the weights that were best.

    Args:
        job: what is trained.
        start: the model to begin with.
        options: of the command.
        folder: of the run.
        seed: of initial head, dropout and order.
    """

    def __init__(
        self,
        job: Job,
        start: InitialModel,
        options: FineTuningOptions,
        folder: pathlib.Path,
        seed: int,
    ):
        self.job, self.start, self.options = job, start, options
        self.folder, self.seed = folder, seed
        self.steps = num_steps(job, options)
        steps_per_epoch = job.num_examples / options.train_batch_size
        self.eval_every = options.eval_every_steps or max(1, round(steps_per_epoch))
        self.best: _Best | None = None
        self.scores: list[float] = []  # of all evaluations, those before a resume included

    def run(self) -> FineTuningRun:
        """Train, or continue, and leave the model in the folder."""
        began, cpu_began = time.time(), time.process_time()
        if self.options.training.deterministic:
            tf.config.experimental.enable_op_determinism()
        keras.utils.set_random_seed(self.seed)
        set_precision(self.options.training.precision)
        self._make_trainer()
        if self.trainer.restore() is not None:
            self._restore_evaluations()
        diverged = None
        try:
            with preemption.listening():
                self._train()
        except NonFiniteLossError as error:
            diverged = str(error)
        best_step = self.best.step if self.best else self.trainer.step
        if self.trainer.is_chief:
            self._save_model(best_step)
            self._remove_state()
        return FineTuningRun(
            seed=self.seed,
            folder=str(self.folder),
            steps=self.trainer.step,
            figures=self.best.figures if self.best else {},
            best_step=best_step,
            seconds=time.time() - began,
            cpu_seconds=time.process_time() - cpu_began,
            diverged=diverged,
            learning_rate=self.options.learning_rate,
            train_batch_size=self.options.train_batch_size,
        )

    # --- before training

    def _make_trainer(self) -> None:
        options, training = self.options, self.options.training
        strategy = training_setup.strategy_of(training)
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            self._make_model()
            optimizer = self._make_optimizer()
        self.trainer = Trainer(
            self.model,
            optimizer,
            self.objective,
            self.folder,
            TrainerOptions(
                steps_per_call=options.iterations_per_loop,
                log_steps=options.log_steps,
                save_checkpoints_steps=options.save_checkpoints_steps or None,
                keep_checkpoints=1,
                after_save=remote_folders.send_all,
                tensorboard=options.tensorboard,
                **training_setup.trainer_arguments(training),
            ),
            strategy=strategy,
        )

    def _make_model(self) -> None:
        """Make the model with its initial weights; add adapters and freeze as the options say."""
        options, start, teacher = self.options, self.start, self.job.teacher
        config = dataclasses.replace(
            start.config, bilstm=options.bilstm, window_pooling=self.job.window_pooling
        )
        self.model = make_model(
            self.job.kind,
            config,
            self.job.num_labels,
            recompute=options.training.recompute_layers,
            **self.job.model_settings,
        )
        random_weights: Sequence[str] = ()  # of the encoder, which the checkpoint lacks
        if start.checkpoint is not None and not (teacher and teacher.gives_layers):
            random_weights = load_checkpoint(self.model, start.checkpoint, heads=False).missing
        self.objective: Objective = FineTuningObjective(
            self.job.kind, self.job.label_smoothing, self.job.loss_settings
        )
        if teacher is not None:  # made last, so that the student begins as it would without one
            self.objective = teacher.teach(self.model, self.objective)
        if options.lora_rank:
            self._add_adapters(random_weights)
        num_layers = start.config.num_hidden_layers
        frozen = training_setup.freeze_weights(options.training, self.model, num_layers)
        if frozen:
            print(f"frozen: {len(frozen)} weights")

    def _add_adapters(self, random_weights: Sequence[str]) -> None:
        """Add low-rank adapters; what begins at random is trained as well."""
        options = self.options
        add_lora(
            self.model,
            options.lora_rank,
            options.lora_alpha,
            options.lora_targets,
            also_train=[HEADS_PATTERN, *(f"^{re.escape(path)}$" for path in random_weights)],
        )
        learning = sum(math.prod(weight.shape) for weight in self.model.trainable_weights)
        every = sum(math.prod(weight.shape) for weight in self.model.weights)
        print(f"trainable parameters: {learning:,} of {every:,} ({learning / every:.2%})")

    def _make_optimizer(self) -> keras.optimizers.Optimizer:
        options = self.options
        # LAMB has the correction anyway.
        arguments = {"bias_correction": True} if options.bias_correction else {}
        return training_setup.make_optimizer(
            options.training,
            self.start.config.num_hidden_layers,
            options.learning_rate,
            self.steps,
            int(self.steps * options.warmup_proportion),
            weight_decay_rate=options.weight_decay_rate,
            clip_norm=options.clip_norm or None,
            **arguments,
        )

    def _evaluations(self) -> list[dict[str, float]]:
        return read_metrics_or_nothing(self.folder / METRICS_NAME, "eval")

    def _restore_evaluations(self) -> None:
        """Take up the evaluations of a run that was stopped."""
        lines = self._evaluations()
        self.scores = [rank_of(line, f"eval_{self.job.selection_metric}") for line in lines]
        stored = self.folder / BEST_NAME / "best.json"
        if self.options.keep_best and stored.exists():
            best = _Best(**read_json(stored))
            # Weights of a later step are of what is trained again now.
            self.best = best if best.step <= self.trainer.step else None
        elif not self.options.keep_best and lines:
            last = lines[-1]
            names = [name for name in last if name.startswith("eval_")]
            figures = {name.removeprefix("eval_"): last[name] for name in names}
            self.best = _Best(int(last["step"]), figures)

    # --- training

    def _train(self) -> None:
        """Take the steps that are left, and evaluate what was not evaluated yet."""
        options, job = self.options, self.job
        self.trainer.train(
            self._batches,
            # A run that stopped early but has not written its model does not continue.
            self.trainer.step if self._should_stop() else self.steps,
            sequences_per_batch=options.train_batch_size,
            eval_every_steps=self.eval_every if job.evaluate else None,
            evaluate=self._evaluate if job.evaluate else None,
            should_stop=self._should_stop,
            interrupted=preemption.is_asked,
        )
        if job.evaluate and all(line["step"] != self.trainer.step for line in self._evaluations()):
            with self.trainer.averaged_weights():
                figures = self._evaluate()
            line = {f"eval_{name}": value for name, value in figures.items()}
            self.trainer.log_line("eval", line)

    def _batches(self, step: int) -> tf.data.Dataset:
        """Return the training batches from a step on."""
        job, options = self.job, self.options
        dataset = job.records.training_dataset(
            batch_size=options.train_batch_size,
            seed=self.seed,
            start_step=step,
            group_by_length=options.group_by_length,
            pad_to_max=options.pad_to_max_seq_length,
            with_mask=job.kind == "span" and not options.pad_to_max_seq_length,
            with_weights=True,
        )
        if job.class_weights is None:
            return dataset
        table = tf.constant(job.class_weights)
        return dataset.map(
            lambda inputs, labels, weights: (inputs, labels, weights * tf.gather(table, labels))
        )

    def _evaluate(self) -> dict[str, float]:
        """Evaluate the model as it is, and keep its weights if they are the best so far."""
        assert self.job.evaluate is not None  # noqa: S101
        figures, step = self.job.evaluate(self.model), self.trainer.step
        metric = self.job.selection_metric
        score = rank_of(figures, metric)
        if self.trainer.is_chief:
            shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
            print(f"step {step}: {shown}")
            sys.stdout.flush()
        self.scores.append(score)
        keep_best = self.options.keep_best
        if not keep_best or not self.best or score > rank_of(self.best.figures, metric):
            self.best = _Best(step, figures)
            if keep_best and self.trainer.is_chief:
                folder = self.folder / BEST_NAME
                if self.options.lora_rank:
                    save_adapters(folder, self.model)
                else:
                    save_model_directory(folder, self.model, step=step)
                write_json(folder / "best.json", dataclasses.asdict(self.best))
        return figures

    def _should_stop(self) -> bool:
        patience = self.options.early_stop_evals
        if not patience or not self.scores:
            return False
        return len(self.scores) - 1 - self.scores.index(max(self.scores)) >= patience

    # --- after training

    def _save_model(self, step: int) -> None:
        """Write the model directory, with the weights that were best if they are to be kept."""
        with self.trainer.averaged_weights():
            model, best_weights = self.model, self.folder / BEST_NAME
            if self.best and self.options.keep_best:
                if self.options.lora_rank:
                    load_adapters(best_weights, model)
                else:
                    load_checkpoint(model, best_weights)
            if self.options.lora_rank:
                save_adapters(self.folder / ADAPTER_NAME, model)
                model = merge_lora(model)
            save_model_directory(
                self.folder,
                model,
                labels=self.job.labels,
                tokenizer=self.start.tokenizer,
                step=step,
            )

    def _remove_state(self) -> None:
        """Remove what only an unfinished run needs."""
        for step in checkpoint_steps(self.folder):
            for path in self.folder.glob(f"model.ckpt-{step}.*"):
                path.unlink()
        (self.folder / "checkpoint").unlink(missing_ok=True)  # which names the newest of these
        shutil.rmtree(self.folder / BEST_NAME, ignore_errors=True)
