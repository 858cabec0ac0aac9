"""What a pre-training run will do: options, records and checkpoint checked against each other."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from absl import logging

from bert_tf.config import BertConfig
from bert_tf.files import is_file, local_copy, sha256
from bert_tf.input_pipeline.masking import MaskingRule, NextPieceRule
from bert_tf.input_pipeline.record_checks import (
    CheckedFile,
    check_manifests,
    check_record_shape,
    check_records,
    damage_report,
    expand_files,
    manifests_of,
    without_empty_shards,
)
from bert_tf.input_pipeline.row_packing import count_rows
from bert_tf.input_pipeline.token_batches import LengthCounts, TokenBatches, count_lengths
from bert_tf.models.layers import recomputed_layers
from bert_tf.tokenization import vocabulary
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.training.trainer import resolve_jit_compile
from bert_tf.weights.checkpoint import Checkpoint, open_checkpoint
from bert_tf.weights.locate import CONFIG_NAME
from experiments.command_line.exit_status import InputError
from experiments.pretraining.options import PhaseOptions, PretrainingOptions
from experiments.pretraining.teacher import PretrainingTeacher

Manifest = dict[str, Any]
_WIDEST_BIN = 64  # tokens, of length_bins where no flag says it
SEQUENCES_PER_ROW = 8  # at most, where they are packed; more would save little
Masking = MaskingRule | NextPieceRule | None  # None where the records are masked


@dataclasses.dataclass(frozen=True)
class Phase(PhaseOptions):
    """A phase and its records.

    Attributes:
        files: the record files.
        counts: sound records of each.
        masking: how their predictions are chosen.
        length_bins: tokens in steps of which its batches are padded; 0 for batches as they come.
        row_counts: rows of each, where several sequences share a row.
        length_counts: how many there are of each length, where batches are of so many tokens.
        batch_multiple: of which the rows of such batches are one.
    """

    files: list[str]
    counts: list[int]
    masking: Masking
    length_bins: int
    row_counts: list[int] | None = None
    length_counts: LengthCounts | None = None
    batch_multiple: int = 1

    @property
    def token_batches(self) -> TokenBatches | None:
        """The batches of an epoch, where they are of so many tokens and were counted."""
        if self.batch_tokens is None or self.length_counts is None:
            return None
        return TokenBatches(
            self.length_counts, self.length_bins, self.batch_tokens, self.batch_multiple
        )

    @property
    def rows(self) -> int:
        """Rows of an epoch; records, where each has a row of its own."""
        return sum(self.row_counts or self.counts)

    @property
    def batches_per_epoch(self) -> float:
        """Batches of an epoch."""
        batches = self.token_batches
        return self.rows / self.batch_size if batches is None else batches.num_batches

    @property
    def sequences_per_batch(self) -> float:
        """Sequences of a batch, on the average over an epoch."""
        if self.batch_tokens is None:
            return self.batch_size * sum(self.counts) / self.rows
        return sum(self.counts) / self.batches_per_epoch


@dataclasses.dataclass(frozen=True)
class Plan:
    """What validation found out, before anything is built."""

    config: BertConfig
    phases: list[Phase]
    eval_files: list[str]
    held_out: bool
    eval_masking: Masking
    vocab_file: str | None
    mask_id: int | None  # of [MASK]; None without a vocabulary, or where none is shown
    tokenizer: FullTokenizer | None
    init: Checkpoint | None
    teacher: PretrainingTeacher | None
    sound_files: dict[str, str]  # record file -> where its sound records are read


def make_plan(options: PretrainingOptions, num_replicas: int = 1) -> Plan:
    """Check options, files and data against each other before anything is built.

    Args:
        options: of the command.
        num_replicas: that share a batch.

    Raises:
        ValueError: something does not fit; one line says what.
        OSError: a file is missing or cannot be read.
    """
    phase_files = [without_empty_shards(expand_files(phase.input_file)) for phase in options.phases]
    train_files = [path for files in phase_files for path in files]
    eval_files = phase_files[0]
    if options.eval_input_file:
        eval_files = without_empty_shards(expand_files(options.eval_input_file))
    every_file = list(dict.fromkeys(train_files + eval_files))
    check_manifests(every_file)
    manifests = manifests_of(every_file)
    init = _open_initial_weights(options)
    vocab_file = _find_vocabulary(options, manifests, init)
    _check_vocabulary(options, vocab_file, manifests, init)
    # Without training nothing is learnt from it.
    teacher = PretrainingTeacher.find(options.teacher) if options.do_train else None
    config = _find_config(options, _vocab_size(vocab_file, manifests), init, teacher)
    _check_objective(options, config)
    if teacher is not None:
        longest = max(phase.max_seq_length for phase in options.phases)
        teacher.check(config, vocab_file, longest)

    def masking_of(files: list[str], max_seq_length: int, max_predictions_per_seq: int) -> Masking:
        skip = options.skip_corrupt_records
        shape = check_record_shape(files, max_seq_length, max_predictions_per_seq, skip)
        return _masking(options, config, files, shape.masked, vocab_file)

    maskings = [
        masking_of(files, phase.max_seq_length, phase.max_predictions_per_seq)
        for files, phase in zip(phase_files, options.phases, strict=True)
    ]
    for phase, masking in zip(options.phases, maskings, strict=True):
        warn_of_predictions_cut_off(phase, masking)
    eval_masking = masking_of(eval_files, options.max_seq_length, options.max_predictions_per_seq)
    checked = _check_every_record(options, every_file, config)
    phases = [
        Phase(
            **dataclasses.asdict(phase),
            files=files,
            counts=[checked[path].num_records for path in files],
            masking=masking,
            length_bins=length_bins_of(options, phase),
            row_counts=_row_counts(options, phase, [checked[x].path for x in files], masking),
            length_counts=_length_counts(options, phase, [checked[x].path for x in files], masking),
            batch_multiple=num_replicas * options.training.gradient_accumulation_steps,
        )
        for files, masking, phase in zip(phase_files, maskings, options.phases, strict=True)
    ]
    return Plan(
        config=config,
        phases=phases,
        eval_files=eval_files,
        held_out=not {*map(os.path.realpath, eval_files)} & {*map(os.path.realpath, train_files)},
        eval_masking=eval_masking,
        vocab_file=vocab_file,
        mask_id=_mask_id(config, vocab_file, manifests_of(eval_files)),
        tokenizer=_tokenizer(options, vocab_file, manifests),
        init=init,
        teacher=teacher,
        sound_files={path: file.path for path, file in checked.items()},
    )


def length_bins_of(options: PretrainingOptions, phase: PhaseOptions) -> int:
    """Return the `length_bins` of a phase of a run that begins."""
    if options.pack_sequences:
        return 0
    if options.length_bins is not None:
        return options.length_bins
    lengths = 8 if resolve_jit_compile(options.training.jit_compile) else 16  # XLA compiles each
    return min(_WIDEST_BIN, -(-phase.max_seq_length // lengths))


# === Vocabulary and model ===


def _check_objective(options: PretrainingOptions, config: BertConfig) -> None:
    if options.next_sentence_weight != 1 and not config.next_sentence_prediction:
        logging.warning(
            "next_sentence_weight: without effect, since the configuration has no next sentence "
            "prediction"
        )


def _open_initial_weights(options: PretrainingOptions) -> Checkpoint | None:
    if not options.init_checkpoint:
        return None
    path = options.bert_config_file
    config = BertConfig.from_json_file(path) if path else None
    return open_checkpoint(options.init_checkpoint, config=config)


def _vocabulary_beside(init: Checkpoint | None) -> str | None:
    return init.located.vocab_file if init and init.located else None


def _find_vocabulary(
    options: PretrainingOptions, manifests: Sequence[Manifest], init: Checkpoint | None
) -> str | None:
    """Find the vocabulary file: as given, by the records' manifest, or the checkpoint's."""
    if options.vocab_file:
        if not is_file(options.vocab_file):
            raise InputError(f"vocab_file: no such file: {options.vocab_file}")
        return local_copy(options.vocab_file)
    sums = {m["vocab_sha256"] for m in manifests if "vocab_sha256" in m}
    places = [m.get("flags", {}).get("vocab_file") for m in manifests]
    places += [_vocabulary_beside(init), f"{options.output_dir}/vocab.txt"]
    for place in places:
        with contextlib.suppress(ValueError, OSError):  # of a place that is remote from here
            if place and is_file(place) and sha256(place) in sums:
                return local_copy(place)
    return None


def _check_vocabulary(
    options: PretrainingOptions,
    vocab_file: str | None,
    manifests: Sequence[Manifest],
    init: Checkpoint | None,
) -> None:
    known = {m["vocab_sha256"] for m in manifests if "vocab_sha256" in m}
    if vocab_file and known and known != {sha256(vocab_file)}:
        raise InputError(
            f"vocab_file: {vocab_file} is not the vocabulary that the records were made with "
            "(the checksum in their manifest differs)"
        )
    casings = {m["do_lower_case"] for m in manifests if "do_lower_case" in m}
    if options.do_lower_case is not None:
        casings.add(options.do_lower_case)
    if len(casings) > 1:
        raise InputError(
            "do_lower_case: records of different casing, or another casing than the flag says"
        )
    if len(_strip_accents(options, manifests)) > 1:
        raise InputError(
            "strip_accents: records with and without accents, or others than the flag says"
        )
    if init is None or init.located is None:
        return
    for casing in casings:
        vocabulary.validate_case_matches_checkpoint(casing, init.located.path)
    sums = known or ({sha256(vocab_file)} if vocab_file else set())
    of_checkpoint = _vocabulary_beside(init)
    if of_checkpoint and sums and sums != {sha256(of_checkpoint)}:
        raise InputError(
            f"init_checkpoint: its vocabulary {of_checkpoint} is not the one that the records "
            "were made with"
        )


def _strip_accents(options: PretrainingOptions, manifests: Sequence[Manifest]) -> set[bool]:
    """Return whether the text of records, by manifests and flag, lost its accents."""
    found = {
        m["do_lower_case"] if m.get("strip_accents") is None else m["strip_accents"]
        for m in manifests
        if "do_lower_case" in m
    }
    return found if options.strip_accents is None else found | {options.strip_accents}


def _tokenizer(
    options: PretrainingOptions, vocab_file: str | None, manifests: Sequence[Manifest]
) -> FullTokenizer | None:
    """Return the tokenizer that the records were made with, where the vocabulary is known."""
    if vocab_file is None:
        return None
    casings = [options.do_lower_case, *(m.get("do_lower_case") for m in manifests), True]
    casing = next(value for value in casings if value is not None)
    strip_accents = next(iter(_strip_accents(options, manifests)), None)
    return FullTokenizer(vocab_file, casing, strip_accents=strip_accents)


def _vocab_size(vocab_file: str | None, manifests: Sequence[Manifest]) -> int | None:
    if vocab_file:
        vocab = vocabulary.load_vocab(vocab_file)
        vocabulary.check_special_tokens(vocab, vocab_file)
        return max(vocab.values()) + 1
    return manifests[0].get("vocab_size") if manifests else None


def _mask_id(
    config: BertConfig, vocab_file: str | None, manifests: Sequence[Manifest]
) -> int | None:
    if vocab_file is None or config.left_to_right:
        return None
    if any(m.get("flags", {}).get("mask_prob") == 0 for m in manifests):
        return None  # as of an ablation that shows [MASK] nowhere
    return vocabulary.load_vocab(vocab_file)[vocabulary.MASK_TOKEN]


def _find_config(
    options: PretrainingOptions,
    vocab_size: int | None,
    init: Checkpoint | None,
    teacher: PretrainingTeacher | None,
) -> BertConfig:
    """Return the model's configuration, in which the vocabulary and all sequences have room."""
    if options.bert_config_file:
        config = BertConfig.from_json_file(options.bert_config_file)
    elif options.model_size:
        if vocab_size is None:
            raise InputError(
                "model_size: the vocabulary's size is not known, since the records have no "
                "manifest; give vocab_file"
            )
        config = BertConfig.from_size(options.model_size, vocab_size=vocab_size)
    elif teacher is not None and teacher.student_config is not None:
        config = teacher.student_config
    elif init is not None and init.config is not None:
        config = init.config
    elif not options.do_train and is_file(f"{options.output_dir}/{CONFIG_NAME}"):
        config = BertConfig.from_json_file(f"{options.output_dir}/{CONFIG_NAME}")
    else:
        raise InputError("bert_config_file, model_size: expected one of them, got neither")
    if vocab_size is not None and config.vocab_size < vocab_size:
        raise InputError(
            f"vocab_size: the model has {config.vocab_size} pieces, the vocabulary {vocab_size}"
        )
    # Refuses layers that the model does not have.
    recomputed_layers(options.training.recompute_layers, config.num_hidden_layers)
    for phase in options.phases:
        if phase.max_seq_length > config.max_position_embeddings:
            raise InputError(
                f"{phase.prefix}max_seq_length: the model has {config.max_position_embeddings} "
                f"positions, got {phase.max_seq_length}"
            )
    return config


