"""The tokenizer that lies beside weights: read, written, compared with BERT's own."""

from __future__ import annotations

import logging
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from bert_tf.config import BertConfig
from bert_tf.files import local_copy, replacing, write_json, write_text
from bert_tf.models.variables import abbreviate
from bert_tf.tokenization import vocabulary
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights.checkpoint import Checkpoint
from bert_tf.weights.locate import read_json

_log = logging.getLogger(__name__)


def load_tokenizer(checkpoint: Checkpoint, do_lower_case: bool | None) -> FullTokenizer | None:
    """Make the tokenizer of an opened checkpoint.

    Args:
        checkpoint: see `open_checkpoint`.
        do_lower_case: as in `load_bert`.

    Returns:
        The tokenizer, or None where no vocabulary lies with the weights.

    Raises:
        ValueError: the vocabulary is not one of BERT.
    """
    if checkpoint.located is None:
        return None
    folder = pathlib.Path(checkpoint.located.path)
    if checkpoint.located.format != "keras_hub":
        folder = folder.parent
    # transformers writes the vocabulary into tokenizer.json, and lately nowhere else.
    fast = folder / "tokenizer.json"
    values = read_json(fast) if fast.exists() else {}
    settings_file = folder / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.exists() else {}
    casings = [
        do_lower_case,
        settings.get("do_lower_case"),
        _part(values, "normalizer").get("lowercase"),
        _part(values, "config").get("lowercase"),  # KerasHub's file of the same name
    ]
    casing = next((value for value in casings if isinstance(value, bool)), None)
    accents = [settings.get("strip_accents"), _part(values, "normalizer").get("strip_accents")]
    strip_accents = next((value for value in accents if isinstance(value, bool)), None)
    vocab: dict[str, int] = {}
    if checkpoint.located.vocab_file:
        vocab = vocabulary.load_vocab(checkpoint.located.vocab_file)
    elif (model := _part(values, "model")).get("type") == "WordPiece":
        vocabulary.check_vocab(model.get("vocab"), str(fast))
        vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    if casing is None and vocab:
        casing = vocabulary.casing_of(vocab) != "cased"
    of_keras_hub = _part(values, "config").get("strip_accents")
    if isinstance(of_keras_hub, bool) and vocabulary.keeps_accents(vocab):
        strip_accents = of_keras_hub  # else it is what KerasHub does by default, not BERT
    _warn_of_another_tokenizer(
        checkpoint, settings, values, casing if strip_accents is None else strip_accents
    )
    if not vocab or casing is None:
        return None
    if checkpoint.located.vocab_file:
        return FullTokenizer(checkpoint.located.vocab_file, casing, strip_accents=strip_accents)
    return FullTokenizer.from_vocab(vocab, casing, strip_accents=strip_accents)


