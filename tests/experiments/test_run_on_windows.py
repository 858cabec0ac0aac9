"""run_classifier.py on texts in windows, and what its model answers from strings."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import bert_tf
from bert_tf.models.task_models import HEADS
from bert_tf.serving.load import load_served_model
from bert_tf.serving.saved_model import export_saved_model
from bert_tf.serving.text_models import Classifier
from bert_tf.tasks.document_windows import TextRule
from bert_tf.tasks.trained_task import TrainedTask, read_trained_task
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights.load import load_model
from bert_tf.weights.save import save_model_directory
from data_prep.finetuning.glue import pack_documents
from experiments.command_line.exit_status import InputError
from experiments.finetuning import classification
from experiments.finetuning.options import ClassifierOptions
from tests.support import command_options
from tests.support import synthetic_records as synthetic

WORDS = ("good", "bad", "the", "film", "was", "book", "a", "and", "of")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
CONFIG = synthetic.small_config(
    vocab_size=len(VOCABULARY),
    num_hidden_layers=1,
    max_position_embeddings=31,
    initializer_range=0.5,
)
LENGTH, STRIDE, MOST = 13, 9, 4
WINDOWS = {"max_seq_length": LENGTH, "doc_stride": STRIDE, "max_windows": MOST}


def late(count, seed):
    """Texts of up to forty words of which the last tells the label."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label = int(random.integers(2))
        filler = random.choice(WORDS[2:], random.integers(12, 36))
        rows.append((" ".join([*filler, WORDS[1 - label]]), ("no", "yes")[label]))
    return rows


def write(path, rows):
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "words.txt").write_text("".join(f"{piece}\n" for piece in VOCABULARY))
    keras.utils.set_random_seed(1)
    save_model_directory(folder, HEADS["encoder"].make(CONFIG), folder / "words.txt")
    return folder


def run(model_dir, output, **given):
    options = {"model_dir": model_dir, "output_dir": output, "text_column": "text"}
    options |= {"label_column": "label", "learning_rate": 1e-2, "bias_correction": True}
    options |= {"train_batch_size": 16, "num_train_epochs": 8, "jit_compile": "false"}
    classification.run(command_options.of(ClassifierOptions, **{**options, **given}))


@pytest.fixture(scope="module")
def finished(model_dir, tmp_path_factory):
    """Return a run on texts in windows, and its tables."""
    folder = tmp_path_factory.mktemp("run")
    tables = {
        f"{split}_file": write(folder / f"{split}.jsonl", late(count, seed))
        for seed, (split, count) in enumerate((("train", 128), ("dev", 32), ("test", 9)))
    }
    given = {**tables, **WINDOWS, "window_pooling": "max"}
    output = folder / "out"
    run(model_dir, output, **given, do_train=True, do_eval=True, do_predict=True)
    return output, tables


@pytest.mark.thorough
def test_what_stands_beyond_a_sequence_is_learnt(finished):
    output, _ = finished
    assert json.loads((output / "eval_results.json").read_text())["eval_accuracy"] > 0.9
    assert read_trained_task(output) == TrainedTask(
        "classification", LENGTH, doc_stride=STRIDE, max_windows=MOST
    )
    assert load_model(output).config.window_pooling == "max"


