"""Vocabularies: the special tokens, reading, checking, casing."""

import numbers
import os
import re
import unicodedata
from collections.abc import Mapping
from typing import Literal

from bert_tf.files import is_file, is_folder, open_file

VOCAB_NAME = "vocab.txt"  # of the file in a model directory
PAD_TOKEN = "[PAD]"
UNK_TOKEN = "[UNK]"
CLS_TOKEN = "[CLS]"
SEP_TOKEN = "[SEP]"
MASK_TOKEN = "[MASK]"
SPECIAL_TOKENS = (PAD_TOKEN, UNK_TOKEN, CLS_TOKEN, SEP_TOKEN, MASK_TOKEN)
_SPECIAL = re.compile(r"\[.*\]|<.*>")


def convert_to_unicode(text: str | bytes) -> str:
    """Return text as str; bytes are read as UTF-8, and bytes that are not UTF-8 are dropped.

    Raises:
        ValueError: text is neither str nor bytes.
    """
    if isinstance(text, str):
        return text
    if isinstance(text, bytes):
        return text.decode("utf-8", "ignore")
    raise ValueError(f"text must be str or bytes, got {type(text).__name__}")


def load_vocab(vocab_file: str | os.PathLike[str]) -> dict[str, int]:
    """Read a vocabulary: one piece a line, ids by line number from 0.

    White space around a piece is dropped. Of a piece that stands on several lines the last id
    counts, and its place in the order is that of the first, as in the original.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty or not UTF-8.
    """
    vocab: dict[str, int] = {}
    number = 0
    if not is_file(vocab_file):
        what = "a folder, expected a file" if is_folder(vocab_file) else "no such file"
        raise FileNotFoundError(f"vocab_file: {what}: {os.fspath(vocab_file)}")
    with open_file(vocab_file) as reader:  # only \n ends a line here
        for number, line in enumerate(reader, start=1):
            try:
                vocab[line.decode("utf-8").strip()] = number - 1
            except UnicodeDecodeError as error:
                raise ValueError(f"{vocab_file}, line {number}: not UTF-8: {error}") from None
    if not number:
        raise ValueError(f"vocab_file {vocab_file}: expected one piece a line, got an empty file")
    return vocab


def check_vocab(vocab: object, source: str | os.PathLike[str]) -> None:
    """Check pieces and ids that come from elsewhere than lines of a file, as a tokenizer.json.

    Ids that no piece has are accepted: they come of a vocab.txt with a piece on several lines.

    Args:
        vocab: piece -> id.
        source: the file or argument it comes from, for the message.

    Raises:
        ValueError: it is no mapping or empty, a piece is not str, an id is not an int of at least
            0, or two pieces have one id; the message names the source and the entry.
    """
    name = os.fspath(source)
    if not isinstance(vocab, Mapping) or not vocab:
        what = "an empty one" if isinstance(vocab, Mapping) else type(vocab).__name__
        raise ValueError(f"{name}: expected a mapping from pieces to ids, got {what}")
    pieces: dict[numbers.Integral, str] = {}
    for piece, i in vocab.items():
        if not isinstance(piece, str):
            raise ValueError(f"{name}: a piece of the vocabulary must be text, got {piece!r}")
        if isinstance(i, bool) or not isinstance(i, numbers.Integral) or i < 0:
            raise ValueError(
                f"{name}: the id of {piece!r} must be an integer of at least 0, got {i!r}"
            )
        if i in pieces:
            raise ValueError(f"{name}: {pieces[i]!r} and {piece!r} both have the id {i}")
        pieces[i] = piece


def check_special_tokens(vocab: Mapping[str, int], vocab_file: str | os.PathLike[str]) -> None:
    """Raise ValueError if a vocabulary lacks one of SPECIAL_TOKENS, naming the missing ones."""
    missing = [token for token in SPECIAL_TOKENS if token not in vocab]
    if next(iter(vocab), "").startswith("\ufeff"):
        raise ValueError(
            f"vocab_file {os.fspath(vocab_file)} begins with a byte order mark, which would be a "
            "part of its first piece: save it as UTF-8 without one"
        )
    if missing:
        raise ValueError(
            f"vocab_file {os.fspath(vocab_file)} has no {' '.join(missing)}: not a vocabulary of "
            f"BERT, which needs {' '.join(SPECIAL_TOKENS)}"
        )