def _part(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an object within a JSON object; an empty one where it is missing or another thing."""
    part = values.get(name)
    return part if isinstance(part, dict) else {}


_TOKENIZER_CLASSES = (None, "BertTokenizer", "BertTokenizerFast", "TokenizersBackend")


def _warn_of_another_tokenizer(
    checkpoint: Checkpoint, settings: Mapping[str, Any], fast: Mapping[str, Any], accents: Any
) -> None:
    """Say where the tokenizer that lies with the weights does what BERT's own does not."""
    normalizer = _part(fast, "normalizer") or _part(fast, "config")
    differences = []
    for values, name, expected in (
        (settings, "strip_accents", (None, accents)),
        (normalizer, "strip_accents", (None, accents)),
        (settings, "tokenize_chinese_chars", (None, True)),
        (normalizer, "handle_chinese_chars", (None, True)),
        (settings, "tokenizer_class", _TOKENIZER_CLASSES),
    ):
        if values.get(name) not in expected:
            differences.append(f"{name} {values[name]!r}")
    known = _part(_part(fast, "model"), "vocab")
    tokens = fast.get("added_tokens")
    tokens = [t for t in tokens if isinstance(t, dict)] if isinstance(tokens, list) else []
    added = [str(t.get("content")) for t in tokens if known and t.get("content") not in known]
    if not fast and checkpoint.located is not None and checkpoint.located.vocab_file:
        beside = pathlib.Path(checkpoint.located.vocab_file).with_name("added_tokens.json")
        tokens = read_json(beside) if beside.exists() else {}
        vocab = vocabulary.load_vocab(checkpoint.located.vocab_file) if tokens else {}
        added = [token for token in tokens if token not in vocab]
    if added:
        differences.append(f"added tokens {abbreviate(added, 4)}")
    if differences:
        _log.warning(
            "%s: its tokenizer differs from BERT's, which is what is used here: %s",
            checkpoint.description,
            ", ".join(dict.fromkeys(differences)),
        )


_SETTINGS_NAME = "tokenizer_config.json"
_HF_TOKENIZER_NAMES = ("tokenizer.json", _SETTINGS_NAME, "special_tokens_map.json")


def copy_vocabulary(vocab_file: str | os.PathLike | None, target: pathlib.Path) -> None:
    """Copy a vocabulary file whole or not at all, unless it is there already."""
    if vocab_file is None:
        return
    vocab_file = local_copy(vocab_file)
    if target.exists() and target.samefile(vocab_file):
        return
    with replacing(target) as temporary:
        shutil.copyfile(vocab_file, temporary)


def write_vocabulary(tokenizer: FullTokenizer | None, target: pathlib.Path) -> None:
    """Write a tokenizer's vocabulary, byte by byte where it was read from a file.

    Beside it are settings that the vocabulary does not tell, in transformers' file for them.
    """
    if tokenizer is None:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_fast_tokenizer(target.parent)
    if tokenizer.vocab_file:
        copy_vocabulary(tokenizer.vocab_file, target)
    else:
        pieces = pieces_in_order(tokenizer)
        write_text(target, "".join(f"{piece}\n" for piece in pieces))
    if tokenizer.strip_accents != tokenizer.do_lower_case:  # else the vocabulary tells the casing
        settings = {name: getattr(tokenizer, name) for name in ("do_lower_case", "strip_accents")}
        write_json(target.with_name(_SETTINGS_NAME), settings)


def pieces_in_order(tokenizer: FullTokenizer) -> list[str]:
    """Return a piece for each id: what came twice in a file has left an id without one."""
    highest = max(tokenizer.vocab.values())
    return [tokenizer.inv_vocab.get(i, f"[unused_id_{i}]") for i in range(highest + 1)]


def remove_fast_tokenizer(folder: pathlib.Path) -> None:
    """Remove the files of a tokenizer, which would hide a vocabulary written beside them."""
    for name in _HF_TOKENIZER_NAMES:
        (folder / name).unlink(missing_ok=True)


def write_hf_tokenizer(
    folder: pathlib.Path, config: BertConfig, tokenizer: FullTokenizer | None
) -> None:
    """Write the files that make transformers load the same tokenizer."""
    if tokenizer is None:
        return
    import tokenizers

    write_vocabulary(tokenizer, folder / vocabulary.VOCAB_NAME)
    accents = tokenizer.strip_accents
    fast = tokenizers.BertWordPieceTokenizer(
        dict(tokenizer.vocab),
        lowercase=tokenizer.do_lower_case,
        strip_accents=None if accents == tokenizer.do_lower_case else accents,
    )
    write_text(folder / "tokenizer.json", fast.to_str(pretty=True))
    names = {f"{token[1:-1].lower()}_token": token for token in vocabulary.SPECIAL_TOKENS}
    settings = {
        **names,
        "do_lower_case": tokenizer.do_lower_case,
        "model_max_length": config.max_position_embeddings,
        "strip_accents": None if accents == tokenizer.do_lower_case else accents,
        "tokenize_chinese_chars": True,
        "tokenizer_class": "BertTokenizer",
    }
    for file, values in (("special_tokens_map.json", names), (_SETTINGS_NAME, settings)):
        write_json(folder / file, values)