@pytest.mark.thorough(traced=True)
def test_strings_are_answered_as_the_records_are(finished):
    output, tables = finished
    texts = [json.loads(line)["text"] for line in tables["test_file"].read_text().splitlines()]
    expected = np.loadtxt(output / "test_results.tsv")
    # Some longer than training's, of which as much is read, and some short, in one batch.
    texts += ["", "good film", " ".join(["the"] * 60 + ["good"]), " ".join(["the"] * 39)]
    saved = output.parent / "saved"
    export_saved_model(load_served_model(output), saved)
    for predictor in (bert_tf.Predictor(output), bert_tf.Predictor(saved, batch_size=5)):
        answers = predictor.predict(texts)
        np.testing.assert_allclose(answers["probabilities"][:9], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(*answers["probabilities"][-2:], rtol=1e-5, atol=1e-6)
        for row, text in enumerate(texts):  # no text depends on those beside it
            alone = predictor.predict([text])["probabilities"]
            np.testing.assert_allclose(
                answers["probabilities"][row], alone[0], rtol=1e-5, atol=1e-6
            )
        assert predictor.predict([])["probabilities"].shape == (0, 2)
    card = (saved / "1" / "model_card.md").read_text()
    assert "read in windows of 13 pieces, whose starts are 9 apart, and cut after 4 windows" in card
    # Read further, the last word counts.
    further = load_served_model(output, max_windows=20)
    found = further.answer(tf.constant(texts[-2:]))["probabilities"].numpy()
    assert np.abs(found[0] - found[1]).max() > 1e-3
    signature = tf.saved_model.load(str(saved / "1")).signatures["ids"]
    shape = {
        name: tuple(spec.shape) for name, spec in signature.structured_input_signature[1].items()
    }
    assert shape == dict.fromkeys(("input_ids", "input_mask", "segment_ids"), (None, None, None))


def test_a_finished_model_is_asked_on_its_own_windows(finished, tmp_path, caplog):
    output, tables = finished
    folder = shutil.copytree(output, tmp_path / "out")
    expected = np.loadtxt(folder / "test_results.tsv")
    before = json.loads((folder / "eval_results.json").read_text())
    trained = dataclasses.replace(read_trained_task(folder), temperature=2.5)
    trained.write(folder)
    given = {"test_file": tables["test_file"], "max_seq_length": LENGTH, "do_predict": True}
    run(folder, folder, **given)  # without any flag of windows
    logits = np.log(expected) / 2.5
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.loadtxt(folder / "test_results.tsv"), expected, atol=1e-5)
    texts = [json.loads(line)["text"] for line in tables["test_file"].read_text().splitlines()]
    served = bert_tf.Predictor(folder).predict(texts)["probabilities"]
    np.testing.assert_allclose(served, expected, atol=1e-5)
    dataclasses.replace(trained, temperature=1.0).write(folder)
    given |= {**tables, "do_predict": False, "do_eval": True}
    run(folder, folder, **given)
    after = json.loads((folder / "eval_results.json").read_text())
    assert after == pytest.approx(before, rel=1e-5)
    with caplog.at_level("WARNING", "absl"):
        run(folder, folder, **given, max_windows=1)
    assert "max_windows: the model was trained with 4, and figures and predictions are with 1" in (
        caplog.text
    )
    after = json.loads((folder / "eval_results.json").read_text())
    assert after["eval_loss"] > before["eval_loss"] + 0.1


@pytest.mark.slow
def test_pairs_are_served_as_their_records_are(model_dir, tmp_path):
    tokenizer = FullTokenizer(model_dir / "words.txt")
    keras.utils.set_random_seed(5)
    model = HEADS["classification"].make(CONFIG, 2, window_pooling="attention")
    query = model.get_layer("window_pooling").query
    query.assign(np.linspace(-2, 2, query.shape[0]))
    rule = TextRule(LENGTH, 3, 5, has_pairs=True, max_query_length=4)
    save_model_directory(tmp_path, model, model_dir / "words.txt", ("no", "yes"))
    of_windows = {"doc_stride": 3, "max_windows": 5, "max_query_length": 4}
    TrainedTask("multi_label", LENGTH, has_pairs=True, **of_windows).write(tmp_path)
    served = load_served_model(tmp_path)
    assert served.windows == rule
    long = " ".join(WORDS * 3)
    pairs = [("good", long), (long, "bad film"), ("", ""), ("the book", " ".join(WORDS))]
    arrays = pack_documents(pairs, tokenizer, rule)
    arrays.pop("windows_left_out")
    inputs = {n: a.reshape(len(pairs), 5, LENGTH).astype("int32") for n, a in arrays.items()}
    logits = model.predict_on_batch(inputs)
    answers = served.answer(*(tf.constant(texts) for texts in zip(*pairs, strict=True)))
    np.testing.assert_allclose(answers["probabilities"], 1 / (1 + np.exp(-logits)), atol=1e-6)
    found = served.ids(**{name: tf.constant(value) for name, value in inputs.items()})
    np.testing.assert_allclose(found["logits"], logits, atol=1e-5)


