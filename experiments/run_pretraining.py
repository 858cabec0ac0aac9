"""Pre-trains BERT on records of create_pretraining_data, and evaluates it.

    python experiments/run_pretraining.py --input_file='records/train-*.tfrecord' \
        --eval_input_file='records/dev-*.tfrecord' --model_size=mini --vocab_file=vocab.txt \
        --do_train --do_eval --output_dir=runs/mini \
        --num_train_steps=10000 --num_warmup_steps=1000 --learning_rate=1e-4

Flags and defaults are those of google-research/bert's run_pretraining.py wherever it has the flag.
With --second_input_file the last tenth of the steps takes longer sequences, as in the paper.
The same command continues a run that was stopped, to the bit. The output folder is a model
directory (bert_config.json, vocab.txt, bert_model.ckpt.*) and holds metrics.jsonl, config.json,
curves.png, eval_results.txt and checkpoints: the last ones and, with --eval_every_steps, the one
of the lowest held-out loss.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import pathlib
import resource
import sys
import tempfile
import time
from typing import Any

from absl import app, flags, logging

from experiments.command_line import preemption, training_flags
from experiments.command_line.exit_status import InputError, exit_on_error
from experiments.command_line.memory import available_bytes, largest_batch_size, try_within
from experiments.finetuning.results import print_table
from experiments.pretraining.plan import Phase, Plan, check_flags, make_plan

FLAGS = flags.FLAGS

_EVAL_SEED = 12345  # of dynamic masks: the same at every evaluation, whatever --seed
_UNIGRAM_RECORDS = 102_400  # training records looked at for the unigram baseline
_EVAL_NAMES = {  # ours -> the original's
    "loss": "loss",
    "mlm_loss": "masked_lm_loss",
    "mlm_accuracy": "masked_lm_accuracy",
    "nsp_loss": "next_sentence_loss",
    "nsp_accuracy": "next_sentence_accuracy",
}
# What may differ from the run that is continued only at the price of another trajectory.
_TRAJECTORY_FLAGS = [
    *("train_batch_size", "learning_rate", "num_train_steps", "num_warmup_steps", "seed"),
    *("second_train_batch_size", "second_phase_steps"),
    *("second_learning_rate", "second_num_warmup_steps"),
    *training_flags.TRAJECTORY_NAMES,
]


def define_flags(values: flags.FlagValues) -> None:
    """Define the script's flags."""
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    switch = functools.partial(flags.DEFINE_bool, flag_values=values)
    number = functools.partial(flags.DEFINE_float, flag_values=values)

    text("bert_config_file", None, "bert_config.json of the model.")
    text("model_size", None, "Instead of bert_config_file: tiny, mini, small, medium, base, large.")
    text("input_file", None, "Training records: names and globs, comma separated.")
    text("output_dir", None, "Folder of checkpoints, logs and results.")
    text("second_input_file", None, "Records of a second phase, of other length, as of 512 tokens.")
    integer("second_max_seq_length", 512, "Tokens in a sequence of it.")
    integer("second_max_predictions_per_seq", 77, "Predictions in a sequence of it.")
    integer("second_train_batch_size", None, "Sequences in a batch of it; train_batch_size if not.")
    integer("second_phase_steps", None, "The last steps, which are its; by default a tenth.")
    number("second_learning_rate", None, "Its own peak; by default the first decay goes on.")
    integer("second_num_warmup_steps", 0, "Steps of its own warm-up.")
    text("init_checkpoint", None, "Weights to begin with: TF1, transformers, KerasHub or ours.")
    text("init_ignore", "", "Regular expressions of checkpoint tensors to leave, comma separated.")
    text("init_allow_missing", "", "Regular expressions of weights that it may lack, likewise.")
    integer("max_seq_length", 128, "Tokens in a sequence; must be that of the records.")
    integer("max_predictions_per_seq", 20, "Predictions in a sequence; must be the records'.")
    switch("do_train", False, "Whether to train.")
    switch("do_eval", False, "Whether to evaluate.")
    integer("train_batch_size", 32, "Sequences in a training batch.")
    integer("eval_batch_size", 8, "Sequences in an evaluation batch.")
    number("learning_rate", 5e-5, "Peak learning rate.")
    integer("num_train_steps", 100000, "Training steps in all.")
    integer("num_warmup_steps", 10000, "Steps of linear warm-up.")
    integer("save_checkpoints_steps", 1000, "Steps between two checkpoints.")
    integer("iterations_per_loop", 1000, "Steps at most in one call of the graph.")
    integer("max_eval_steps", 100, "Evaluation batches at most; 0 for all of the records.")
    text("eval_input_file", None, "Held-out records to evaluate on; input_file by default.")
    integer("eval_every_steps", 0, "Also evaluate every so many training steps; 0 for never.")
    text("vocab_file", None, "Vocabulary of the records: checked, and copied to output_dir.")
    switch("do_lower_case", None, "Casing of the records, where no manifest says it.")
    switch("do_whole_word_mask", False, "Dynamic masking of records without a manifest.")
    number("masked_lm_prob", 0.15, "Dynamic masking of records without a manifest.")
    switch("skip_corrupt_records", False, "Leave damaged records out: they are counted and named.")
    integer("seed", 12345, "Of initial weights, dropout, order of records and dynamic masks.")
    integer("log_steps", 25, "Steps between two log lines.")
    integer("keep_checkpoints", 5, "Newest checkpoints to keep, beside the best.")
    switch("tensorboard", True, "Whether to write TensorBoard summaries.")
    switch("find_batch_size", False, "Measure the largest train_batch_size that fits, and end.")
    number("memory_limit_gib", None, "Of find_batch_size; by default what the machine has left.")
    switch("measure_only", False, "Take the steps and write no model: what find_batch_size runs.")
    training_flags.define_training_flags(values)


