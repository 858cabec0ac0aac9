"""The model that fine-tuning begins with, or that evaluation is of."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib

from absl import logging

from bert_tf.config import BertConfig
from bert_tf.files import local_copy
from bert_tf.models.layers import recomputed_layers
from bert_tf.tasks.kinds import get_kind
from bert_tf.tasks.trained_task import TrainedTask, read_trained_task
from bert_tf.tokenization import vocabulary
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.training.trainer import set_precision
from bert_tf.weights.checkpoint import Checkpoint, open_checkpoint
from bert_tf.weights.load import LoadedModel, load_model
from bert_tf.weights.tokenizers import load_tokenizer, write_vocabulary
from experiments.command_line.exit_status import InputError
from experiments.command_line.weights_digest import weights_digest
from experiments.finetuning.options import FineTuningOptions


@dataclasses.dataclass(frozen=True)
class InitialModel:
    """The model that a run begins with.

    Attributes:
        config: its configuration.
        vocab_file: its vocabulary.
        do_lower_case: its casing.
        strip_accents: whether its tokenizer strips accents; None as its casing.
        checkpoint: its weights, opened; None for random ones.
        description: one phrase.
    """

    config: BertConfig
    vocab_file: str
    do_lower_case: bool
    strip_accents: bool | None
    checkpoint: Checkpoint | None
    description: str

    @functools.cached_property
    def tokenizer(self) -> FullTokenizer:
        """The tokenizer."""
        return FullTokenizer(self.vocab_file, self.do_lower_case, strip_accents=self.strip_accents)

    @functools.cached_property
    def weights_digest(self) -> str:
        """A short digest of the content of the weights' files, wherever they lie."""
        return weights_digest(self.checkpoint)

    @property
    def weights_path(self) -> pathlib.Path | None:
        """Where the weights lie; None for random ones."""
        located = self.checkpoint.located if self.checkpoint is not None else None
        return pathlib.Path(located.path) if located is not None else None

    def trained(self, folder: str | os.PathLike) -> InitialModel:
        """Return the same with the weights that a run has left in its folder."""
        return dataclasses.replace(self, checkpoint=open_checkpoint(folder))


def initial_model(options: FineTuningOptions) -> InitialModel:
    """Find the model that the options name: --model_dir, or the original's three flags.

    Raises:
        InputError: options are missing or contradict each other.
        ValueError, OSError: files cannot be read or do not fit.
    """
    model = options.model
    place = model.model_dir or model.init_checkpoint
    if model.model_dir and model.init_checkpoint:
        raise InputError("give --model_dir or --init_checkpoint, not both")
    if not options.do_train and place is None:
        place = options.output_dir
    config = BertConfig.from_json_file(model.bert_config_file) if model.bert_config_file else None
    checkpoint = open_checkpoint(place, config=config) if place else None
    config = config or (checkpoint.config if checkpoint else None)
    if config is None:
        raise InputError("give --model_dir, or --bert_config_file, --vocab_file, --init_checkpoint")
    vocab_file, do_lower_case, strip_accents = _vocabulary_and_casing(options, checkpoint)
    vocab = vocabulary.load_vocab(vocab_file)
    vocabulary.check_special_tokens(vocab, vocab_file)
    if max(vocab.values()) >= config.vocab_size:
        raise InputError(
            f"vocab_file: {vocab_file} has {max(vocab.values()) + 1} pieces, the model "
            f"{config.vocab_size}"
        )
    for doubt in vocabulary.vocabulary_doubts(vocab, do_lower_case, config.vocab_size):
        logging.warning("%s: %s", vocab_file, doubt)
    if checkpoint is not None:
        checkpoint.doubts_told = True
    if options.max_seq_length > config.max_position_embeddings:
        raise InputError(
            f"max_seq_length: the model has {config.max_position_embeddings} positions, got "
            f"{options.max_seq_length}"
        )
    # Refuses what is wrong.
    recomputed_layers(options.training.recompute_layers, config.num_hidden_layers)
    if checkpoint is None:
        logging.warning("no --init_checkpoint and no --model_dir: training from random weights")
    description = checkpoint.description if checkpoint else "random weights"
    return InitialModel(config, vocab_file, do_lower_case, strip_accents, checkpoint, description)