# === Records ===


def _check_every_record(
    options: PretrainingOptions, files: Sequence[str], config: BertConfig
) -> dict[str, CheckedFile]:
    logging.info("checking %d record files", len(files))
    checked = check_records(
        files,
        vocab_size=config.vocab_size,
        type_vocab_size=config.type_vocab_size,
        next_sentence=config.next_sentence_prediction,
        skip_corrupt_records=options.skip_corrupt_records,
    )
    for line in damage_report(checked):
        logging.warning("%s", line)
    return dict(zip(files, checked, strict=True))


def _row_counts(
    options: PretrainingOptions, phase: PhaseOptions, files: Sequence[str], masking: Masking
) -> list[int] | None:
    """Count the rows that the records of a phase take, where several share one."""
    if not options.pack_sequences or not options.do_train:
        return None
    if options.measure_only:
        return [1] * len(files)  # the memory of a step does not depend on them
    logging.info("packing the records of %d files", len(files))
    return count_rows(
        files,
        max_seq_length=phase.max_seq_length,
        max_predictions_per_seq=phase.max_predictions_per_seq,
        sequences_per_row=SEQUENCES_PER_ROW,
        masking=masking,
    )


def _length_counts(
    options: PretrainingOptions, phase: PhaseOptions, files: Sequence[str], masking: Masking
) -> LengthCounts | None:
    """Count the records of each length of a phase, where batches are of so many tokens."""
    if phase.batch_tokens is None or not options.do_train:
        return None
    logging.info("counting the lengths of the records of %d files", len(files))
    return count_lengths(
        files,
        max_seq_length=phase.max_seq_length,
        max_predictions_per_seq=phase.max_predictions_per_seq,
        masking=masking,
    )