# --- data -----------------------------------------------------------------------------------------


def training_dataset(
    values: flags.FlagValues, plan: Plan, phase: Phase, step: int, batch_size: int | None = None
) -> Any:
    """Batches of a phase from a step on, which is counted from the beginning of training."""
    from bert_tf.input_pipeline.pretraining import pretraining_dataset

    return pretraining_dataset(
        [plan.sound_files[path] for path in phase.files],
        batch_size=batch_size or phase.batch_size,
        max_seq_length=phase.max_seq_length,
        max_predictions_per_seq=phase.max_predictions_per_seq,
        is_training=True,
        seed=values.seed,
        start_step=step - phase.begin,
        masking=phase.masking,
        record_counts=phase.counts,
        vocab_size=plan.config.vocab_size,
        next_sentence=plan.config.next_sentence_prediction,
    )


def evaluation_dataset(values: flags.FlagValues, plan: Plan) -> Any:
    """Batches to evaluate on, the same ones in the same order each time."""
    from bert_tf.input_pipeline.pretraining import pretraining_dataset

    return pretraining_dataset(
        [plan.sound_files[path] for path in plan.eval_files],
        batch_size=values.eval_batch_size,
        max_seq_length=values.max_seq_length,
        max_predictions_per_seq=values.max_predictions_per_seq,
        is_training=False,
        seed=_EVAL_SEED,
        masking=plan.eval_masking,
        max_steps=values.max_eval_steps or None,
        vocab_size=plan.config.vocab_size,
        next_sentence=plan.config.next_sentence_prediction,
    )