# Model names are the folders in which Google's archives unpack.
_UNCASED_MODELS = (
    "uncased_L-24_H-1024_A-16",
    "uncased_L-12_H-768_A-12",
    "multilingual_L-12_H-768_A-12",
    "chinese_L-12_H-768_A-12",
)
_CASED_MODELS = ("cased_L-12_H-768_A-12", "cased_L-24_H-1024_A-16", "multi_cased_L-12_H-768_A-12")


def validate_case_matches_checkpoint(do_lower_case: bool, init_checkpoint: str | None) -> None:
    """Raise ValueError if casing contradicts the name of a released checkpoint's folder.

    Args:
        do_lower_case: casing that is about to be used.
        init_checkpoint: path such as `.../cased_L-12_H-768_A-12/bert_model.ckpt`; any other path,
            None or "" is accepted.

    Reference: google-research/bert tokenization.py, validate_case_matches_checkpoint.
    """
    match = re.match(r".*?([A-Za-z0-9_-]+)/bert_model.ckpt", init_checkpoint or "")
    if match is None:
        return
    name = match.group(1)
    for names, needed, casing in (
        (_UNCASED_MODELS, True, "uncased"),
        (_CASED_MODELS, False, "cased"),
    ):
        if name in names and bool(do_lower_case) != needed:
            raise ValueError(
                f"do_lower_case: expected {needed}, since {name} is {casing} "
                f"(init_checkpoint {init_checkpoint}), got {do_lower_case}"
            )


def casing_of(vocab: Mapping[str, int]) -> Literal["cased", "uncased", "caseless"]:
    """Tell the casing of the model that a vocabulary belongs to.

    Args:
        vocab: piece -> id. Special pieces, as [UNK] or <S>, do not count.

    Returns:
        "cased" where a piece has a capital letter: text keeps its own. Of the others, "uncased"
        where most pieces have letters with cases, so that capital letters in a text that is not
        lower-cased are a mistake, and "caseless" where few have, as for Chinese: models of these
        are uncased too (the released one is), but a text has few capitals to lose.
    """
    pieces = [piece for piece in vocab if not _SPECIAL.fullmatch(piece)]
    if any(piece != piece.lower() for piece in pieces):
        return "cased"
    with_cases = sum(piece != piece.upper() for piece in pieces)
    return "uncased" if with_cases * 2 >= len(pieces) else "caseless"


def keeps_accents(vocab: Mapping[str, int]) -> bool:
    """Tell whether a vocabulary has pieces that text without accents never has."""
    return any(
        unicodedata.category(char) == "Mn"
        for piece in vocab
        if not piece.isascii()
        for char in unicodedata.normalize("NFD", piece)
    )


# Sizes that a number of rows is rounded up to a multiple of, as for fast products.
_ROUNDINGS = tuple(1 << k for k in range(11))
_DOUBTFUL_SHARE = 0.02  # of pieces with capitals: an uncased vocabulary may have a few added ones


def vocabulary_doubts(
    vocab: Mapping[str, int], do_lower_case: bool, vocab_size: int | None = None
) -> list[str]:
    """Say why a vocabulary may be another model's, or its casing wrong.

    Args:
        vocab: piece -> id.
        do_lower_case: casing that it is used with.
        vocab_size: rows of the model's embeddings, if there is a model.

    Returns:
        Messages, each with what to do; none where nothing is doubtful.
    """
    doubts, size = [], max(vocab.values()) + 1
    if vocab_size and all(-(-size // step) * step != vocab_size for step in _ROUNDINGS):
        doubts.append(
            f"the vocabulary has {size:,} pieces, the model embeddings for {vocab_size:,}: it is "
            "incomplete, or that of another model; give the model's own (vocab_file)"
        )
    share = sum(piece != piece.lower() for piece in vocab if not _SPECIAL.fullmatch(piece))
    share /= len(vocab)
    if do_lower_case and share > _DOUBTFUL_SHARE:
        doubts.append(
            f"do_lower_case is set, but {share:.0%} of the vocabulary's pieces have capital "
            "letters, which the text can then never have; a cased model needs do_lower_case=False"
        )
    if not do_lower_case and casing_of(vocab) == "uncased":
        doubts.append(
            "the vocabulary has no upper-case letters and do_lower_case is not set: every word "
            "with a capital becomes [UNK]"
        )
    return doubts
