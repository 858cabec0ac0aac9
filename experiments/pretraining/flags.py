"""Flags of pre-training, and what they may be together."""

from __future__ import annotations

import functools
import math

from absl import flags

from bert_tf.options import define, read
from experiments.command_line.exit_status import InputError
from experiments.command_line.training_options import TrainingOptions

# === Validation ===


def check_flags(values: flags.FlagValues) -> None:
    """Refuse what no run could have.

    Raises:
        InputError: one line names the flag.
    """
    for name in (
        "second_max_seq_length",
        "second_max_predictions_per_seq",
        "second_train_batch_size",
        "second_phase_steps",
    ):
        value = getattr(values, name)
        if value is not None and value < 1:
            raise InputError(f"{name}: expected at least 1, got {value}")
    if first_phase_steps(values) < 1:
        raise InputError(
            f"second_phase_steps: expected less than num_train_steps, {values.num_train_steps}, "
            f"got {values.second_phase_steps}"
        )
    rate = values.second_learning_rate
    if rate is not None and (not 0 < rate < math.inf or not values.second_input_file):
        raise InputError(
            f"second_learning_rate: expected above 0, with --second_input_file, got {rate}"
        )
    read(TrainingOptions, values)
    if values.find_batch_size and values.distribution_strategy == "multi_worker_mirrored":
        raise InputError("find_batch_size: measure on one host, with the strategy it would have")
    if values.memory_limit_gib is not None and values.memory_limit_gib <= 0:
        raise InputError(f"memory_limit_gib: expected above 0, got {values.memory_limit_gib}")
    if not values.do_train and not values.do_eval:
        raise InputError("do_train, do_eval: expected at least one of them, got neither")
    for name in ("input_file", "output_dir"):
        if not getattr(values, name):
            raise InputError(f"{name}: this flag is required")
    for name in (
        *("max_seq_length", "max_predictions_per_seq", "train_batch_size", "eval_batch_size"),
        *("num_train_steps", "save_checkpoints_steps", "iterations_per_loop", "log_steps"),
        "keep_checkpoints",
    ):
        if getattr(values, name) < 1:
            raise InputError(f"{name}: expected at least 1, got {getattr(values, name)}")
    for name in ("num_warmup_steps", "max_eval_steps", "eval_every_steps", "seed"):
        if getattr(values, name) < 0:
            raise InputError(f"{name}: expected at least 0, got {getattr(values, name)}")
    if not 0 < values.learning_rate < math.inf:
        raise InputError(f"learning_rate: expected a positive number, got {values.learning_rate}")
    if values.bert_config_file and values.model_size:
        raise InputError("bert_config_file, model_size: expected one of them, got both")


def first_phase_steps(values: flags.FlagValues) -> int:
    """Return the number of steps before the second phase, or of all where there is none."""
    steps = values.num_train_steps
    if not values.second_input_file:
        return steps
    given = values.second_phase_steps
    return steps - (max(1, round(steps / 10)) if given is None else given)


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
    define(TrainingOptions, values)
