"""Flags that every fine-tuning script has."""

from __future__ import annotations

import functools
import math

from absl import flags

from bert_tf.options import define, read
from experiments.command_line.exit_status import InputError
from experiments.command_line.training_options import TrainingOptions
from experiments.command_line.training_setup import strategy_of


def define_flags(
    values: flags.FlagValues,
    *,
    max_seq_length: int | None = 128,
    train_batch_size: int | None = 32,
    learning_rate: float | None = 5e-5,
    num_train_epochs: float | None = 3.0,
) -> None:
    """Define the flags that every fine-tuning script has; the original's names and defaults.

    Args:
        values: where to define them.
        max_seq_length: default; None for the task's own.
        train_batch_size: likewise.
        learning_rate: likewise.
        num_train_epochs: likewise.
    """
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    switch = functools.partial(flags.DEFINE_bool, flag_values=values)
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    number = functools.partial(flags.DEFINE_float, flag_values=values)

    text("model_dir", None, "Model to begin with: a directory or checkpoint of any known format.")
    text("bert_config_file", None, "Configuration of the model, in place of --model_dir's.")
    text("vocab_file", None, "Its vocabulary, likewise.")
    text("init_checkpoint", None, "Its weights, likewise.")
    switch("do_lower_case", None, "Casing; by default the model's, or True without --model_dir.")
    text("output_dir", None, "Folder of the model and the results.", required=True)
    switch("do_train", False, "Whether to train.")
    switch("do_eval", False, "Whether to evaluate on the dev set; with --do_train each epoch.")
    switch("do_predict", False, "Whether to predict the test set.")
    integer("max_seq_length", max_seq_length, "Tokens of a sequence; longer ones are cut.")
    integer("train_batch_size", train_batch_size, "Examples in a training batch.")
    integer("eval_batch_size", 8, "Examples in an evaluation batch.")
    integer("predict_batch_size", 8, "Examples in a batch of the test set.")
    number("learning_rate", learning_rate, "Peak learning rate.")
    number("num_train_epochs", num_train_epochs, "Passes over the training set.")
    integer("num_train_steps", None, "Training steps, in place of --num_train_epochs.")
    number("warmup_proportion", 0.1, "Part of the steps in which the learning rate rises.")
    integer("save_checkpoints_steps", 1000, "Steps between two checkpoints to continue from.")
    integer("iterations_per_loop", 1000, "Steps at most in one call of the graph.")

    flags.DEFINE_list(
        "seeds",
        ["12345"],
        "Seeds of initial head, dropout and order; a run each.",
        flag_values=values,
    )
    integer("eval_every_steps", 0, "Steps between two evaluations; 0 for once an epoch.")
    integer("early_stop_evals", 0, "Stop after so many evaluations without a better one; 0: never.")
    switch("keep_best", True, "Keep the weights that were best on the dev set, not the last.")
    switch("bias_correction", False, "Adam's correction of its moments, which BERT left out.")
    number("clip_norm", 1.0, "Largest norm of the gradients; 0 not to clip.")
    number("weight_decay_rate", 0.01, "Weight decay.")
    switch("bilstm", False, "Put a BiLSTM between encoder and head: an ablation of the paper.")
    integer("lora_rank", 0, "Train low-rank adapters of this rank and the head alone; 0: all.")
    number("lora_alpha", None, "Adapters are scaled by this over the rank; the rank by default.")
    flags.DEFINE_list(
        "lora_targets",
        ["query", "value"],
        "What has adapters: query, key, value, attention_output, intermediate, output.",
        flag_values=values,
    )
    switch("group_by_length", True, "Put examples of like length into one batch.")
    switch("pad_to_max_seq_length", False, "Pad all to --max_seq_length, as the original does.")
    integer("log_steps", 25, "Steps between two log lines.")
    switch("tensorboard", False, "Whether to write TensorBoard summaries.")
    switch("overwrite", False, "Train anew in a folder that holds a finished or another run.")
    text("cache_dir", None, "Folder of prepared records; output_dir/records by default.")
    define(TrainingOptions, values)


def check_flags(values: flags.FlagValues) -> None:
    """Refuse what no run could have.

    Raises:
        InputError: one line says what.
    """
    training = read(TrainingOptions, values)
    if not (values.do_train or values.do_eval or values.do_predict):
        raise InputError("give at least one of --do_train, --do_eval, --do_predict")
    for name in ("train_batch_size", "eval_batch_size", "predict_batch_size", "max_seq_length"):
        if getattr(values, name) is not None and getattr(values, name) < 1:
            raise InputError(f"{name}: expected at least 1, got {getattr(values, name)}")
    for name in ("iterations_per_loop", "log_steps"):
        if getattr(values, name) < 1:
            raise InputError(f"{name}: expected at least 1, got {getattr(values, name)}")
    if values.learning_rate is not None and not 0 < values.learning_rate < math.inf:
        raise InputError(f"learning_rate: expected a positive number, got {values.learning_rate}")
    if not 0 <= values.warmup_proportion <= 1:
        raise InputError(f"warmup_proportion: expected 0 to 1, got {values.warmup_proportion}")
    for name in ("eval_every_steps", "early_stop_evals", "lora_rank"):
        if getattr(values, name) < 0:
            raise InputError(f"{name}: expected at least 0, got {getattr(values, name)}")
    if values.early_stop_evals and values.do_train and not values.do_eval:
        raise InputError("early_stop_evals: needs --do_eval, whose evaluations it counts")
    if values.num_train_epochs is not None and not math.isfinite(values.num_train_epochs):
        raise InputError(f"num_train_epochs: expected a number, got {values.num_train_epochs}")
    if values.lora_rank:
        from bert_tf.models.lora import check_arguments

        try:
            check_arguments(values.lora_rank, values.lora_alpha, values.lora_targets)
        except ValueError as error:
            raise InputError(f"lora_{error}") from error
    seeds = values.seeds
    if (
        not seeds
        or not all(seed.strip().isdecimal() for seed in seeds)
        or len(set(map(int, seeds))) < len(seeds)
    ):
        raise InputError(f"seeds: expected different whole numbers, got {','.join(seeds)}")
    if values.distribution_strategy != "one_device" or values.all_reduce_alg or values.num_replicas:
        strategy_of(training)  # made here, before anything else of TensorFlow runs
