"""A pre-training run: data, model, training, evaluation."""

import contextlib
import dataclasses
import functools
import math
import pathlib
import resource
import sys
import time
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from bert_tf.files import original_names
from bert_tf.input_pipeline.baselines import label_counts, unigram_accuracy, unigram_cross_entropy
from bert_tf.input_pipeline.pretraining import pretraining_dataset
from bert_tf.models.task_models import bert_pretrainer
from bert_tf.options import to_dict
from bert_tf.tokenization.vocabulary import VOCAB_NAME
from bert_tf.training import log
from bert_tf.training.distribution import num_replicas_of
from bert_tf.training.masked_lm_distillation import PretrainingDistillation, matched_student
from bert_tf.training.objectives import Objective, PretrainingObjective
from bert_tf.training.optimizers import WarmupLinearDecay
from bert_tf.training.options import TrainerOptions
from bert_tf.training.trainer import Trainer, set_precision
from bert_tf.weights.load import load_checkpoint
from bert_tf.weights.locate import WEIGHTS_NAME
from bert_tf.weights.save import save_config_and_vocabulary, save_model_directory
from bert_tf.weights.tokenizers import write_vocabulary
from experiments.command_line import preemption, remote_folders, training_setup
from experiments.command_line.exit_status import InputError
from experiments.command_line.result_files import write_results
from experiments.command_line.tables import print_table
from experiments.plots.curves import plot_curves
from experiments.pretraining.batch_size import find_batch_size
from experiments.pretraining.continuation import begun_with, check_continuation, with_bins_of
from experiments.pretraining.options import PretrainingOptions
from experiments.pretraining.plan import (
    SEQUENCES_PER_ROW,
    Phase,
    Plan,
    check_batch_tokens,
    make_plan,
)

_EVAL_SEED = 12345  # of dynamic masks: the same at every evaluation, whatever --seed
_UNIGRAM_RECORDS = 102_400  # training records looked at for the unigram baseline
_PLATEAU = 0.3  # nats below a unigram model within which hardly anything is known of context
_EVAL_NAMES = {  # ours -> the original's
    "loss": "loss",
    "mlm_loss": "masked_lm_loss",
    "mlm_accuracy": "masked_lm_accuracy",
    "mlm_loss_at_mask": "masked_lm_loss_at_mask",
    "mlm_accuracy_at_mask": "masked_lm_accuracy_at_mask",
    "nsp_loss": "next_sentence_loss",
    "nsp_accuracy": "next_sentence_accuracy",
}

# === Data ===


def pads_to_max(options: PretrainingOptions) -> bool:
    """Tell whether batches have one shape, for a TPU, or where a step's memory is measured."""
    return options.measure_only or options.training.distribution_strategy == "tpu"


def training_dataset(
    options: PretrainingOptions, plan: Plan, phase: Phase, step: int
) -> tf.data.Dataset:
    """Batches of a phase from a step on, which is counted from the beginning of training."""
    return pretraining_dataset(
        [plan.sound_files[path] for path in phase.files],
        batch_size=phase.batch_size or None,
        max_seq_length=phase.max_seq_length,
        max_predictions_per_seq=phase.max_predictions_per_seq,
        is_training=True,
        seed=options.seed,
        start_step=step - phase.begin,
        masking=phase.masking,
        record_counts=phase.counts,
        vocab_size=plan.config.vocab_size,
        next_sentence=plan.config.next_sentence_prediction,
        length_bins=phase.length_bins,
        pad_to_max=pads_to_max(options),
        sequences_per_row=SEQUENCES_PER_ROW if options.pack_sequences else None,
        row_counts=phase.row_counts,
        batch_tokens=phase.batch_tokens,
        batch_multiple=phase.batch_multiple,
        length_counts=phase.length_counts,
    )


def measured_dataset(
    options: PretrainingOptions, plan: Plan, phase: Phase, step: int
) -> tf.data.Dataset:
    """Batches whose memory is that of the largest of a phase, from a step on."""
    batches = phase.token_batches
    if batches is None:
        return training_dataset(options, plan, phase, step)
    # Which of the shapes takes most depends on the model, so it is each in turn.
    as_they_come = _as_they_come(phase, max(batches.rows))
    (whole,) = training_dataset(options, plan, as_they_come, phase.begin).take(1)
    of_each = map(tf.data.Dataset.from_tensors, batches.batches_of_each_shape(whole))
    return functools.reduce(lambda one, other: one.concatenate(other), of_each).repeat()


