"""Pre-trains BERT on records of create_pretraining_data, and evaluates it.

    python experiments/run_pretraining.py --input_file='records/train-*.tfrecord' \
        --eval_input_file='records/dev-*.tfrecord' --model_size=mini --vocab_file=vocab.txt \
        --do_train --do_eval --output_dir=runs/mini \
        --num_train_steps=10000 --num_warmup_steps=1000 --learning_rate=1e-4

Flags and defaults are those of google-research/bert's run_pretraining.py wherever it has the flag.
With --second_input_file the last tenth of the steps takes longer sequences, as in the paper.
The same command continues a run that was stopped, to the bit. The output folder is a model
directory (bert_config.json, vocab.txt, bert_model.ckpt.*) and holds metrics.jsonl, config.json,
curves.png, eval_results.txt and the last checkpoints.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import resource
import sys
import time
from typing import Any

from absl import app, flags, logging

from experiments import memory, preemption
from experiments.devices import (
    NAMES,
    check_batch_sizes,
    check_device_flags,
    define_device_flags,
    describe_devices,
    optimizer_arguments,
    strategy_of,
    trainer_arguments,
)

FLAGS = flags.FLAGS
_FLAG_NAMES: list[str] = []

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
_TRAJECTORY_FLAGS = (
    "train_batch_size",
    "learning_rate",
    "num_train_steps",
    "num_warmup_steps",
    "second_train_batch_size",
    "second_phase_steps",
    "second_learning_rate",
    "second_num_warmup_steps",
    "seed",
    "precision",
    "jit_compile",
    "optimizer",
    "gradient_accumulation_steps",
    "loss_normalization",
)


def define_flags(values: flags.FlagValues) -> None:
    """Define the script's flags."""

    def integer(name: str, default: int | None, meaning: str) -> None:
        _FLAG_NAMES.append(name)
        flags.DEFINE_integer(name, default, meaning, flag_values=values)

    def text(name: str, default: str | None, meaning: str) -> None:
        _FLAG_NAMES.append(name)
        flags.DEFINE_string(name, default, meaning, flag_values=values)

    def switch(name: str, default: bool | None, meaning: str) -> None:
        _FLAG_NAMES.append(name)
        flags.DEFINE_bool(name, default, meaning, flag_values=values)

    def number(name: str, default: float | None, meaning: str) -> None:
        _FLAG_NAMES.append(name)
        flags.DEFINE_float(name, default, meaning, flag_values=values)

    def choice(name: str, choices: list[str], meaning: str) -> None:
        _FLAG_NAMES.append(name)
        flags.DEFINE_enum(name, choices[0], choices, meaning, flag_values=values)

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
    choice(
        "precision",
        ["float32", "mixed_bfloat16", "mixed_float16"],
        "Computation: the last with dynamic loss scaling. Weights stay float32.",
    )
    choice("jit_compile", ["auto", "true", "false"], "XLA; auto means on a GPU only.")
    choice("optimizer", ["adamw", "lamb"], "BERT's Adam, or LAMB for large batches.")
    text(
        "recompute_layers",
        "none",
        "Layers computed again for the gradients, to save memory: none, all, every_2, or 0,1,5.",
    )
    switch("skip_corrupt_records", False, "Leave damaged records out: they are counted and named.")
    switch("deterministic", False, "Deterministic GPU kernels, slower; on CPU they are already.")
    integer("seed", 12345, "Of initial weights, dropout, order of records and dynamic masks.")
    integer("log_steps", 25, "Steps between two log lines.")
    integer("keep_checkpoints", 5, "Checkpoints to keep.")
    switch("tensorboard", True, "Whether to write TensorBoard summaries.")
    define_device_flags(values)
    _FLAG_NAMES.extend(NAMES)
    switch("find_batch_size", False, "Measure the largest train_batch_size that fits, and end.")
    number("memory_limit_gib", None, "Of find_batch_size; by default what the machine has left.")
    switch("measure_only", False, "Take the steps and write no model: what find_batch_size runs.")
    switch("use_tpu", False, "Not supported; see distribution_strategy.")
    integer("num_tpu_cores", 8, "Accepted for old commands; without effect.")
    for name in ("tpu_name", "tpu_zone", "gcp_project"):
        text(name, None, "Of distribution_strategy tpu.")
    text("master", None, "Not supported.")