def check_batch_tokens(options: PretrainingOptions, num_replicas: int) -> None:
    """Refuse batches of so few tokens that a replica would have no sequence.

    Raises:
        InputError: one line names the option.
    """
    steps = options.training.gradient_accumulation_steps
    for phase in options.phases:
        least = phase.max_seq_length * num_replicas * steps
        if phase.batch_tokens is not None and phase.batch_tokens < least:
            name = "second_" if options.second_train_batch_tokens and phase.prefix else ""
            raise InputError(
                f"{name}train_batch_tokens: expected at least {least}, {phase.prefix}"
                f"max_seq_length {phase.max_seq_length} x {num_replicas} replicas x {steps} "
                f"accumulation steps, got {phase.batch_tokens}"
            )


def warn_of_predictions_cut_off(phase: PhaseOptions, masking: Masking) -> None:
    """Warn where dynamic masking would predict more than there is room for."""
    if not isinstance(masking, MaskingRule):
        return
    predictions = phase.max_seq_length * masking.masked_lm_prob
    if phase.max_predictions_per_seq < int(predictions):
        logging.warning(
            "%smax_predictions_per_seq %d cuts off predictions: max_seq_length * masked_lm_prob is "
            "%g; give at least %d",
            phase.prefix,
            phase.max_predictions_per_seq,
            predictions,
            round(predictions),
        )


def _masking(
    options: PretrainingOptions,
    config: BertConfig,
    files: Sequence[str],
    are_masked: bool,
    vocab_file: str | None,
) -> Masking:
    """Return the rule by which the predictions of record files are chosen."""
    if config.left_to_right:
        if are_masked:
            raise InputError(
                f"{files[0]}: holds masked records; a left-to-right model predicts what "
                "follows: make them with --dynamic_masking, which masks nothing"
            )
        return NextPieceRule()
    if are_masked:
        return None
    if vocab_file is None:
        raise InputError(
            "vocab_file: the records are unmasked, for dynamic masking, which needs the "
            "vocabulary that they were made with"
        )
    manifest = next(iter(manifests_of(files)), {})
    settings = {**manifest.get("flags", {}), **manifest}
    mix = ("mask_prob", "random_prob", "keep_prob")
    return MaskingRule(
        vocabulary.load_vocab(vocab_file),
        masked_lm_prob=settings.get("masked_lm_prob", options.masked_lm_prob),
        whole_word=settings.get("do_whole_word_mask", options.do_whole_word_mask),
        **{name: settings[name] for name in mix if name in settings},
    )