def _as_they_come(phase: Phase, batch_size: int) -> Phase:
    """Return a phase whose batches hold so many of its records, whatever their length."""
    return dataclasses.replace(phase, batch_size=batch_size, batch_tokens=None, length_bins=0)


def evaluation_dataset(options: PretrainingOptions, plan: Plan) -> tf.data.Dataset:
    """Batches to evaluate on, the same ones in the same order each time."""
    return pretraining_dataset(
        [plan.sound_files[path] for path in plan.eval_files],
        batch_size=options.eval_batch_size,
        max_seq_length=options.max_seq_length,
        max_predictions_per_seq=options.max_predictions_per_seq,
        is_training=False,
        seed=_EVAL_SEED,
        masking=plan.eval_masking,
        max_steps=options.max_eval_steps or None,
        fill_last_batch=True,
        vocab_size=plan.config.vocab_size,
        next_sentence=plan.config.next_sentence_prediction,
        mask_id=plan.mask_id,
        sequences_per_row=1 if options.pack_sequences else None,
    )


def baselines(options: PretrainingOptions, plan: Plan) -> dict[str, float]:
    """Return what a masked language model's loss should be compared with, in nats per piece."""
    phase = plan.phases[0]
    records = min(sum(phase.counts), _UNIGRAM_RECORDS)
    batch = min(512, records)
    # A sample of records as they come: of some batches of like length it would be of some lengths.
    as_they_come = dataclasses.replace(options, pack_sequences=False)
    dataset = training_dataset(as_they_come, plan, _as_they_come(phase, batch), 0)
    counts = label_counts(dataset, plan.config.vocab_size, records // batch)
    held_out = label_counts(evaluation_dataset(options, plan), plan.config.vocab_size)
    return {
        "uniform_loss": math.log(plan.config.vocab_size),
        "unigram_loss": unigram_cross_entropy(counts, held_out),
        "unigram_accuracy": unigram_accuracy(counts, held_out),
    }


# === The run ===


class PretrainingRun:
    """A run: its model, its training, and what it writes and prints."""

    def __init__(
        self, options: PretrainingOptions, plan: Plan, strategy: tf.distribute.Strategy | None
    ):
        """Build the model and what trains it.

        Raises:
            InputError: the output folder holds another run.
        """
        training = options.training
        self.folder = pathlib.Path(options.output_dir)
        begun = begun_with(self.folder)
        plan = with_bins_of(begun, plan, options)
        self.options, self.plan, self.strategy = options, plan, strategy
        self.began = time.time()
        if training.deterministic:
            tf.config.experimental.enable_op_determinism()
        keras.utils.set_random_seed(options.seed)
        set_precision(training.precision)
        self.description = _description_of(options, plan)
        if begun is not None:
            check_continuation(begun, self.description, options)
        teacher = self.description["teacher"]
        if begun is not None and not options.do_train:
            teacher = begun.get("teacher")
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            self.model = bert_pretrainer(
                plan.config,
                packed=options.pack_sequences,
                hidden_states=bool(teacher and teacher["distill_layers"]),
                recompute=training.recompute_layers,
            )
            trained, objective = self._with_teacher(teacher)
            layers = plan.config.num_hidden_layers
            self.frozen = training_setup.freeze_weights(training, self.model, layers)
            steps = options.num_train_steps
            schedule = {"num_train_steps": steps, **self._schedule_of_two_phases()}
            optimizer = training_setup.make_optimizer(
                training,
                layers,
                options.learning_rate,
                num_warmup_steps=options.num_warmup_steps,
                **schedule,
            )
        self.trainer = Trainer(
            trained,
            optimizer,
            objective,
            self.folder,
            TrainerOptions(
                steps_per_call=options.iterations_per_loop,
                log_steps=options.log_steps,
                after_save=remote_folders.send_all,
                save_checkpoints_steps=(
                    None if options.measure_only else options.save_checkpoints_steps
                ),
                keep_checkpoints=options.keep_checkpoints,
                keep_best_by="loss",
                tensorboard=options.tensorboard,
                **training_setup.trainer_arguments(training),
            ),
            strategy=strategy,
        )

    def _with_teacher(self, teacher: dict[str, Any] | None) -> tuple[keras.Model, Objective]:
        """Return the model to train, which has the variables of `model`, and its objective.

        Args:
            teacher: the description of the run's; None for none. A run that is only evaluated is
                not asked for it, but its checkpoints have what training with it left.
        """
        plan = self.plan
        of_text = PretrainingObjective(
            plan.config.next_sentence_prediction,
            plan.mask_id is not None,
            self.options.next_sentence_weight,
        )
        if plan.teacher is not None:
            return plan.teacher.teach(self.model, of_text, packed=self.options.pack_sequences)
        if teacher is None:
            return self.model, of_text
        layers = tuple(teacher["distill_layers"])
        trained = matched_student(self.model, teacher["hidden_size"]) if layers else self.model
        return trained, PretrainingDistillation(of_text, None, layers=layers)

    def _schedule_of_two_phases(self) -> dict[str, Any]:
        """Return what the optimizer takes for a second phase with a schedule of its own."""
        options = self.options
        if len(self.plan.phases) < 2 or options.second_learning_rate is None:
            return {}
        first, second = self.plan.phases
        then = WarmupLinearDecay(
            options.second_learning_rate, second.end - second.begin, options.second_num_warmup_steps
        )
        return {"num_train_steps": first.end, "then": then}

    def load(self) -> bool:
        """Go on from the newest checkpoint of the output folder, or take the initial weights.

        Returns:
            Whether there was a checkpoint.

        Raises:
            ValueError, OSError: what is there does not fit or is damaged.
        """
        options, init = self.options, self.plan.init
        if self.trainer.restore() is not None:
            if init is not None:
                print(
                    f"goes on from step {self.trainer.step:,} of {self.folder}; init_checkpoint "
                    f"{options.init_checkpoint} is not read again"
                )
            return True
        if init is not None:
            transfer = load_checkpoint(
                self.model,
                init,
                ignore=[x for x in options.init_ignore.split(",") if x],
                allow_missing=[x for x in options.init_allow_missing.split(",") if x],
            )
            print(f"weights from {transfer.description}")
            if transfer.missing:
                print(f"not in it, so freshly drawn: {', '.join(transfer.missing)}")
        elif not options.do_train:
            raise InputError(
                f"do_eval: {self.folder} holds no checkpoint and init_checkpoint is not given: "
                "there is nothing to evaluate"
            )
        return False

    def train(self) -> dict[str, float]:
        """Train all phases; return the last log line."""
        options = self.options
        last: dict[str, float] = {}
        with preemption.listening():
            for phase in self.plan.phases:
                line = self.trainer.train(
                    functools.partial(training_dataset, options, self.plan, phase),
                    phase.end,
                    sequences_per_batch=phase.sequences_per_batch,
                    rows_per_batch=phase.batch_size,
                    eval_every_steps=options.eval_every_steps or None,
                    evaluate=self.evaluate,
                    interrupted=preemption.is_asked,
                )
                last = line or last
        return last

    def evaluate(self) -> dict[str, float]:
        """Figures on the held-out records."""
        return self.trainer.evaluate(evaluation_dataset(self.options, self.plan))

    def measure(self) -> None:
        """Take steps of each phase, for the memory that they need."""
        for phase in self.plan.phases:
            shapes = phase.token_batches.num_shapes if phase.token_batches else 1
            self.trainer.train(
                functools.partial(measured_dataset, self.options, self.plan, phase),
                self.trainer.step + max(self.options.num_train_steps, shapes),
                sequences_per_batch=phase.sequences_per_batch,
                rows_per_batch=phase.batch_size,
            )

    def run(self) -> None:
        """Train and evaluate as the flags say.

        Raises:
            InputError: another process trains in the output folder.
        """
        writes = self.options.do_train and self.trainer.is_chief
        with training_setup.locked(self.folder) if writes else contextlib.nullcontext():
            self._run()

    def _run(self) -> None:
        options, trainer = self.options, self.trainer
        continued = self.load()
        if options.measure_only:
            self.measure()
            return
        if not trainer.is_chief:  # takes part in what the chief computes, and leaves files to it
            if options.do_train:
                self.train()
            if options.do_eval:
                self.evaluate()
            print("this worker has finished; results are written by the chief, worker 0")
            return
        if options.do_train:
            self._describe(continued)
        floor = baselines(options, self.plan)
        self._print_beginning(floor, continued)
        summary: list[tuple[str, str]] = []
        if options.do_train:
            summary += self._train_and_write(floor)
        if options.do_eval:
            summary += self._evaluate_and_write(floor)
        summary += self._best_row()
        summary += self._curves_row()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        summary += [
            ("model directory", str(self.folder)),
            ("wall time in all", f"{time.time() - self.began:.0f} s"),
            ("peak memory", f"{peak:.2f} GiB"),
        ]
        print("summary:")
        print_table([("global step", f"{trainer.step:,}"), *summary])

    def _describe(self, continued: bool) -> None:
        """Write what the run was begun with, beside the model's configuration and vocabulary."""
        if not continued or not (self.folder / log.RUN_CONFIG_NAME).exists():
            log.write_config(self.folder, self.description)
        save_config_and_vocabulary(self.folder, self.plan.config)
        write_vocabulary(self.plan.tokenizer, self.folder / VOCAB_NAME)

    def _train_and_write(self, floor: dict[str, float]) -> list[tuple[str, str]]:
        """Train, write the model, and return what the summary says of it."""
        options, trainer = self.options, self.trainer
        if not log.read_metrics_or_nothing(self.folder / log.METRICS_NAME, "baseline"):
            trainer.log_line("baseline", floor)
        # The model of an earlier run of this folder must not be taken for this one's.
        (self.folder / f"{WEIGHTS_NAME}.index").unlink(missing_ok=True)
        since, first_step = time.time(), trainer.step
        last = self.train()
        seconds = time.time() - since
        with trainer.averaged_weights():
            tokenizer, step = self.plan.tokenizer, trainer.step
            save_model_directory(self.folder, self.model, tokenizer=tokenizer, step=step)
        if not last:
            return []
        sequences = sum(
            max(0, phase.end - max(phase.begin, first_step)) * phase.sequences_per_batch
            for phase in self.plan.phases
        )
        return [
            ("training MLM loss", f"{last['mlm_loss']:.4f} (last {options.log_steps} steps)"),
            ("wall time of training", f"{seconds:.0f} s, {sequences / seconds:.1f} sequences/s"),
        ]

    def _evaluate_and_write(self, floor: dict[str, float]) -> list[tuple[str, str]]:
        """Evaluate, write the results, and return what the summary says of them."""
        trainer = self.trainer
        figures = self.evaluate()
        known = log.read_metrics_or_nothing(self.folder / log.METRICS_NAME, "eval")
        if self.options.do_train and not any(line["step"] == trainer.step for line in known):
            trainer.log_line("eval", {f"eval_{name}": value for name, value in figures.items()})
        results: dict[str, Any] = {_EVAL_NAMES[name]: value for name, value in figures.items()}
        results["global_step"] = trainer.step
        write_results(self.folder, results)
        where = _name_of_eval_records(self.plan)
        print(f"evaluation on {where} records:")
        print_table([(name, f"{results[name]:.6g}") for name in sorted(results)])
        rows = [(f"{where} MLM loss", _beside_unigram(results["masked_lm_loss"], floor))]
        if self.plan.mask_id is not None:
            warn_of_plateau(results["masked_lm_loss_at_mask"], floor["unigram_loss"])
            rows += [
                ("  at [MASK]", _beside_unigram(results["masked_lm_loss_at_mask"], floor)),
                (
                    "  accuracy at [MASK]",
                    f"{results['masked_lm_accuracy_at_mask']:.1%} "
                    f"(unigram {floor['unigram_accuracy']:.1%})",
                ),
            ]
        return rows

    # === What is printed ===

    def _print_beginning(self, floor: dict[str, float], continued: bool) -> None:
        trainer = self.trainer
        where = _name_of_eval_records(self.plan)
        xla = {True: ", XLA", "pointwise": ", XLA between products"}.get(trainer.jit_compile, "")
        frozen = f", {len(self.frozen)} weights frozen" if self.frozen else ""
        print("pre-training:")
        print_table(
            [
                ("parameters", f"{self.model.count_params():,}{frozen}"),
                *(row for x in self.plan.phases for row in _rows_of(x, self.options)),
                ("begins at", f"step {trainer.step:,}" + (" (continued)" if continued else "")),
                ("device", training_setup.describe_devices(self.strategy)),
                ("precision", self.options.training.precision + xla),
                ("MLM loss, uniform", f"{floor['uniform_loss']:.4f} (ln of the vocabulary size)"),
                ("MLM loss, unigram", f"{floor['unigram_loss']:.4f} (on the {where} records)"),
            ]
        )
        sys.stdout.flush()

    def _best_row(self) -> list[tuple[str, str]]:
        best = self.trainer.best
        if best is None or not self.options.eval_every_steps:
            return []
        loss = f"{_name_of_eval_records(self.plan)} loss {best.value:.4f}"
        return [("best checkpoint", f"{self.trainer.keeper.prefix(best.step).name} ({loss})")]

    def _curves_row(self) -> list[tuple[str, str]]:

        metrics = self.folder / log.METRICS_NAME
        if not log.read_metrics_or_nothing(metrics, "train"):
            return []
        try:
            return [("curves", str(plot_curves(metrics, self.folder / "curves.png")))]
        except ImportError:
            logging.warning("no curves: the package matplotlib is not installed")
            return []


def _description_of(options: PretrainingOptions, plan: Plan) -> dict[str, Any]:
    """Return what config.json says of a run."""
    return {
        "bert_config": plan.config.to_dict(),
        "flags": _with_original_names(dict(sorted(to_dict(options).items()))),
        "length_bins": [phase.length_bins for phase in plan.phases],
        **(
            {"batch_multiple": plan.phases[0].batch_multiple}
            if any(phase.batch_tokens for phase in plan.phases)
            else {}
        ),
        "train_records": {
            original_names(path): count
            for phase in plan.phases
            for path, count in zip(phase.files, phase.counts, strict=True)
        },
        "eval_files": list(map(original_names, plan.eval_files)),
        "teacher": plan.teacher.description if plan.teacher is not None else None,
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
    }


def _with_original_names(values: dict[str, Any]) -> dict[str, Any]:
    return {k: original_names(v) if isinstance(v, str) else v for k, v in values.items()}


def warn_of_plateau(loss: float, unigram: float) -> None:
    """Warn of a model that does not use context.

    Args:
        loss: at [MASK], nats a piece.
        unigram: that of a model that knows only how frequent each piece is.
    """
    if loss > unigram - _PLATEAU:
        logging.warning(
            "at [MASK] the model is hardly better than one that knows only how frequent each piece "
            "is: it has not learnt from context yet; more steps, or what docs/guides/pretrain.md "
            "names under 'Is it learning?', change that"
        )


def _beside_unigram(loss: float, floor: dict[str, float]) -> str:
    gain = floor["unigram_loss"] - loss
    return (
        f"{loss:.4f} (unigram {floor['unigram_loss']:.4f}, uniform {floor['uniform_loss']:.4f}; "
        f"{gain:+.4f} better than unigram)"
    )


def _name_of_eval_records(plan: Plan) -> str:
    return "held-out" if plan.held_out else "training (no eval_input_file)"


def _rows_of(phase: Phase, options: PretrainingOptions) -> list[tuple[str, str]]:
    """Return what the table at the beginning says of a phase."""
    records, steps = sum(phase.counts), phase.end - phase.begin
    bins = ", of like length" if phase.length_bins else ""
    if bins and not pads_to_max(options):
        bins += f" in steps of {phase.length_bins} tokens"
    size, unit, is_counted = f"{phase.batch_size}", "sequences", True
    if phase.batch_tokens is not None:
        size, unit = f"up to {phase.batch_tokens:,}", "tokens"
        is_counted = phase.length_counts is not None
    if (batches := phase.token_batches) is not None:
        mean = f"{phase.sequences_per_batch:.1f} sequences on the average"
        bins += f", {mean}, {batches.num_shapes} shapes"
    if options.pack_sequences:
        unit, is_counted = "rows", phase.row_counts is not None
        if is_counted:
            bins = f", {phase.sequences_per_batch / phase.batch_size:.2f} sequences a row"
    # Where nothing is trained, rows and lengths are not counted.
    epochs = f" ({steps / phase.batches_per_epoch:.2f} epochs)" if is_counted else ""
    return [
        (
            "training records",
            f"{records:,} of {phase.max_seq_length} tokens in {len(phase.files)} files",
        ),
        (
            "steps",
            f"{steps:,} of {size} {unit}{epochs}{bins}",
        ),
    ]


def run(options: PretrainingOptions) -> None:
    """Do as the options say.

    Raises:
        ValueError, OSError, RuntimeError: bad options, data or model; one line says what.
    """
    logging.set_verbosity(max(logging.INFO, logging.get_verbosity()))
    if options.find_batch_size:
        find_batch_size(options)
        return
    training = training_setup.with_precision(
        options.training, pathlib.Path(options.output_dir), one_shape=True
    )
    options = dataclasses.replace(options, training=training)
    # Before anything else of TensorFlow runs.
    strategy = training_setup.strategy_of(options.training)
    shared = {"eval_batch_size": options.eval_batch_size} if options.do_eval else {}
    replicas = num_replicas_of(strategy)
    # Of batches of so many tokens the plan makes multiples of what a batch is divided into.
    size = options.phases[0].batch_size or replicas * options.training.gradient_accumulation_steps
    training_setup.check_batch_sizes(options.training, strategy, size, **shared)
    check_batch_tokens(options, replicas)
    PretrainingRun(options, make_plan(options, replicas), strategy).run()