class InputError(ValueError):
    """Something about flags or data that the user can put right."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """Training records of one length, and the steps that take them: from `begin` up to `end`."""

    files: list[str]
    counts: list[int]
    masking: Any
    max_seq_length: int
    max_predictions_per_seq: int
    batch_size: int
    begin: int
    end: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What validation found out, before anything is built."""

    config: Any
    phases: list[Phase]
    eval_files: list[str]
    held_out: bool
    eval_masking: Any
    vocab_file: str | None
    init: Any
    manifest: dict[str, Any] | None
    sound_files: dict[str, str]  # record file -> where its sound records are read


# --- validation -----------------------------------------------------------------------------------


def _check_flags() -> None:
    for name in (
        "second_max_seq_length",
        "second_max_predictions_per_seq",
        "second_train_batch_size",
        "second_phase_steps",
    ):
        value = FLAGS[name].value
        if value is not None and value < 1:
            raise InputError(f"{name}: expected at least 1, got {value}")
    if first_phase_steps() < 1:
        raise InputError(
            f"second_phase_steps: expected less than num_train_steps, {FLAGS.num_train_steps}, "
            f"got {FLAGS.second_phase_steps}"
        )
    rate = FLAGS.second_learning_rate
    if rate is not None and (rate <= 0 or not FLAGS.second_input_file):
        raise InputError(
            f"second_learning_rate: expected above 0, with --second_input_file, got {rate}"
        )
    of_tpu = FLAGS.tpu_name or FLAGS.tpu_zone or FLAGS.gcp_project
    if FLAGS.use_tpu or FLAGS.master or (of_tpu and FLAGS.distribution_strategy != "tpu"):
        raise InputError(
            "use_tpu, tpu_name, tpu_zone, gcp_project, master: TensorFlow masters are not "
            "supported, and TPUs with --distribution_strategy=tpu in place of --use_tpu; drop "
            "these flags to train on this machine's GPU or CPU"
        )
    check_device_flags(FLAGS)
    if FLAGS.find_batch_size and FLAGS.distribution_strategy == "multi_worker_mirrored":
        raise InputError("find_batch_size: measure on one host, with the strategy it would have")
    if FLAGS.memory_limit_gib is not None and FLAGS.memory_limit_gib <= 0:
        raise InputError(f"memory_limit_gib: expected above 0, got {FLAGS.memory_limit_gib}")
    if not FLAGS.do_train and not FLAGS.do_eval:
        raise InputError("do_train, do_eval: expected at least one of them, got neither")
    for name in ("input_file", "output_dir"):
        if not getattr(FLAGS, name):
            raise InputError(f"{name}: this flag is required")
    for name in (
        *("max_seq_length", "max_predictions_per_seq", "train_batch_size", "eval_batch_size"),
        *("num_train_steps", "save_checkpoints_steps", "iterations_per_loop", "log_steps"),
        "keep_checkpoints",
    ):
        if getattr(FLAGS, name) < 1:
            raise InputError(f"{name}: expected at least 1, got {getattr(FLAGS, name)}")
    for name in ("num_warmup_steps", "max_eval_steps", "eval_every_steps", "seed"):
        if getattr(FLAGS, name) < 0:
            raise InputError(f"{name}: expected at least 0, got {getattr(FLAGS, name)}")
    if FLAGS.learning_rate <= 0:
        raise InputError(f"learning_rate: expected above 0, got {FLAGS.learning_rate}")
    if FLAGS.bert_config_file and FLAGS.model_size:
        raise InputError("bert_config_file, model_size: expected one of them, got both")


def _sha256(path: str) -> str:
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def _find_vocabulary(manifests: list[dict[str, Any]], init: Any) -> str | None:
    """The vocabulary file: as given, as the records' manifest names it, or the checkpoint's."""
    if FLAGS.vocab_file:
        if not os.path.isfile(FLAGS.vocab_file):
            raise InputError(f"vocab_file: no such file: {FLAGS.vocab_file}")
        return FLAGS.vocab_file
    sums = {m["vocab_sha256"] for m in manifests if "vocab_sha256" in m}
    places = [m.get("flags", {}).get("vocab_file") for m in manifests]
    places += [init.located.vocab_file if init else None, f"{FLAGS.output_dir}/vocab.txt"]
    for place in places:
        if place and os.path.isfile(place) and _sha256(place) in sums:
            return place
    return None