def baselines(values: flags.FlagValues, plan: Plan) -> dict[str, float]:
    """What a masked language model's loss should be compared with, in nats per piece."""
    from bert_tf.input_pipeline.pretraining import label_counts, unigram_cross_entropy

    phase = plan.phases[0]
    records = min(sum(phase.counts), _UNIGRAM_RECORDS)
    batch = min(512, records)
    dataset = training_dataset(values, plan, phase, 0, batch)
    counts = label_counts(dataset, plan.config.vocab_size, records // batch)
    held_out = label_counts(evaluation_dataset(values, plan), plan.config.vocab_size)
    return {
        "uniform_loss": math.log(plan.config.vocab_size),
        "unigram_loss": unigram_cross_entropy(counts, held_out),
    }


# --- the run --------------------------------------------------------------------------------------


class PretrainingRun:
    """A run: its model, its training, and what it writes and prints."""

    def __init__(self, values: flags.FlagValues, plan: Plan, strategy: Any):
        """Build the model and what trains it.

        Raises:
            InputError: the output folder holds another run.
        """
        import keras
        import tensorflow as tf

        from bert_tf.models.task_models import bert_pretrainer
        from bert_tf.training.trainer import PretrainingObjective, Trainer, set_precision

        self.values, self.plan, self.strategy = values, plan, strategy
        self.folder = pathlib.Path(values.output_dir)
        self.began = time.time()
        if values.deterministic:
            tf.config.experimental.enable_op_determinism()
        keras.utils.set_random_seed(values.seed)
        set_precision(values.precision)
        self.description = {
            "bert_config": plan.config.to_dict(),
            "flags": {name: values[name].value for name in _own_flags()},
            "train_records": {
                path: count
                for phase in plan.phases
                for path, count in zip(phase.files, phase.counts, strict=True)
            },
            "eval_files": plan.eval_files,
            "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
        }
        self._check_continuation()
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            self.model = bert_pretrainer(plan.config, recompute=values.recompute_layers)
            layers = plan.config.num_hidden_layers
            self.frozen = training_flags.freeze_weights(values, self.model, layers)
            steps = values.num_train_steps
            schedule = {"num_train_steps": steps, **self._schedule_of_two_phases()}
            optimizer = training_flags.make_optimizer(
                values, layers, num_warmup_steps=values.num_warmup_steps, **schedule
            )
        self.trainer = Trainer(
            self.model,
            optimizer,
            PretrainingObjective(plan.config.next_sentence_prediction),
            self.folder,
            jit_compile=values.jit_compile,
            log_steps=values.log_steps,
            save_checkpoints_steps=None if values.measure_only else values.save_checkpoints_steps,
            keep_checkpoints=values.keep_checkpoints,
            keep_best_by="loss",
            steps_per_call=values.iterations_per_loop,
            tensorboard=values.tensorboard,
            strategy=strategy,
            **training_flags.trainer_arguments(values),
        )

    def _check_continuation(self) -> None:
        """Compare this command with the one that began the run in the output folder."""
        from bert_tf.weights.tensor_files import checkpoint_steps

        path, now = self.folder / "config.json", self.description
        if not checkpoint_steps(self.folder) or not path.exists():
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        if before.get("bert_config") != now["bert_config"]:
            raise InputError(
                f"{self.folder} holds a run of another model configuration; use another output_dir"
            )
        if not self.values.do_train:
            return
        if before.get("train_records") != now["train_records"]:
            logging.warning(
                "the training records are not those that this run began with: it goes on, but not "
                "as it would have"
            )
        for name in _TRAJECTORY_FLAGS:
            was, is_now = before.get("flags", {}).get(name), now["flags"][name]
            if was != is_now:
                logging.warning(
                    "%s is %r and was %r when this run began: it goes on, but not as it would have",
                    name,
                    is_now,
                    was,
                )

    def _schedule_of_two_phases(self) -> dict[str, Any]:
        """What the optimizer takes for a second phase with a schedule of its own."""
        values = self.values
        if len(self.plan.phases) < 2 or values.second_learning_rate is None:
            return {}
        from bert_tf.training.optimizers import WarmupLinearDecay

        first, second = self.plan.phases
        then = WarmupLinearDecay(
            values.second_learning_rate, second.end - second.begin, values.second_num_warmup_steps
        )
        return {"num_train_steps": first.end, "then": then}

    def load(self) -> bool:
        """Go on from the newest checkpoint of the output folder, or take the initial weights.

        Returns:
            Whether there was a checkpoint.

        Raises:
            ValueError, OSError: what is there does not fit or is damaged.
        """
        from bert_tf.weights.load import load_checkpoint

        values, init = self.values, self.plan.init
        if self.trainer.restore() is not None:
            return True
        if init is not None:
            transfer = load_checkpoint(
                self.model,
                init,
                ignore=[x for x in values.init_ignore.split(",") if x],
                allow_missing=[x for x in values.init_allow_missing.split(",") if x],
            )
            print(f"weights from {transfer.description}")
            if transfer.missing:
                print(f"not in it, so freshly drawn: {', '.join(transfer.missing)}")
        elif not values.do_train:
            raise InputError(
                f"do_eval: {self.folder} holds no checkpoint and init_checkpoint is not given: "
                "there is nothing to evaluate"
            )
        return False

    def train(self) -> dict[str, float]:
        """Train all phases; return the last log line."""
        values = self.values
        last: dict[str, float] = {}
        with preemption.listening():
            for phase in self.plan.phases:
                line = self.trainer.train(
                    functools.partial(training_dataset, values, self.plan, phase),
                    phase.end,
                    sequences_per_batch=phase.batch_size,
                    eval_every_steps=values.eval_every_steps or None,
                    evaluate=self.evaluate,
                    interrupted=preemption.is_asked,
                )
                last = line or last
        return last

    def evaluate(self) -> dict[str, float]:
        """Figures on the held-out records."""
        return self.trainer.evaluate(evaluation_dataset(self.values, self.plan))

    def measure(self) -> None:
        """Take steps of each phase, for the memory that they need."""
        for phase in self.plan.phases:
            self.trainer.train(
                functools.partial(training_dataset, self.values, self.plan, phase),
                self.trainer.step + self.values.num_train_steps,
                sequences_per_batch=phase.batch_size,
            )

    def run(self) -> None:
        """Train and evaluate as the flags say."""
        values, trainer = self.values, self.trainer
        continued = self.load()
        if values.measure_only:
            self.measure()
            return
        if not trainer.is_chief:  # takes part in what the chief computes, and leaves files to it
            if values.do_train:
                self.train()
            if values.do_eval:
                self.evaluate()
            print("this worker has finished; results are written by the chief, worker 0")
            return
        if values.do_train:
            self._describe()
        floor = baselines(values, self.plan)
        self._print_beginning(floor, continued)
        summary: list[tuple[str, str]] = []
        if values.do_train:
            summary += self._train_and_write(floor)
        if values.do_eval:
            summary.append(self._evaluate_and_write(floor))
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

    def _describe(self) -> None:
        """Write what the run is, beside the model's configuration and vocabulary."""
        from bert_tf.training.log import write_config
        from bert_tf.weights.save import save_config_and_vocabulary

        write_config(self.folder, self.description)
        save_config_and_vocabulary(self.folder, self.plan.config, self.plan.vocab_file)

    def _train_and_write(self, floor: dict[str, float]) -> list[tuple[str, str]]:
        """Train, write the model, and return what the summary says of it."""
        from bert_tf.training.log import METRICS_NAME, read_metrics_or_nothing
        from bert_tf.weights.checkpoint import WEIGHTS_NAME
        from bert_tf.weights.save import save_model_directory

        values, trainer = self.values, self.trainer
        if not read_metrics_or_nothing(self.folder / METRICS_NAME, "baseline"):
            trainer.log_line("baseline", floor)
        # The model of an earlier run of this folder must not be taken for this one's.
        (self.folder / f"{WEIGHTS_NAME}.index").unlink(missing_ok=True)
        since, first_step = time.time(), trainer.step
        last = self.train()
        seconds = time.time() - since
        with trainer.averaged_weights():
            save_model_directory(self.folder, self.model, self.plan.vocab_file, step=trainer.step)
        if not last:
            return []
        sequences = sum(
            max(0, phase.end - max(phase.begin, first_step)) * phase.batch_size
            for phase in self.plan.phases
        )
        return [
            ("training MLM loss", f"{last['mlm_loss']:.4f} (last {values.log_steps} steps)"),
            (
                "wall time of training",
                f"{seconds:.0f} s, {sequences / seconds:.1f} sequences/s",
            ),
        ]

    def _evaluate_and_write(self, floor: dict[str, float]) -> tuple[str, str]:
        """Evaluate, write the results, and return what the summary says of them."""
        from bert_tf.training.log import METRICS_NAME, read_metrics_or_nothing

        trainer = self.trainer
        figures = self.evaluate()
        known = read_metrics_or_nothing(self.folder / METRICS_NAME, "eval")
        if self.values.do_train and not any(line["step"] == trainer.step for line in known):
            trainer.log_line("eval", {f"eval_{name}": value for name, value in figures.items()})
        results = _write_eval_results(self.folder, figures, trainer.step)
        where = _name_of_eval_records(self.plan)
        print(f"evaluation on {where} records:")
        print_table([(name, f"{results[name]:.6g}") for name in sorted(results)])
        gain = floor["unigram_loss"] - results["masked_lm_loss"]
        return (
            f"{where} MLM loss",
            f"{results['masked_lm_loss']:.4f} (unigram {floor['unigram_loss']:.4f}, "
            f"uniform {floor['uniform_loss']:.4f}; {gain:+.4f} better than unigram)",
        )

    # --- what is printed ---

    def _print_beginning(self, floor: dict[str, float], continued: bool) -> None:
        values, trainer = self.values, self.trainer
        where = _name_of_eval_records(self.plan)
        frozen = f", {len(self.frozen)} weights frozen" if self.frozen else ""
        print("pre-training:")
        print_table(
            [
                ("parameters", f"{self.model.count_params():,}{frozen}"),
                *(row for phase in self.plan.phases for row in _rows_of(phase)),
                ("begins at", f"step {trainer.step:,}" + (" (continued)" if continued else "")),
                ("device", training_flags.describe_devices(self.strategy)),
                ("precision", values.precision + (", XLA" if trainer.jit_compile else "")),
                ("MLM loss, uniform", f"{floor['uniform_loss']:.4f} (ln of the vocabulary size)"),
                ("MLM loss, unigram", f"{floor['unigram_loss']:.4f} (on the {where} records)"),
            ]
        )
        sys.stdout.flush()

    def _best_row(self) -> list[tuple[str, str]]:
        best = self.trainer.best
        if best is None or not self.values.eval_every_steps:
            return []
        loss = f"{_name_of_eval_records(self.plan)} loss {best.value:.4f}"
        return [("best checkpoint", f"{self.trainer.keeper.prefix(best.step).name} ({loss})")]

    def _curves_row(self) -> list[tuple[str, str]]:
        from bert_tf.training import log
        from experiments.plot_curves import plot_curves

        metrics = self.folder / log.METRICS_NAME
        if not log.read_metrics_or_nothing(metrics, "train"):
            return []
        try:
            return [("curves", str(plot_curves(metrics, self.folder / "curves.png")))]
        except ImportError:
            logging.warning("no curves: the package matplotlib is not installed")
            return []


def _own_flags() -> list[str]:
    """Names of this script's flags, without those of absl."""
    own = flags.FlagValues()
    define_flags(own)
    return sorted(own)


def _name_of_eval_records(plan: Plan) -> str:
    return "held-out" if plan.held_out else "training (no eval_input_file)"


def _rows_of(phase: Phase) -> list[tuple[str, str]]:
    """What the table at the beginning says of a phase."""
    records, steps = sum(phase.counts), phase.end - phase.begin
    return [
        (
            "training records",
            f"{records:,} of {phase.max_seq_length} tokens in {len(phase.files)} files",
        ),
        (
            "steps",
            f"{steps:,} of {phase.batch_size} sequences "
            f"({steps * phase.batch_size / records:.2f} epochs)",
        ),
    ]


def _write_eval_results(
    folder: pathlib.Path, figures: dict[str, float], step: int
) -> dict[str, Any]:
    results: dict[str, Any] = {_EVAL_NAMES[name]: value for name, value in figures.items()}
    results["global_step"] = step
    lines = [f"{name} = {results[name]}\n" for name in sorted(results)]
    (folder / "eval_results.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "eval_results.json").write_text(
        json.dumps(results, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    return results


def find_batch_size(values: flags.FlagValues) -> None:
    """Measure the largest training batch that fits, each in a process of its own.

    Raises:
        InputError: not even the smallest fits.
    """
    multiple = max(1, values.num_replicas or 1) * values.gradient_accumulation_steps
    limit = available_bytes()
    if values.memory_limit_gib is not None:
        limit = int(values.memory_limit_gib * 2**30)
    print(f"limit: {limit / 2**30:.2f} GiB of this machine's memory")
    peaks = {}

    def fits(batch_size: int) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            changes = {
                "train_batch_size": batch_size,
                "output_dir": folder,
                "num_train_steps": 2,
                "second_phase_steps": 1,
                "num_warmup_steps": 0,
                "measure_only": True,
                "find_batch_size": False,
                "do_train": True,
                "do_eval": False,
                "tensorboard": False,
            }
            arguments = [f"--{name}={value}" for name, value in changes.items()]
            command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:], *arguments]
            trial = try_within(command, limit)
        peaks[batch_size] = trial.peak_bytes
        verdict = "fits" if trial.fits else "does not fit"
        print(f"  {batch_size}: {verdict}, {trial.peak_bytes / 2**30:.2f} GiB at most", flush=True)
        return trial.fits

    best = largest_batch_size(fits, multiple)
    if not best:
        raise InputError(f"find_batch_size: not even a batch of {multiple} fits")
    print(f"largest train_batch_size that fits: {best} ({peaks[best] / 2**30:.2f} GiB)")


def run(values: flags.FlagValues) -> None:
    """Do as the flags say.

    Raises:
        InputError, ValueError, OSError, RuntimeError: bad flags, data or model; one line says what.
    """
    check_flags(values)
    if values.find_batch_size:
        find_batch_size(values)
        return
    strategy = training_flags.strategy_of(values)  # before anything else of TensorFlow runs
    shared = ["eval_batch_size"] if values.do_eval else []
    training_flags.check_batch_sizes(values, strategy, shared)
    PretrainingRun(values, make_plan(values), strategy).run()


def main(argv: list[str]) -> int:
    """Run the script; bad input gives one line on standard error and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(max(logging.INFO, logging.get_verbosity()))
    return exit_on_error("run_pretraining", lambda: run(FLAGS))


if __name__ == "__main__":
    define_flags(FLAGS)
    app.run(main)
