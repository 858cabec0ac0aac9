"""A model that gets new words, read from any format and written in the same one."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence

from bert_tf.files import original_names
from bert_tf.tasks.sentence_transformers import (
    read_sentence_transformers,
    write_sentence_transformers,
)
from bert_tf.tasks.trained_task import read_trained_task
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights.checkpoint import open_checkpoint
from bert_tf.weights.keras_hub import save_keras_hub
from bert_tf.weights.load import LoadedModel
from bert_tf.weights.locate import locate
from bert_tf.weights.new_words import load_with_new_words
from bert_tf.weights.save import save_hf, save_keras, save_model_directory
from bert_tf.weights.tokenizers import load_tokenizer

_UNFINISHED = ".unfinished-"
_FORMATS = {
    "tf": "TensorFlow 1 checkpoint",
    "hf": "transformers directory",
    "keras_hub": "KerasHub preset",
    "keras": ".keras file",
    "keras_weights": ".weights.h5 file",
}


class SourceModel:
    """The model as it is.

    Args:
        path: as in `load_model`.
        output_dir: where the extended one will go.

    Raises:
        FileNotFoundError, CorruptCheckpointError: there is none.
        ValueError: the output is not a new or empty folder.
    """

    def __init__(self, path: str, output_dir: str):
        self._checkpoint, self._located = open_checkpoint(path), locate(path)
        folder = pathlib.Path(output_dir)
        if folder.exists() and (not folder.is_dir() or any(map(_is_kept, folder.iterdir()))):
            raise ValueError(f"output_dir: expected a new or empty folder, {output_dir} is not")

    def tokenizer(self, do_lower_case: bool | None, strip_accents: bool | None) -> FullTokenizer:
        """Return the tokenizer that lies with the weights.

        Raises:
            ValueError: there is none.
        """
        tokenizer = load_tokenizer(self._checkpoint, do_lower_case)
        if tokenizer is None:
            raise ValueError(f"model_dir: no vocabulary lies with {self._checkpoint.description}")
        return tokenizer.with_strip_accents(strip_accents)

    def write(
        self,
        output_dir: str,
        tokenizer: FullTokenizer,
        extended: FullTokenizer,
        words: Sequence[str],
    ) -> str:
        """Write the extended model; return what to tell of it.

        Args:
            output_dir: made where it is missing.
            tokenizer: the model's own.
            extended: with the new words; its file is copied.
            words: the new words.

        Raises:
            ValueError: the vocabularies do not fit each other.
            OSError: a file cannot be written; the folder is then as it was.
        """
        located = self._located
        size = None if self._checkpoint.config is None else self._checkpoint.config.vocab_size
        loaded = load_with_new_words(self._checkpoint, tokenizer, extended)
        with _filling(pathlib.Path(output_dir)) as folder:
            _save(loaded, located.format, pathlib.Path(located.path).name, folder)
            if located.format != "keras_hub":
                _save_task(loaded, located.format, pathlib.Path(located.path).parent, folder)
        rows = loaded.config.vocab_size
        grown = f"vocab_size {rows:,}, was {size:,}" if rows != size else f"vocab_size {rows:,}"
        return (
            f"wrote {original_names(output_dir)}: {loaded.kind} model, {_FORMATS[located.format]}; "
            f"the rows of {len(words):,} words are the mean of their pieces'; {grown}"
        )


def _is_kept(path: pathlib.Path) -> bool:
    """Tell what is in a folder from what a command that was killed left there."""
    return not path.name.startswith(_UNFINISHED)


@contextlib.contextmanager
def _filling(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Give a folder to write in; what is in it goes to another, empty one once all is written."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder))
    try:
        yield temporary
        for path in sorted(temporary.iterdir()):
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _save_task(
    loaded: LoadedModel, file_format: str, source: pathlib.Path, folder: pathlib.Path
) -> None:
    """Write what the model is for, where its source says so."""
    trained = read_trained_task(source) or read_sentence_transformers(source)
    if trained is None:
        return
    trained.write(folder)
    if file_format == "hf" and trained.pooling is not None:
        write_sentence_transformers(folder, trained, loaded.config.hidden_size)


def _save(loaded: LoadedModel, file_format: str, name: str, folder: pathlib.Path) -> None:
    """Write a model in a format of `locate`, of TensorFlow 2's also as TensorFlow 1's."""
    model, tokenizer, labels = loaded.model, loaded.tokenizer, loaded.labels
    if file_format == "hf":
        save_hf(folder, model, tokenizer, labels, loaded.problem_type)
    elif file_format == "keras_hub":
        save_keras_hub(folder, model, tokenizer)
    elif file_format in ("keras", "keras_weights"):
        save_keras(folder / name, model, tokenizer, labels)
    else:
        save_model_directory(folder, model, tokenizer, labels, loaded.transfer.step)