def _check_vocabulary(vocab_file: str | None, manifests: list[dict[str, Any]], init: Any) -> None:
    from bert_tf import tokenization

    known = {m["vocab_sha256"] for m in manifests if "vocab_sha256" in m}
    if vocab_file and known and known != {_sha256(vocab_file)}:
        raise InputError(
            f"vocab_file: {vocab_file} is not the vocabulary that the records were made with "
            "(the checksum in their manifest differs)"
        )
    casings = {m["do_lower_case"] for m in manifests if "do_lower_case" in m}
    if FLAGS.do_lower_case is not None:
        casings.add(FLAGS.do_lower_case)
    if len(casings) > 1:
        raise InputError(
            "do_lower_case: records of different casing, or another casing than the flag says"
        )
    if init is None:
        return
    for casing in casings:
        tokenization.validate_case_matches_checkpoint(casing, init.located.path)
    sums = known or ({_sha256(vocab_file)} if vocab_file else set())
    theirs = init.located.vocab_file
    if theirs and sums and sums != {_sha256(theirs)}:
        raise InputError(
            f"init_checkpoint: its vocabulary {theirs} is not the one that the records "
            "were made with"
        )


def _find_config(vocab_size: int | None, init: Any) -> Any:
    from bert_tf.config import BertConfig

    if FLAGS.bert_config_file:
        return BertConfig.from_json_file(FLAGS.bert_config_file)
    if FLAGS.model_size:
        if vocab_size is None:
            raise InputError(
                "model_size: the vocabulary's size is not known, since the records have no "
                "manifest; give vocab_file"
            )
        return BertConfig.from_size(FLAGS.model_size, vocab_size=vocab_size)
    if init is not None and init.config is not None:
        return init.config
    raise InputError("bert_config_file, model_size: expected one of them, got neither")


def _masking_rule(manifest: dict[str, Any] | None, vocab_file: str | None) -> Any:
    from bert_tf import tokenization
    from bert_tf.dynamic_masking import MaskingRule

    if vocab_file is None:
        raise InputError(
            "vocab_file: the records are unmasked, for dynamic masking, which needs the "
            "vocabulary that they were made with"
        )
    made = {**(manifest or {}).get("flags", {}), **(manifest or {})}
    return MaskingRule(
        tokenization.load_vocab(vocab_file),
        masked_lm_prob=made.get("masked_lm_prob", FLAGS.masked_lm_prob),
        whole_word=made.get("do_whole_word_mask", FLAGS.do_whole_word_mask),
        **{k: made[k] for k in ("mask_prob", "random_prob", "keep_prob") if k in made},
    )


def first_phase_steps() -> int:
    """Return the number of steps before the second phase, or of all where there is none."""
    steps = FLAGS.num_train_steps
    if not FLAGS.second_input_file:
        return steps
    given = FLAGS.second_phase_steps
    return steps - (max(1, round(steps / 10)) if given is None else given)


