"""Predictor: the same answers from a model directory and its SavedModel, whatever the batches."""

import logging

import keras
import numpy as np
import pytest
from absl import flags

import bert_tf
from bert_tf.models.task_models import HEADS
from bert_tf.serving import saved_model
from bert_tf.serving.like_lengths import batches_of_like_length
from bert_tf.serving.load import load_served_model
from bert_tf.serving.saved_model import export_saved_model
from bert_tf.tasks.trained_task import TrainedTask
from bert_tf.weights.save import save_model_directory
from experiments.command_line.exit_status import exit_on_error
from experiments.conversion import export
from experiments.conversion.options import ExportOptions
from tests.support import command_options
from tests.support import synthetic_records as synthetic

WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the list of items is empty ##ed ##s return , . ( ) - caf ##e a"
).split()
TEXTS = ["the list", "items, of the café.", "", "empty " * 9, "is [MASK] \U0001f600"]


def model_directory(folder, head_name, labels=None, **trained):
    folder.mkdir()
    vocab_file = folder.parent / "vocab.txt"
    vocab_file.write_text("".join(word + "\n" for word in WORDS))
    keras.utils.set_random_seed(11)
    config = synthetic.small_config(
        vocab_size=len(WORDS),
        num_hidden_layers=1,
        max_position_embeddings=29,
        initializer_range=0.9,
    )
    head = HEADS[head_name]
    model = head.make(config, len(labels)) if labels else head.make(config)
    save_model_directory(folder, model, vocab_file, labels)
    if trained:
        TrainedTask(max_seq_length=19, **trained).write(folder)
    return folder


def both(folder):
    """From the model directory, and from a SavedModel in small batches."""
    saved = folder.with_name(f"{folder.name}_saved")
    export_saved_model(load_served_model(folder), saved)
    return bert_tf.Predictor(folder), bert_tf.Predictor(saved, batch_size=2)