@pytest.mark.slow
def test_regression_and_shorter_windows(model_dir, tmp_path):
    keras.utils.set_random_seed(6)
    model = HEADS["classification"].make(CONFIG, 1, window_pooling="mean")
    save_model_directory(tmp_path, model, model_dir / "words.txt")
    TrainedTask("regression", LENGTH, doc_stride=9, max_windows=3).write(tmp_path)
    served = load_served_model(tmp_path, max_seq_length=8)
    assert served.windows == TextRule(8, 6, 3)  # a stride that leaves no piece out
    assert served.answer(tf.constant(["good " * 30]))["value"].shape == (1,)
    with pytest.raises(ValueError, match="windows: expected a TextRule, as the model reads texts"):
        Classifier(model, served.text_to_ids, ("a",))
    with pytest.raises(ValueError, match="windows: expected max_seq_length 8 and has_pairs False"):
        Classifier(model, served.text_to_ids, ("a",), windows=TextRule(9, 3))
    plain = HEADS["classification"].make(CONFIG, 2)
    with pytest.raises(ValueError, match="windows: expected None, got TextRule"):
        Classifier(plain, served.text_to_ids, ("a", "b"), windows=TextRule(8, 3))
    save_model_directory(tmp_path / "plain", plain, model_dir / "words.txt")
    with pytest.raises(ValueError, match="max_windows: the model reads texts as one sequence each"):
        load_served_model(tmp_path / "plain", max_windows=3)


def test_options_that_are_not_the_models_are_refused(finished, model_dir, tmp_path):
    output, tables = finished
    of_eval = {**tables, "max_seq_length": LENGTH, "do_eval": True}
    for given, message in (
        ({"max_seq_length": 12}, "max_seq_length: the model was trained on windows of 13 pieces, "),
        ({"window_pooling": "mean"}, "window_pooling: the model has max, got mean"),
        ({"doc_stride": 5, "calibrate": True}, "doc_stride: temperature and thresholds are chosen"),
    ):
        with pytest.raises(InputError, match=message):
            run(output, output, **{**of_eval, **given})
    with pytest.raises(InputError, match="window_pooling: needs --doc_stride"):
        run(model_dir, tmp_path, **tables, window_pooling="max", do_train=True)
    with pytest.raises(ValueError, match="max_windows: needs --doc_stride"):
        run(model_dir, tmp_path, **tables, max_windows=3, max_seq_length=9, do_train=True)
    unknown = shutil.copytree(output, tmp_path / "unknown")
    (unknown / "bert_task.json").unlink()
    with pytest.raises(InputError, match="doc_stride: needed, as the model was trained on texts"):
        run(unknown, unknown, **of_eval)
    # What is chosen of it is kept with the windows that were given.
    run(unknown, unknown, **tables, **WINDOWS, do_eval=True, calibrate=True)
    assert read_trained_task(unknown) == read_trained_task(output)
    plain = HEADS["classification"].make(CONFIG, 2)
    save_model_directory(tmp_path, plain, model_dir / "words.txt", ("no", "yes"))
    with pytest.raises(InputError, match="doc_stride: the model was trained on texts of one seq"):
        run(tmp_path, tmp_path / "out", **tables, **WINDOWS, do_eval=True)
    with pytest.raises(InputError, match="holds a run with window_pooling 'max', and now it is 'm"):
        run(model_dir, output, **tables, **WINDOWS, do_train=True, do_eval=True)
