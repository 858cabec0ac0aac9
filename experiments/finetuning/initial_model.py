"""The model that fine-tuning begins with, or that evaluation is of."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
from typing import Any

from absl import flags, logging

from bert_tf.tasks.kinds import get_kind
from bert_tf.tasks.trained_task import read_trained_task
from experiments.command_line.exit_status import InputError


@dataclasses.dataclass(frozen=True)
class StartingPoint:
    """The model that a run begins with.

    Attributes:
        config: its configuration.
        vocab_file: its vocabulary.
        do_lower_case: its casing.
        checkpoint: its weights, opened; None for random ones.
        description: one phrase.
    """

    config: Any
    vocab_file: str
    do_lower_case: bool
    checkpoint: Any
    description: str

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        from bert_tf.tokenization.wordpiece import FullTokenizer

        return FullTokenizer(self.vocab_file, self.do_lower_case)

    @functools.cached_property
    def weights_digest(self) -> str:
        """A short digest of the content of the weights' files, wherever they lie."""
        if self.checkpoint is None:
            return "random weights"
        located = self.checkpoint.located
        path = pathlib.Path(located.path)
        if located.format == "tf":
            files = [p for p in path.parent.iterdir() if p.name.startswith(f"{path.name}.")]
        elif path.is_dir():
            files = [p for p in path.iterdir() if p.name.endswith(".h5")]
        elif path.suffix == ".json":  # names the parts, which lie beside it
            parts = (p for p in path.parent.iterdir() if p.suffix in (".safetensors", ".bin"))
            files = [path, *parts]
        else:
            files = [path]
        digest = hashlib.sha256()
        for file in sorted(files):
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()[:16]

    def trained(self, folder: str | os.PathLike) -> StartingPoint:
        """Return the same with the weights that a run has left in its folder."""
        from bert_tf.weights.checkpoint import open_checkpoint

        return dataclasses.replace(self, checkpoint=open_checkpoint(folder))


def starting_point(values: flags.FlagValues) -> StartingPoint:
    """Find the model that the flags name: --model_dir, or the original's three flags.

    Raises:
        InputError: flags are missing or contradict each other.
        ValueError, OSError: files cannot be read or do not fit.
    """
    from bert_tf.config import BertConfig
    from bert_tf.models.layers import recomputed_layers
    from bert_tf.tokenization.vocabulary import (
        check_special_tokens,
        load_vocab,
        validate_case_matches_checkpoint,
    )
    from bert_tf.weights import checkpoint
    from bert_tf.weights.tokenizers import load_tokenizer

    place = values.model_dir or values.init_checkpoint
    if values.model_dir and values.init_checkpoint:
        raise InputError("give --model_dir or --init_checkpoint, not both")
    if not values.do_train and place is None:
        place = values.output_dir
    config = BertConfig.from_json_file(values.bert_config_file) if values.bert_config_file else None
    opened = checkpoint.open_checkpoint(place, config=config) if place else None
    config = config or (opened.config if opened else None)
    if config is None:
        raise InputError("give --model_dir, or --bert_config_file, --vocab_file, --init_checkpoint")
    if not values.vocab_file and opened is None:
        raise InputError("vocab_file: needed without --model_dir")
    vocab_file, lower = values.vocab_file, values.do_lower_case
    if opened is not None:
        found = load_tokenizer(opened, lower)
        if vocab_file is None and found is None:
            raise InputError(f"vocab_file: no vocabulary lies with {opened.description}")
        if lower is None:
            # The original's default, where the original's flags are given.
            lower = found.do_lower_case if found and values.vocab_file is None else True
        vocab_file = vocab_file or _vocabulary_file(found, values.output_dir)
        if values.init_checkpoint:
            validate_case_matches_checkpoint(lower, values.init_checkpoint)
    lower = True if lower is None else lower
    vocab = load_vocab(vocab_file)
    check_special_tokens(vocab, vocab_file)
    if max(vocab.values()) >= config.vocab_size:
        raise InputError(
            f"vocab_file: {vocab_file} has {max(vocab.values()) + 1} pieces, the model "
            f"{config.vocab_size}"
        )
    if values.max_seq_length and values.max_seq_length > config.max_position_embeddings:
        raise InputError(
            f"max_seq_length: the model has {config.max_position_embeddings} positions, got "
            f"{values.max_seq_length}"
        )
    recomputed_layers(values.recompute_layers, config.num_hidden_layers)  # refuses what is wrong
    description = opened.description if opened else "random weights"
    if opened is None:
        logging.warning("no --init_checkpoint and no --model_dir: training from random weights")
    return StartingPoint(config, vocab_file, lower, opened, description)


def _vocabulary_file(tokenizer: Any, output_dir: str) -> str:
    """Return the file of a vocabulary; of one that lies in tokenizer.json alone, write one."""
    if tokenizer.vocab_file:
        return tokenizer.vocab_file
    from bert_tf.weights.tokenizers import write_vocabulary

    path = pathlib.Path(output_dir) / "vocab.txt"
    write_vocabulary(tokenizer, path)
    return str(path)


def load_trained(values: flags.FlagValues, start: StartingPoint, kind: str) -> Any:
    """Load the fine-tuned model that evaluation and prediction without training are for.

    Returns:
        `checkpoints.LoadedModel`.

    Raises:
        InputError: it is of another kind.
        ValueError, OSError: it cannot be read.
    """
    from bert_tf.training.trainer import set_precision
    from bert_tf.weights.load import load_model

    set_precision(values.precision)
    head = get_kind(kind).head
    _check_kind(start, kind)
    try:
        return load_model(start.checkpoint, kind=head)
    except ValueError as error:
        own = pathlib.Path(values.output_dir)
        if values.init_checkpoint and not values.do_train and any(own.glob("bert_model.ckpt*")):
            # The original's commands give the pre-trained model and take what training left.
            print(f"{own}: its fine-tuned model is used, as {start.description} has no such head")
            return load_model(own, kind=head)
        raise InputError(
            f"{error} (there is no --do_train, so a fine-tuned model is needed)"
        ) from error


def _check_kind(start: StartingPoint, kind: str) -> None:
    """Refuse a model that was trained as another kind with the same head.

    Classification, regression and multi_label have one head: its weights do not tell them apart.
    """
    if start.checkpoint is None:
        return
    folder = pathlib.Path(start.checkpoint.located.path).parent
    trained = read_trained_task(folder)
    if trained is not None and trained.kind != kind:
        raise InputError(f"{folder}: the model was trained for {trained.kind}, not for {kind}")
