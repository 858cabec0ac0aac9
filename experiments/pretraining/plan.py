"""What a pre-training run will do: flags, records and checkpoint checked against each other."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from typing import Any

from absl import flags, logging

from experiments.command_line.exit_status import InputError
from experiments.pretraining.flags import first_phase_steps


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
    sound_files: dict[str, str]  # record file -> where its sound records are read


def _sha256(path: str) -> str:
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def _find_vocabulary(
    values: flags.FlagValues, manifests: list[dict[str, Any]], init: Any
) -> str | None:
    """Find the vocabulary file: as given, by the records' manifest, or the checkpoint's."""
    if values.vocab_file:
        if not os.path.isfile(values.vocab_file):
            raise InputError(f"vocab_file: no such file: {values.vocab_file}")
        return values.vocab_file
    sums = {m["vocab_sha256"] for m in manifests if "vocab_sha256" in m}
    places = [m.get("flags", {}).get("vocab_file") for m in manifests]
    places += [init.located.vocab_file if init else None, f"{values.output_dir}/vocab.txt"]
    for place in places:
        if place and os.path.isfile(place) and _sha256(place) in sums:
            return place
    return None


def _check_vocabulary(
    values: flags.FlagValues, vocab_file: str | None, manifests: list[dict[str, Any]], init: Any
) -> None:
    from bert_tf.tokenization.vocabulary import validate_case_matches_checkpoint

    known = {m["vocab_sha256"] for m in manifests if "vocab_sha256" in m}
    if vocab_file and known and known != {_sha256(vocab_file)}:
        raise InputError(
            f"vocab_file: {vocab_file} is not the vocabulary that the records were made with "
            "(the checksum in their manifest differs)"
        )
    casings = {m["do_lower_case"] for m in manifests if "do_lower_case" in m}
    if values.do_lower_case is not None:
        casings.add(values.do_lower_case)
    if len(casings) > 1:
        raise InputError(
            "do_lower_case: records of different casing, or another casing than the flag says"
        )
    if init is None:
        return
    for casing in casings:
        validate_case_matches_checkpoint(casing, init.located.path)
    sums = known or ({_sha256(vocab_file)} if vocab_file else set())
    theirs = init.located.vocab_file
    if theirs and sums and sums != {_sha256(theirs)}:
        raise InputError(
            f"init_checkpoint: its vocabulary {theirs} is not the one that the records "
            "were made with"
        )


def _find_config(values: flags.FlagValues, vocab_size: int | None, init: Any) -> Any:
    from bert_tf.config import BertConfig

    if values.bert_config_file:
        return BertConfig.from_json_file(values.bert_config_file)
    if values.model_size:
        if vocab_size is None:
            raise InputError(
                "model_size: the vocabulary's size is not known, since the records have no "
                "manifest; give vocab_file"
            )
        return BertConfig.from_size(values.model_size, vocab_size=vocab_size)
    if init is not None and init.config is not None:
        return init.config
    raise InputError("bert_config_file, model_size: expected one of them, got neither")


def _masking_rule(
    values: flags.FlagValues, manifest: dict[str, Any] | None, vocab_file: str | None
) -> Any:
    from bert_tf.input_pipeline.masking import MaskingRule
    from bert_tf.tokenization.vocabulary import load_vocab

    if vocab_file is None:
        raise InputError(
            "vocab_file: the records are unmasked, for dynamic masking, which needs the "
            "vocabulary that they were made with"
        )
    made = {**(manifest or {}).get("flags", {}), **(manifest or {})}
    return MaskingRule(
        load_vocab(vocab_file),
        masked_lm_prob=made.get("masked_lm_prob", values.masked_lm_prob),
        whole_word=made.get("do_whole_word_mask", values.do_whole_word_mask),
        **{k: made[k] for k in ("mask_prob", "random_prob", "keep_prob") if k in made},
    )


def make_plan(values: flags.FlagValues) -> Plan:
    """Check flags, files and data against each other before anything is built.

    Raises:
        ValueError: something does not fit; one line says what.
        OSError: a file is missing or cannot be read.
    """
    from bert_tf.config import BertConfig
    from bert_tf.input_pipeline.masking import NextPieceRule
    from bert_tf.input_pipeline.record_checks import (
        check_manifests,
        check_record_shape,
        check_records,
        damage_report,
        expand_files,
        manifests_of,
    )
    from bert_tf.models.layers import recomputed_layers
    from bert_tf.tokenization.vocabulary import check_special_tokens, load_vocab
    from bert_tf.weights.checkpoint import open_checkpoint

    train_files = expand_files(values.input_file)
    eval_files = expand_files(values.eval_input_file) if values.eval_input_file else train_files
    second_files = expand_files(values.second_input_file) if values.second_input_file else []
    every_file = list(dict.fromkeys(train_files + second_files + eval_files))
    check_manifests(every_file)
    manifests = manifests_of(every_file)
    manifest = manifests[0] if manifests else None
    init = None
    if values.init_checkpoint:
        given = (
            BertConfig.from_json_file(values.bert_config_file) if values.bert_config_file else None
        )
        init = open_checkpoint(values.init_checkpoint, config=given)

    vocab_file = _find_vocabulary(values, manifests, init)
    _check_vocabulary(values, vocab_file, manifests, init)
    vocab_size = None
    if vocab_file:
        vocab = load_vocab(vocab_file)
        check_special_tokens(vocab, vocab_file)
        vocab_size = max(vocab.values()) + 1
    elif manifest and "vocab_size" in manifest:
        vocab_size = manifest["vocab_size"]
    config = _find_config(values, vocab_size, init)
    if vocab_size is not None and config.vocab_size < vocab_size:
        raise InputError(
            f"vocab_size: the model has {config.vocab_size} pieces, the vocabulary {vocab_size}"
        )
    recomputed_layers(values.recompute_layers, config.num_hidden_layers)  # refuses what is wrong
    for name in ("max_seq_length", "second_max_seq_length" if second_files else "max_seq_length"):
        if getattr(values, name) > config.max_position_embeddings:
            raise InputError(
                f"{name}: the model has {config.max_position_embeddings} positions, "
                f"got {getattr(values, name)}"
            )

    def shape_of(files, prefix=""):
        return check_record_shape(
            files,
            getattr(values, f"{prefix}max_seq_length"),
            getattr(values, f"{prefix}max_predictions_per_seq"),
            values.skip_corrupt_records,
        )

    train_shape, eval_shape = shape_of(train_files), shape_of(eval_files)
    second_shape = shape_of(second_files, "second_") if second_files else None
    logging.info("checking %d record files", len(every_file))
    found = check_records(
        every_file,
        vocab_size=config.vocab_size,
        skip_corrupt_records=values.skip_corrupt_records,
    )
    checked = dict(zip(every_file, found, strict=True))
    for line in damage_report(found):
        logging.warning("%s", line)

    def masking(files, shape):
        if config.left_to_right:
            if shape.masked:
                raise InputError(
                    f"{files[0]}: holds masked records; a left-to-right model predicts what "
                    "follows: make them with --dynamic_masking, which masks nothing"
                )
            return NextPieceRule()
        of_files = manifests_of(files)
        return (
            None if shape.masked else _masking_rule(values, next(iter(of_files), None), vocab_file)
        )

    def phase(files, shape, prefix, begin, end):
        batch_size = getattr(values, f"{prefix}train_batch_size")
        return Phase(
            files,
            [checked[path].num_records for path in files],
            masking(files, shape),
            getattr(values, f"{prefix}max_seq_length"),
            getattr(values, f"{prefix}max_predictions_per_seq"),
            values.train_batch_size if batch_size is None else batch_size,
            begin,
            end,
        )

    steps, boundary = values.num_train_steps, first_phase_steps(values)
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
        sound_files={path: file.path for path, file in checked.items()},
    )