def check_same(one, other, *columns):
    found, again = one.predict(*columns), other.predict(*columns)
    assert found.keys() == again.keys()
    for name, value in found.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(again[name], value, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(again[name], value, err_msg=name)


@pytest.mark.thorough(traced=True)
def test_questions(tmp_path):
    folder = model_directory(
        tmp_path / "qa", "span", kind="span", has_pairs=True, doc_stride=5, max_query_length=4
    )
    one, other = both(folder)
    assert one.task == other.task == "question_answering"
    assert one.inputs == other.inputs == ("question", "context")
    # No text that repeats itself: equal scores would be told apart by rounding.
    random = np.random.default_rng(3)
    contexts = [" ".join(random.choice(WORDS[5:], n)) for n in (0, 17, 5, 41, 11)]
    check_same(one, other, TEXTS, contexts)
    answers = one.answer(TEXTS, contexts)
    assert answers[0]["answer"] == "" and answers[1]["answer"]
    for answer, context in zip(answers, contexts, strict=True):
        assert context[answer["char_start"] : answer["char_end"]] == answer["answer"]
    with pytest.raises(ValueError, match="this model is for question_answering, not for embed"):
        one.embed(TEXTS)
    with pytest.raises(ValueError, match="expected 2 equally long lists .question, context"):
        one.predict(TEXTS)


@pytest.mark.slow
def test_entities_and_labels(tmp_path):
    labels = ("O", "B-LOC", "I-LOC")
    folder = model_directory(
        tmp_path / "ner", "token_classification", labels, kind="token_classification"
    )
    one, other = both(folder)
    check_same(one, other, TEXTS)
    found = other.entities(TEXTS)
    for row, again in zip(found, one.entities(TEXTS), strict=True):
        assert row == [entity | {"score": pytest.approx(entity["score"])} for entity in again]
    assert sum(map(len, found)) > 3
    for row, text in zip(found, TEXTS, strict=True):
        for entity in row:
            assert text[entity["char_start"] : entity["char_end"]] == entity["text"]
            assert entity["type"] == "LOC"
    folder = model_directory(
        tmp_path / "pairs", "classification", ("no", "yes"), kind="classification", has_pairs=True
    )
    one, other = both(folder)
    assert other.inputs == ("text", "text_b")
    check_same(one, other, TEXTS, TEXTS[::-1])
    for row in other.classify(TEXTS, TEXTS[::-1]):
        assert list(row.values()) == sorted(row.values(), reverse=True)
        assert set(row) == {"no", "yes"} and sum(row.values()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="text: expected a list of strings, got one string"):
        one.predict("abcde", TEXTS)
    with pytest.raises(ValueError, match="words: for a model directory; .* holds its own"):
        bert_tf.Predictor(tmp_path / "pairs_saved", words="white_space")


def test_masks_and_choices(tmp_path):
    one, other = both(model_directory(tmp_path / "mlm", "pretraining"))
    texts = ["the [MASK]", "", "[MASK] of [MASK] [MASK]"]
    check_same(one, other, texts)
    found = other.fill_mask(texts)
    assert [len(row) for row in found] == [1, 0, 3] and all(len(mask) == 5 for mask in found[2])
    assert found[0][0][0][0] in WORDS
    one = bert_tf.Predictor(model_directory(tmp_path / "swag", "multiple_choice"))
    chosen = one.choose(TEXTS[:2], [["a list", "is", ""], ["empty", "the", "items"]])
    assert chosen.shape == (2,) and set(chosen.tolist()) <= {0, 1, 2}
    assert one.choose([], []).shape == (0,)
    with pytest.raises(ValueError, match="choices: expected as many for each text"):
        one.choose(TEXTS[:2], [["a list", "is"], ["empty"]])


def test_texts_of_unlike_lengths_are_computed_apart(tmp_path):
    predictor = bert_tf.Predictor(model_directory(tmp_path / "m", "classification", ("a", "b")))
    answer, asked = predictor._answer, []

    def noted(text):
        asked.append([len(one) for one in text.numpy()])
        return answer(text=text)

    predictor._answer = noted
    texts = [TEXTS[0] * times for times in (30, 1, 25, 2)]
    found = predictor.classify(texts)
    long, middle, short = (len(TEXTS[0]) * times for times in (30, 25, 1))
    assert asked == [[short, 2 * short], [middle, long]]
    for row, text in zip(found, texts, strict=True):
        assert row == pytest.approx(predictor.classify([text])[0], abs=1e-6)


def test_batches_of_like_length():
    def batches(sizes, batch_size=32):
        return [rows.tolist() for rows in batches_of_like_length(sizes, batch_size)]

    assert batches([]) == []
    assert batches([5, 1, 3], 2) == [[1, 2], [0]]
    # Beside its text a row costs as much as 64 bytes: 100 + 64 is half of 264 + 64.
    assert batches([264, 100]) == [[1, 0]]
    assert batches([265, 100]) == [[1], [0]]
    assert batches([1000, 20, 400, 950]) == [[1], [2], [3, 0]]


def test_numbers_and_texts_that_follow(tmp_path):
    folder = model_directory(tmp_path / "stars", "classification", ("stars",), kind="regression")
    rows = [{"text": text} for text in TEXTS]
    loaded, predictor = load_served_model(folder), bert_tf.Predictor(folder, batch_size=2)
    found = predictor.regress(TEXTS)
    expected = [loaded.answer(text=[row["text"]])["value"].numpy()[0] for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    folder = model_directory(tmp_path / "nsp", "next_sentence")
    loaded, predictor = load_served_model(folder), bert_tf.Predictor(folder)
    found = predictor.follows(TEXTS, TEXTS[::-1])
    expected = loaded.answer(text=TEXTS, text_b=TEXTS[::-1])["is_next"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.shape == (len(TEXTS),) and 0 < found.min() < found.max() < 1


def test_embeddings(tmp_path):
    predictor = bert_tf.Predictor(model_directory(tmp_path / "encoder", "encoder"), batch_size=2)
    vectors = predictor.embed(TEXTS)
    alone = np.stack([predictor.embed([text])[0] for text in TEXTS])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)
    assert predictor.embed([]).shape == (0, 22)


def test_embeddings_of_a_pre_trained_model(tmp_path):
    """Its heads are left behind."""
    folder = model_directory(tmp_path / "pre-trained", "pretraining")
    encoder = bert_tf.load_bert(folder).encoder
    bert_tf.save_model_directory(tmp_path / "encoder", encoder, tmp_path / "vocab.txt")
    expected = bert_tf.Predictor(tmp_path / "encoder").embed(TEXTS)
    vectors = bert_tf.Predictor(folder, task="embeddings").embed(TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


@pytest.mark.parametrize("layer", [-1, -2])
def test_doubts_about_the_vocabulary_are_told_once(tmp_path, caplog, layer):
    folder = model_directory(tmp_path / "m", "encoder")
    words = [word.upper() for word in WORDS[:-4]]
    (folder / "vocab.txt").write_text("".join(word + "\n" for word in words))
    with caplog.at_level(logging.WARNING, "bert_tf"):  # which another test may have changed
        load_served_model(folder, do_lower_case=True, layer=layer)
    doubts = [record.getMessage() for record in caplog.records if "pieces" in record.getMessage()]
    assert len(doubts) == 2
    assert f"has {len(WORDS) - 4} pieces, the model embeddings for {len(WORDS)}" in doubts[0]
    assert "of the vocabulary's pieces have capital letters" in doubts[1]


def test_what_it_cannot_load_is_refused(tmp_path):
    folder = model_directory(tmp_path / "encoder", "encoder")
    export_saved_model(load_served_model(folder), tmp_path / "ids", ids_only=True)
    with pytest.raises(ValueError, match="expected a SavedModel .* that takes strings, got one"):
        bert_tf.Predictor(tmp_path / "ids")
    # The SavedModel itself in place of the folder of its versions.
    with pytest.raises(ValueError, match="ids/1: expected a SavedModel .* got one that takes inp"):
        bert_tf.Predictor(tmp_path / "ids" / "1")
    with pytest.raises(ValueError, match="max_seq_length: for a model directory; .*ids/1 holds"):
        bert_tf.Predictor(tmp_path / "ids", max_seq_length=7)
    with pytest.raises(FileNotFoundError):
        bert_tf.Predictor(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="text: expected strings, got None"):
        bert_tf.Predictor(folder).embed(["the", None])
    # What the checkpoint is for need not be said to ask for a layer.
    first, last = (bert_tf.Predictor(folder, layer=layer).embed(TEXTS) for layer in (0, -1))
    assert first.shape == last.shape and not np.allclose(first, last)
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        bert_tf.Predictor(folder, batch_size=0)
    (folder / "vocab.txt").unlink()
    with pytest.raises(FileNotFoundError, match="vocab_file: no vocabulary lies with .*; name one"):
        bert_tf.Predictor(folder)


def exported_by_the_script(folder, saved, **given):
    given = {"model_dir": folder, "saved_model": saved, **given}

    def run():
        export.run(command_options.of(ExportOptions, **given))

    return exit_on_error("export_model", run, flags.FlagValues())


@pytest.mark.thorough(traced=True)
def test_a_saved_model_that_computes_in_bfloat16(tmp_path, capsys, monkeypatch):
    labels = ("no", "yes")
    folder = model_directory(tmp_path / "model", "classification", labels, kind="classification")
    assert exported_by_the_script(folder, tmp_path / "saved", compute="bfloat16") == 0
    note = "Computes in bfloat16: outputs for sample inputs differ from those of the float32 model"
    assert note in capsys.readouterr().out
    assert note in (tmp_path / "saved" / "1" / "model_card.md").read_text()
    texts = ["a", "the a", "b"]
    found = bert_tf.Predictor(tmp_path / "saved").classify(texts)
    expected = bert_tf.Predictor(folder).classify(texts)
    differences = [
        abs(one[label] - other[label])
        for one, other in zip(found, expected, strict=True)
        for label in labels
    ]
    assert 0 < max(differences) < 0.02
    monkeypatch.setattr(saved_model, "COMPUTE_TOLERANCE", 0.0)
    for given, message in (
        ({}, "compute: bfloat16 changes outputs by"),
        ({"format": "tflite"}, "compute: bfloat16 is for --format=saved_model"),
        ({"weights": "float16"}, "leave out --weights, got --format=saved_model --weights=float16"),
    ):
        assert exported_by_the_script(folder, tmp_path / "bad", compute="bfloat16", **given) == 1
        assert message in capsys.readouterr().err


@pytest.mark.thorough(traced=True)
def test_the_script_exports_what_training_left(tmp_path, capsys):
    labels = ("no", "yes")
    folder = model_directory(
        tmp_path / "pairs", "classification", labels, kind="classification", has_pairs=True
    )
    assert exported_by_the_script(folder, tmp_path / "saved") == 0
    assert capsys.readouterr().out.endswith("MB), classification\n")
    card = (tmp_path / "saved" / "1" / "model_card.md").read_text()
    assert f"Weights: read from {folder}." in card
    predictor = bert_tf.Predictor(tmp_path / "saved")
    assert predictor.inputs == ("text", "text_b")
    assert set(predictor.classify(["a"], ["the"])[0]) == set(labels)
    # Bad input is one line and status 1, and leaves nothing behind.
    for given, message in (
        ({"task": "regression"}, "the model was trained for classification, not for regression"),
        ({"labels": "a,b,c"}, "labels: the model has 2, got 3: a, b, c"),
        ({"max_seq_length": 31}, "max_seq_length: the model has 29 positions, got 31"),
        ({"vocab_file": tmp_path / "missing.txt"}, "missing.txt"),
        ({"version": 0}, "version: expected at least 1, got 0"),
        ({"weights": "int8"}, "weights: saved_model can hold float32, float16, bfloat16, got int8"),
        (
            {"format": "onnx", "weights": "float16"},
            "weights: onnx can hold float32, int8, got float16",
        ),
    ):
        assert exported_by_the_script(folder, tmp_path / "bad", **given) == 1
        error = capsys.readouterr().err
        assert error.startswith("export_model: ") and message in error and error.count("\n") == 1
        assert not list((tmp_path / "bad").glob("*"))
    assert exported_by_the_script(tmp_path / "nowhere", tmp_path / "bad") == 1
