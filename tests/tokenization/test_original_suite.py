"""google-research/bert's own test of its tokenization, from a checkout, with ours in its place."""

import importlib.util
import os
import pathlib
import sys
import types
import unittest

import pytest

from bert_tf.tokenization import characters
from bert_tf.tokenization.wordpiece import BasicTokenizer, FullTokenizer, WordpieceTokenizer


def in_place_of_the_original() -> types.ModuleType:
    """Return what the original's test imports, made of ours."""
    module = types.ModuleType("tokenization")
    vars(module).update(
        FullTokenizer=FullTokenizer,
        BasicTokenizer=BasicTokenizer,
        WordpieceTokenizer=WordpieceTokenizer,
        convert_tokens_to_ids=lambda vocab, tokens: FullTokenizer.from_vocab(
            vocab
        ).convert_tokens_to_ids(tokens),
        _is_whitespace=lambda char: characters.clean(ord(char)) == " ",
        _is_control=lambda char: characters.clean(ord(char)) is None,
        _is_punctuation=characters.is_punctuation,
    )
    return module


def test_the_original_test_of_tokenization(monkeypatch):
    checkout = os.environ.get("BERT_TF_ORIGINAL")
    if not checkout:
        pytest.skip("set BERT_TF_ORIGINAL to a checkout of google-research/bert")
    monkeypatch.setitem(sys.modules, "tokenization", in_place_of_the_original())
    path = pathlib.Path(checkout, "tokenization_test.py")
    spec = importlib.util.spec_from_file_location("original_tokenization_test", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    result = unittest.TestResult()
    suite.run(result)
    assert not result.errors + result.failures
    assert result.testsRun - len(result.skipped) >= 8