def make_plan() -> Plan:
    """Checks flags, files and data against each other before anything is built.

    Raises:
        ValueError: something does not fit; one line says what.
        OSError: a file is missing or cannot be read.
    """
    _check_flags()
    from bert_tf import checkpoint_formats, input_pipeline, tokenization
    from bert_tf.config import BertConfig
    from bert_tf.dynamic_masking import NextPieceRule
    from bert_tf.layers import recomputed_layers

    train_files = input_pipeline.expand_files(FLAGS.input_file)
    eval_files = (
        input_pipeline.expand_files(FLAGS.eval_input_file) if FLAGS.eval_input_file else train_files
    )
    second_files = (
        input_pipeline.expand_files(FLAGS.second_input_file) if FLAGS.second_input_file else []
    )
    every_file = list(dict.fromkeys(train_files + second_files + eval_files))
    input_pipeline.check_manifests(every_file)
    manifests = input_pipeline.manifests_of(every_file)
    manifest = manifests[0] if manifests else None
    init = None
    if FLAGS.init_checkpoint:
        given = (
            BertConfig.from_json_file(FLAGS.bert_config_file) if FLAGS.bert_config_file else None
        )
        init = checkpoint_formats.open_checkpoint(FLAGS.init_checkpoint, config=given)

    vocab_file = _find_vocabulary(manifests, init)
    _check_vocabulary(vocab_file, manifests, init)
    vocab_size = None
    if vocab_file:
        vocab = tokenization.load_vocab(vocab_file)
        tokenization.check_special_tokens(vocab, vocab_file)
        vocab_size = max(vocab.values()) + 1
    elif manifest and "vocab_size" in manifest:
        vocab_size = manifest["vocab_size"]
    config = _find_config(vocab_size, init)
    if vocab_size is not None and config.vocab_size < vocab_size:
        raise InputError(
            f"vocab_size: the model has {config.vocab_size} pieces, the vocabulary {vocab_size}"
        )
    recomputed_layers(FLAGS.recompute_layers, config.num_hidden_layers)  # refuses what is wrong
    for name in ("max_seq_length", "second_max_seq_length" if second_files else "max_seq_length"):
        if FLAGS[name].value > config.max_position_embeddings:
            raise InputError(
                f"{name}: the model has {config.max_position_embeddings} positions, "
                f"got {FLAGS[name].value}"
            )

    def shape_of(files, prefix=""):
        return input_pipeline.check_record_shape(
            files,
            FLAGS[f"{prefix}max_seq_length"].value,
            FLAGS[f"{prefix}max_predictions_per_seq"].value,
            FLAGS.skip_corrupt_records,
        )

    train_shape, eval_shape = shape_of(train_files), shape_of(eval_files)
    second_shape = shape_of(second_files, "second_") if second_files else None
    logging.info("checking %d record files", len(every_file))
    found = input_pipeline.check_records(
        every_file,
        vocab_size=config.vocab_size,
        skip_corrupt_records=FLAGS.skip_corrupt_records,
    )
    checked = dict(zip(every_file, found, strict=True))
    for line in input_pipeline.damage_report(found):
        logging.warning("%s", line)

    def masking(files, shape):
        if config.left_to_right:
            if shape.masked:
                raise InputError(
                    f"{files[0]}: holds masked records; a left-to-right model predicts what "
                    "follows: make them with --dynamic_masking, which masks nothing"
                )
            return NextPieceRule()
        of_files = input_pipeline.manifests_of(files)
        return None if shape.masked else _masking_rule(next(iter(of_files), None), vocab_file)

    def phase(files, shape, prefix, begin, end):
        batch_size = FLAGS[f"{prefix}train_batch_size"].value
        return Phase(
            files,
            [checked[path].num_records for path in files],
            masking(files, shape),
            FLAGS[f"{prefix}max_seq_length"].value,
            FLAGS[f"{prefix}max_predictions_per_seq"].value,
            FLAGS.train_batch_size if batch_size is None else batch_size,
            begin,
            end,
        )

    steps, boundary = FLAGS.num_train_steps, first_phase_steps()
    return Plan(
        config=config,
        phases=[
            phase(train_files, train_shape, "", 0, boundary),
            *(
                [phase(second_files, second_shape, "second_", boundary, steps)]
                if second_files
                else []
            ),
        ],
        eval_files=eval_files,
        held_out=not set(eval_files) & {*train_files, *second_files},
        eval_masking=masking(eval_files, eval_shape),
        vocab_file=vocab_file,
        init=init,
        manifest=manifest,
        sound_files={path: file.path for path, file in checked.items()},
    )


def _check_continuation(plan: Plan, values: dict[str, Any]) -> None:
    """Compares this command with the one that began the run in the output folder."""
    from bert_tf.tensor_files import checkpoint_steps

    path = pathlib.Path(FLAGS.output_dir) / "config.json"
    if not checkpoint_steps(FLAGS.output_dir) or not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if before.get("bert_config") != values["bert_config"]:
        raise InputError(
            f"{FLAGS.output_dir} holds a run of another model configuration; use another output_dir"
        )
    if not FLAGS.do_train:
        return
    if before.get("train_records") != values["train_records"]:
        logging.warning(
            "the training records are not those that this run began with: it goes on, but not as "
            "it would have"
        )
    for name in _TRAJECTORY_FLAGS:
        was, now = before.get("flags", {}).get(name), values["flags"][name]
        if was != now:
            logging.warning(
                "%s is %r and was %r when this run began: it goes on, but not as it would have",
                name,
                now,
                was,
            )


# --- the run --------------------------------------------------------------------------------------