def _vocabulary_and_casing(
    options: FineTuningOptions, checkpoint: Checkpoint | None
) -> tuple[str, bool, bool | None]:
    """Return vocabulary, casing and stripping that the options name or the checkpoint has."""
    vocab_file, do_lower_case = options.model.vocab_file, options.model.do_lower_case
    strip_accents = options.model.strip_accents
    if checkpoint is None:
        if not vocab_file:
            raise InputError("vocab_file: needed without --model_dir")
        return local_copy(vocab_file), do_lower_case is not False, strip_accents
    tokenizer = load_tokenizer(checkpoint, do_lower_case)
    if do_lower_case is None:
        # The original's default, where the original's flags are given.
        do_lower_case = tokenizer.do_lower_case if tokenizer and vocab_file is None else True
    if strip_accents is None and tokenizer and vocab_file is None:
        if tokenizer.strip_accents != tokenizer.do_lower_case:
            strip_accents = tokenizer.strip_accents
    if options.model.init_checkpoint:
        vocabulary.validate_case_matches_checkpoint(do_lower_case, options.model.init_checkpoint)
    if not vocab_file:
        if tokenizer is None:
            raise InputError(f"vocab_file: no vocabulary lies with {checkpoint.description}")
        vocab_file = _vocabulary_file(tokenizer, options.output_dir)
    return local_copy(vocab_file), do_lower_case, strip_accents


def _vocabulary_file(tokenizer: FullTokenizer, output_dir: str) -> str:
    """Return the file of a vocabulary; of one that lies in tokenizer.json alone, write one."""
    if tokenizer.vocab_file:
        return tokenizer.vocab_file
    path = pathlib.Path(output_dir) / "vocab.txt"
    write_vocabulary(tokenizer, path)
    return str(path)


def load_trained(options: FineTuningOptions, start: InitialModel, kind: str) -> LoadedModel:
    """Load the fine-tuned model that evaluation and prediction are of; see `find_trained`."""
    return find_trained(options, start, kind)[0]


def find_trained(
    options: FineTuningOptions, start: InitialModel, kind: str
) -> tuple[LoadedModel, pathlib.Path]:
    """Load the fine-tuned model that evaluation and prediction are of, and say where it lies.

    Args:
        options: of the command.
        start: the model that the options name, or what training left.
        kind: key of `tasks.KINDS`.

    Returns:
        The model, and its folder.

    Raises:
        InputError: it is of another kind.
        ValueError, OSError: it cannot be read.
    """
    set_precision(options.training.precision)
    head = get_kind(kind).head
    path = start.weights_path
    assert path is not None  # noqa: S101 - without --do_train there is a checkpoint, and after it
    folder = path.parent
    _check_kind(folder, kind)
    try:
        return load_model(start.checkpoint, kind=head), folder
    except ValueError as error:
        own = pathlib.Path(options.output_dir)
        trained = any(own.glob("bert_model.ckpt*"))
        if options.model.init_checkpoint and not options.do_train and trained:
            # The original's commands give the pre-trained model and take what training left.
            _check_kind(own, kind)
            print(f"{own}: its fine-tuned model is used, as {start.description} has no such head")
            return load_model(own, kind=head), own
        raise InputError(
            f"{error} (there is no --do_train, so a fine-tuned model is needed)"
        ) from error


def trained_task_of(options: FineTuningOptions, start: InitialModel) -> TrainedTask | None:
    """Return what the model that `find_trained` is to find was trained for; None if unknown.

    Args:
        options: of the command.
        start: the model that the options name.

    Raises:
        ValueError: its file is damaged.
    """
    folders = [start.weights_path.parent] if start.weights_path is not None else []
    if options.model.init_checkpoint:
        folders.append(pathlib.Path(options.output_dir))
    return next(filter(None, map(read_trained_task, folders)), None)


def _check_kind(folder: pathlib.Path, kind: str) -> None:
    """Refuse a model that was trained as another kind with the same head.

    Classification, regression and multi_label have one head: its weights do not tell them apart.
    """
    trained = read_trained_task(folder)
    if trained is not None and trained.kind != kind:
        raise InputError(f"{folder}: the model was trained for {trained.kind}, not for {kind}")