def _training_dataset(plan: Plan, phase: Phase, step: int, batch_size: int | None = None):
    """Batches of a phase from a step on, which is counted from the beginning of training."""
    from bert_tf.input_pipeline import pretraining_dataset

    return pretraining_dataset(
        [plan.sound_files[path] for path in phase.files],
        batch_size=batch_size or phase.batch_size,
        max_seq_length=phase.max_seq_length,
        max_predictions_per_seq=phase.max_predictions_per_seq,
        is_training=True,
        seed=FLAGS.seed,
        start_step=step - phase.begin,
        masking=phase.masking,
        record_counts=phase.counts,
        vocab_size=plan.config.vocab_size,
        next_sentence=plan.config.next_sentence_prediction,
    )


def _evaluation_dataset(plan: Plan):
    from bert_tf.input_pipeline import pretraining_dataset

    return pretraining_dataset(
        [plan.sound_files[path] for path in plan.eval_files],
        batch_size=FLAGS.eval_batch_size,
        max_seq_length=FLAGS.max_seq_length,
        max_predictions_per_seq=FLAGS.max_predictions_per_seq,
        is_training=False,
        seed=_EVAL_SEED,
        masking=plan.eval_masking,
        max_steps=FLAGS.max_eval_steps or None,
        vocab_size=plan.config.vocab_size,
        next_sentence=plan.config.next_sentence_prediction,
    )


def _baselines(plan: Plan) -> dict[str, float]:
    """What a masked language model's loss should be compared with, in nats per piece."""
    from bert_tf.input_pipeline import label_counts, unigram_cross_entropy

    phase = plan.phases[0]
    records = min(sum(phase.counts), _UNIGRAM_RECORDS)
    batch = min(512, records)
    dataset = _training_dataset(plan, phase, 0, batch)
    counts = label_counts(dataset, plan.config.vocab_size, records // batch)
    held_out = label_counts(_evaluation_dataset(plan), plan.config.vocab_size)
    return {
        "uniform_loss": math.log(plan.config.vocab_size),
        "unigram_loss": unigram_cross_entropy(counts, held_out),
    }


def _print_table(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")


def _write_eval_results(figures: dict[str, float], step: int) -> dict[str, Any]:
    folder = pathlib.Path(FLAGS.output_dir)
    results: dict[str, Any] = {_EVAL_NAMES[name]: value for name, value in figures.items()}
    results["global_step"] = step
    lines = [f"{name} = {results[name]}\n" for name in sorted(results)]
    (folder / "eval_results.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "eval_results.json").write_text(
        json.dumps(results, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    return results


def _schedule_of_two_phases(plan: Plan) -> dict[str, Any]:
    """Return what `create_optimizer` takes for a second phase with a schedule of its own."""
    if len(plan.phases) < 2 or FLAGS.second_learning_rate is None:
        return {}
    from bert_tf.optimization import WarmupLinearDecay

    first, second = plan.phases
    then = WarmupLinearDecay(
        FLAGS.second_learning_rate, second.end - second.begin, FLAGS.second_num_warmup_steps
    )
    return {"num_train_steps": first.end, "then": then}


def _rows_of(phase: Phase) -> list[tuple[str, str]]:
    """Return what the table at the beginning says of a phase."""
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


def _train(plan: Plan, trainer: Any) -> dict[str, float]:
    """Train all phases; return the last log line."""
    last: dict[str, float] = {}
    for phase in plan.phases:
        last = (
            trainer.train(
                functools.partial(_training_dataset, plan, phase),
                phase.end,
                sequences_per_batch=phase.batch_size,
                eval_every_steps=FLAGS.eval_every_steps or None,
                evaluate=lambda: trainer.evaluate(_evaluation_dataset(plan)),
                interrupted=preemption.is_asked,
            )
            or last
        )
    return last


def run(plan: Plan, strategy: Any) -> None:
    """Trains and evaluates as the flags say."""
    import contextlib

    import keras
    import tensorflow as tf

    from bert_tf import checkpoint_formats, checkpoint_writers, checkpoints, training
    from bert_tf.heads import bert_pretrainer
    from bert_tf.optimization import create_optimizer
    from experiments.plot_curves import plot_curves

    began = time.time()
    if FLAGS.deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(FLAGS.seed)
    training.set_precision(FLAGS.precision)
    folder = pathlib.Path(FLAGS.output_dir)

    values = {
        "bert_config": plan.config.to_dict(),
        "flags": {name: FLAGS[name].value for name in _FLAG_NAMES},
        "train_records": {
            path: count
            for phase in plan.phases
            for path, count in zip(phase.files, phase.counts, strict=True)
        },
        "eval_files": plan.eval_files,
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
    }
    _check_continuation(plan, values)
    with strategy.scope() if strategy is not None else contextlib.nullcontext():
        model = bert_pretrainer(plan.config, recompute=FLAGS.recompute_layers)
        optimizer = create_optimizer(
            init_lr=FLAGS.learning_rate,
            num_warmup_steps=FLAGS.num_warmup_steps,
            optimizer=FLAGS.optimizer,
            **{"num_train_steps": FLAGS.num_train_steps, **_schedule_of_two_phases(plan)},
            **optimizer_arguments(FLAGS),
        )
        if FLAGS.precision == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    trainer = training.Trainer(
        model,
        optimizer,
        training.PretrainingObjective(plan.config.next_sentence_prediction),
        folder,
        jit_compile=FLAGS.jit_compile,
        log_steps=FLAGS.log_steps,
        save_checkpoints_steps=None if FLAGS.measure_only else FLAGS.save_checkpoints_steps,
        keep_checkpoints=FLAGS.keep_checkpoints,
        steps_per_call=FLAGS.iterations_per_loop,
        tensorboard=FLAGS.tensorboard,
        strategy=strategy,
        **trainer_arguments(FLAGS),
    )
    chief = trainer.is_chief
    try:
        restored = trainer.restore()
        if restored is None and plan.init is not None:
            transfer = checkpoints.load_checkpoint(
                model,
                plan.init,
                ignore=[x for x in FLAGS.init_ignore.split(",") if x],
                allow_missing=[x for x in FLAGS.init_allow_missing.split(",") if x],
            )
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error
    if restored is None and plan.init is not None:
        print(f"weights from {transfer.description}")
        if transfer.missing:
            print(f"not in it, so freshly drawn: {', '.join(transfer.missing)}")
    elif restored is None and not FLAGS.do_train:
        raise InputError(
            f"do_eval: {folder} holds no checkpoint and init_checkpoint is not given: there is "
            "nothing to evaluate"
        )
    if FLAGS.measure_only:
        for phase in plan.phases:
            trainer.train(
                functools.partial(_training_dataset, plan, phase),
                trainer.step + FLAGS.num_train_steps,
                sequences_per_batch=phase.batch_size,
            )
        return
    if not chief:  # which takes part in what the chief computes, and leaves files to it
        if FLAGS.do_train:
            _train(plan, trainer)
        if FLAGS.do_eval:
            trainer.evaluate(_evaluation_dataset(plan))
        print("this worker has finished; results are written by the chief, worker 0")
        return
    if FLAGS.do_train:
        training.write_config(folder, values)
        checkpoint_writers.save_config_and_vocabulary(folder, plan.config, plan.vocab_file)
    baselines = _baselines(plan)
    where = "held-out" if plan.held_out else "training (no eval_input_file)"
    print("pre-training:")
    _print_table(
        [
            ("parameters", f"{model.count_params():,}"),
            *(row for phase in plan.phases for row in _rows_of(phase)),
            ("begins at", f"step {trainer.step:,}" + (" (continued)" if restored else "")),
            ("device", describe_devices(strategy)),
            ("precision", FLAGS.precision + (", XLA" if trainer.jit_compile else "")),
            ("MLM loss, uniform", f"{baselines['uniform_loss']:.4f} (ln of the vocabulary size)"),
            ("MLM loss, unigram", f"{baselines['unigram_loss']:.4f} (on the {where} records)"),
        ]
    )
    sys.stdout.flush()

    last: dict[str, float] = {}
    trained_seconds, first_step = 0.0, trainer.step
    if FLAGS.do_train:
        if not training.read_metrics_or_nothing(folder / training.METRICS_NAME, "baseline"):
            trainer.log_line("baseline", baselines)
        # The model of an earlier run of this folder must not be taken for this one's.
        (folder / f"{checkpoint_formats.WEIGHTS_NAME}.index").unlink(missing_ok=True)
        since = time.time()
        last = _train(plan, trainer)
        trained_seconds = time.time() - since
        with trainer.averaged_weights():
            checkpoint_writers.save_model_directory(
                folder, model, plan.vocab_file, step=trainer.step
            )

    results: dict[str, Any] = {}
    if FLAGS.do_eval:
        figures = trainer.evaluate(_evaluation_dataset(plan))
        known = training.read_metrics_or_nothing(folder / training.METRICS_NAME, "eval")
        if FLAGS.do_train and not any(line["step"] == trainer.step for line in known):
            trainer.log_line("eval", {f"eval_{name}": value for name, value in figures.items()})
        results = _write_eval_results(figures, trainer.step)
        print(f"evaluation on {where} records:")
        _print_table([(name, f"{results[name]:.6g}") for name in sorted(results)])
    summary = [("global step", f"{trainer.step:,}")]
    if last:
        sequences = sum(
            max(0, phase.end - max(phase.begin, first_step)) * phase.batch_size
            for phase in plan.phases
        )
        summary += [
            ("training MLM loss", f"{last['mlm_loss']:.4f} (last {FLAGS.log_steps} steps)"),
            (
                "wall time of training",
                f"{trained_seconds:.0f} s, {sequences / trained_seconds:.1f} sequences/s",
            ),
        ]
    if results:
        gain = baselines["unigram_loss"] - results["masked_lm_loss"]
        summary.append(
            (
                f"{where} MLM loss",
                f"{results['masked_lm_loss']:.4f} (unigram {baselines['unigram_loss']:.4f}, "
                f"uniform {baselines['uniform_loss']:.4f}; {gain:+.4f} better than unigram)",
            )
        )
    if training.read_metrics_or_nothing(folder / training.METRICS_NAME, "train"):
        try:
            png = plot_curves(folder / training.METRICS_NAME, folder / "curves.png")
            summary.append(("curves", str(png)))
        except ImportError:
            logging.warning("no curves: the package matplotlib is not installed")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    summary += [
        ("model directory", str(folder)),
        ("wall time in all", f"{time.time() - began:.0f} s"),
        ("peak memory", f"{peak:.2f} GiB"),
    ]
    print("summary:")
    _print_table(summary)


def find_batch_size(multiple: int) -> None:
    """Measures the largest training batch that fits, each in a process of its own."""
    import tempfile

    limit = memory.available_bytes()
    if FLAGS.memory_limit_gib is not None:
        limit = int(FLAGS.memory_limit_gib * 2**30)
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
            trial = memory.try_within(command, limit)
        peaks[batch_size] = trial.peak_bytes
        verdict = "fits" if trial.fits else "does not fit"
        print(f"  {batch_size}: {verdict}, {trial.peak_bytes / 2**30:.2f} GiB at most", flush=True)
        return trial.fits

    best = memory.largest_batch_size(fits, multiple)
    if not best:
        raise InputError(f"find_batch_size: not even a batch of {multiple} fits")
    print(f"largest train_batch_size that fits: {best} ({peaks[best] / 2**30:.2f} GiB)")


def main(_) -> int:
    """Runs the script; bad input gives one line and exit status 1."""
    from bert_tf.training import NonFiniteLossError, StoppedError

    logging.set_verbosity(max(logging.INFO, logging.get_verbosity()))
    try:
        _check_flags()
        if FLAGS.find_batch_size:
            find_batch_size(max(1, FLAGS.num_replicas or 1) * FLAGS.gradient_accumulation_steps)
            return 0
        # Before anything else of TensorFlow runs.
        strategy = strategy_of(FLAGS)
        check_batch_sizes(FLAGS, strategy, ["eval_batch_size"] if FLAGS.do_eval else [])
        plan = make_plan()
    except (ValueError, OSError) as error:
        if logging.level_debug():
            raise
        print(f"run_pretraining.py: error: {error}", file=sys.stderr)
        return 1
    preemption.listen()
    try:
        run(plan, strategy)
    except StoppedError as error:
        print(f"run_pretraining.py: {error}", file=sys.stderr)
        return preemption.STATUS
    except (InputError, NonFiniteLossError) as error:
        print(f"run_pretraining.py: error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if not memory.is_out_of_memory(error):
            raise
        message = memory.out_of_memory_message(error, FLAGS)
        print(f"run_pretraining.py: error: {message}", file=sys.stderr)
        return memory.OUT_OF_MEMORY_STATUS
    return 0


if __name__ == "__main__":
    define_flags(FLAGS)
    app.run(main)
