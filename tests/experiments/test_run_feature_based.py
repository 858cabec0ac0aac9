"""The script: it learns, its files say what was computed, and features are found again."""

import json
import pathlib

import filelock
import keras
import numpy as np
import pytest

import bert_tf
from bert_tf.models.bilstm_tagger import FEATURE_CHOICES
from bert_tf.models.feature_extraction import StoredFeatures, TokenWindow, encoder_features
from bert_tf.tasks.entity_metrics import entity_scores
from bert_tf.weights.save import save_model_directory
from data_prep.finetuning import ner
from experiments.command_line.exit_status import InputError
from experiments.feature_based import taggers
from experiments.feature_based.options import CHOICES, TaggerOptions
from experiments.feature_based.tagged_files import TaggedFile, read_sentences
from experiments.feature_based.taggers import failed_taggers
from tests.support import command_options, warm_commands
from tests.support import synthetic_records as synthetic

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
LAYERS, LENGTH = 5, 13

# Keras' own writing of weights warns of NumPy's future.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def write_sentences(path, count, seed):
    """Words of the synthetic vocabulary: a tag follows from the word, w3 after w2 goes on."""
    random = np.random.default_rng(seed)
    with open(path, "w", encoding="utf-8") as writer:
        for _ in range(count):
            words = random.integers(0, 7, random.integers(1, 10)).tolist()
            for i, word in enumerate(words):
                goes_on = word == 3 and i > 0 and words[i - 1] == 2
                tag = "B-LOC" if word == 2 else "I-LOC" if goes_on else "O"
                writer.write(f"w{word}\t{'B-PER' if word == 5 else tag}\n")
            writer.write("\n")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Files of tagged words, and a model directory."""
    folder = tmp_path_factory.mktemp("data")
    for name, count, seed in (("train", 211, 1), ("dev", 47, 2), ("test", 31, 3)):
        write_sentences(folder / f"{name}.conll", count, seed)
    keras.utils.set_random_seed(3)
    config = synthetic.small_config(num_hidden_layers=LAYERS, initializer_range=0.2)
    vocab = synthetic.write_vocabulary(folder / "words.txt")
    save_model_directory(folder / "model", bert_tf.bert_encoder(config, hidden_states=True), vocab)
    return folder


def run(data, output_dir, **changes):
    given = {
        "train_file": data / "train.conll",
        "dev_file": data / "dev.conll",
        "test_file": data / "test.conll",
        "model_dir": data / "model",
        "output_dir": output_dir,
        "max_seq_length": LENGTH,
        "lstm_size": 7,
        "num_train_epochs": 2,
        "learning_rate": 0.02,
        "dropout_rate": 0.1,
        **changes,
    }
    return taggers.run(command_options.of(TaggerOptions, **given))


@pytest.fixture(scope="module")
def one_run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_run")
    return folder, run(data, folder, features="last", seeds="1,2", num_train_epochs=7)


def test_it_learns(one_run):
    _, results = one_run
    (result,) = results.values()
    assert result["eval_f1"] > 80 and result["test_f1"] > 75  # 20 after two epochs
    assert result["hidden_states"] == [LAYERS]
    for figures in result["seeds"].values():
        by_epoch = [epoch["eval_f1"] for epoch in figures["epochs"]]
        assert len(by_epoch) == 7
        assert figures["eval_f1"] == max(by_epoch) == by_epoch[figures["best_epoch"] - 1]
        assert figures["epochs"][-1]["loss"] < figures["epochs"][0]["loss"]
        assert set(figures["eval_by_type"]) == {"LOC", "PER"}
    one, other = (figures["eval_f1"] for figures in result["seeds"].values())
    assert result["eval_f1"] == pytest.approx((one + other) / 2)
    assert result["eval_f1_std"] == pytest.approx(abs(one - other) / 2**0.5)


def test_taggers_that_tag_nothing_have_failed(one_run):
    folder, results = one_run
    found = {"last": {"seeds": {"1": {"eval_f1": 0.0}, "2": {"eval_f1": 0.1}}}}
    assert list(failed_taggers(found)) == ["last-seed-1"]
    written = json.loads((folder / "feature_based.json").read_text(encoding="utf-8"))
    assert written["failed"] == failed_taggers(results) == {}


def test_what_tags_mean_is_one_in_all_files(tmp_path):
    paths = {part: str(tmp_path / part) for part in ("train", "eval")}
    for part, last in (("train", "is O\n"), ("eval", "")):
        (tmp_path / part).write_text(f"New LOC\nYork LOC\n{last}")
    given = {"train_file": paths["train"], "dev_file": paths["eval"]}
    options = command_options.of(
        TaggerOptions, **given, model_dir="m", output_dir="o", tag_scheme="bio"
    )
    found = read_sentences(paths, options)
    assert [s.tags for s in found["eval"]] == [("B-LOC", "I-LOC")]


@pytest.mark.thorough
def test_the_kept_tagger_gives_the_figures(one_run, data):
    """Through the encoder anew, word by word, without the script's batches or cache."""
    folder, results = one_run
    model = keras.models.load_model(folder / "last-seed-2.keras")
    labels = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert labels == ["O", "B-LOC", "B-PER", "I-LOC"]
    loaded = bert_tf.load_bert(data / "model", hidden_states=True)
    sentences = list(ner.read_sentences(data / "test.conll"))
    found = []
    for sentence in sentences:
        (window,) = ner.sentence_windows([sentence], loaded.tokenizer, LENGTH)
        (values,) = encoder_features(loaded.encoder, [TokenWindow(window.input_ids)])
        mask = np.ones((1, len(window.input_ids)), np.int32)
        inputs = {"features": values[None, :, 0], "input_mask": mask}
        logits = keras.ops.convert_to_numpy(model(inputs))[0]
        found.append([labels[logits[position].argmax()] for *_, position in window.words])
    scores = entity_scores([s.tags for s in sentences], found)
    expected = results["last"]["seeds"]["2"]
    assert scores.f1 == pytest.approx(expected["test_f1"], abs=0.5)  # float16 may turn a tag
    report = (folder / "feature_based.md").read_text(encoding="utf-8")
    assert "| Last Hidden | 5 | " in report and "LOC: precision:" in report


@pytest.mark.slow
def test_again_finds_the_features_and_gives_the_same(one_run, data, tmp_path, capsys):
    folder, results = one_run
    changes = {"features": "last", "seeds": "2", "num_train_epochs": 2}
    again = run(data, tmp_path, cache_dir=folder / "feature_cache", **changes)
    printed = capsys.readouterr().out
    assert printed.count("features found") == 3 and "features computed" not in printed
    one, other = again["last"]["seeds"]["2"], results["last"]["seeds"]["2"]
    assert one["epochs"] == other["epochs"][:2]
    # Another text or model is not taken for it.
    run(
        data,
        tmp_path,
        cache_dir=folder / "feature_cache",
        features="last",
        test_file=write_sentences(tmp_path / "other.conll", 31, 4),
        num_train_epochs=1,
    )
    printed = capsys.readouterr().out
    assert printed.count("features found") == 2 and printed.count("features computed") == 1


@pytest.mark.slow
def test_all_six(data, tmp_path, capsys):
    results = run(data, tmp_path, test_file=None, num_train_epochs=1, document_context=True)
    printed = capsys.readouterr().out
    assert tuple(results) == CHOICES == tuple(FEATURE_CHOICES)
    states = [result["hidden_states"] for result in results.values()]
    four = [2, 3, 4, 5]
    assert states == [[0], [4], [5], four, four, [1, 2, 3, 4, 5]]
    mixes = {name: result["seeds"]["1"].get("mix") for name, result in results.items()}
    assert [name for name, mix in mixes.items() if mix] == [
        "weighted_sum_last_four",
        "weighted_sum_all",
    ]
    assert list(mixes["weighted_sum_last_four"]) == ["2", "3", "4", "5"]
    assert sum(mixes["weighted_sum_all"].values()) == pytest.approx(1, abs=1e-3)
    written = json.loads((tmp_path / "feature_based.json").read_text(encoding="utf-8"))
    assert written["results"] == json.loads(json.dumps(results))
    assert written["settings"]["document_context"] is True
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(rows) == 7 and rows[0] == "| features | hidden states | dev F1 |"
    for row, (name, result) in zip(rows[1:], results.items(), strict=True):
        assert row.startswith(f"| {FEATURE_CHOICES[name].description} | ")
        assert row.endswith(f"| {result['eval_f1']:.2f} ± 0.00 |")
        assert (tmp_path / f"{name}-seed-1.keras").exists()
    sizes = [
        keras.models.load_model(tmp_path / f"{name}-seed-1.keras").input["features"].shape[2:]
        for name in results
    ]
    assert sizes == [(22,), (22,), (22,), (4, 22), (88,), (5, 22)]


def test_batches(data):
    """What the tagger is given: the right layers, padding, labels on first pieces alone."""
    tokenizer = bert_tf.FullTokenizer(data / "words.txt")
    sentences = list(ner.read_sentences(data / "dev.conll"))
    sentences[1] = ner.Sentence(("w1", "w2.w3", "w5"), ("O", "B-LOC", "B-PER"))
    windows = ner.sentence_windows(sentences, tokenizer, LENGTH)
    lengths = [len(window.input_ids) for window in windows]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    random = np.random.default_rng(5)
    values = random.normal(size=(offsets[-1], 4, 3)).astype(np.float16)
    file = TaggedFile(sentences, windows, StoredFeatures(values, offsets, (0, 2, 3, 5), True))
    rows = [4, 1, 7]
    inputs = file.batch(rows, (5, 2), weighted=True)
    length = max(lengths[row] for row in rows)
    assert inputs["features"].shape == (3, length, 2, 3)
    joined = file.batch(rows, (5, 2), weighted=False)["features"]
    for i, row in enumerate(rows):
        own = values[offsets[row] : offsets[row + 1]][:, [3, 1]].astype(np.float32)
        np.testing.assert_array_equal(inputs["features"][i, : lengths[row]], own)
        assert not inputs["features"][i, lengths[row] :].any()
        assert inputs["input_mask"][i].tolist() == [1] * lengths[row] + [0] * (
            length - lengths[row]
        )
        np.testing.assert_array_equal(joined[i, : lengths[row]], own.reshape(-1, 6))
    labels, weights = file.labels(rows, length, {"O": 0, "B-LOC": 1, "I-LOC": 2, "B-PER": 3})
    assert labels.shape == weights.shape == (3, length)
    # [CLS] w1 w2 . w3 w5 [SEP]: the second word has three pieces.
    assert labels[1, :7].tolist() == [0, 0, 1, 0, 0, 3, 0]
    assert weights[1, :7].tolist() == [0, 1, 1, 0, 0, 1, 0]
    for generator in (None, np.random.default_rng(0)):
        batches = file.batches(5, generator)
        assert sorted(row for batch in batches for row in batch) == list(range(len(windows)))
        assert all(len(batch) <= 5 for batch in batches)
    shuffled = np.random.default_rng(0)
    assert file.batches(5, shuffled) != file.batches(5, shuffled)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": "1,1"}, "--seeds: expected distinct integers of at least 0, got '1,1'"),
        ({"seeds": "x"}, "--seeds: expected distinct integers"),
        ({"seeds": ""}, "--seeds: expected distinct integers"),
        ({"num_train_epochs": 0}, "num_train_epochs: expected at least 1, got 0"),
        ({"learning_rate": 0}, "learning_rate: expected above 0, got 0"),
        ({"dropout_rate": 1}, "dropout_rate: expected at least 0 and below 1, got 1"),
        ({"model_dir": None}, "expected --model_dir"),
        ({"max_seq_length": 42}, "--max_seq_length: expected 3 to 41"),
        ({"dev_file": "/nowhere/dev"}, "/nowhere/dev"),
        ({"tag_column": 3}, "line 1: expected columns 0 .words. and 3 .tags."),
    ],
)
def test_what_is_refused(data, tmp_path, changes, message, monkeypatch):
    monkeypatch.setattr(taggers, "stored_features", None)  # nothing may come so far
    with pytest.raises((ValueError, OSError), match=message):
        run(data, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_two_processes_do_not_train_in_one_folder(data, tmp_path):
    with filelock.FileLock(tmp_path / "lock"):
        with pytest.raises(InputError, match="output_dir: another process trains in "):
            run(data, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_too_few_layers(data, tmp_path):
    keras.utils.set_random_seed(3)
    shallow = bert_tf.bert_encoder(synthetic.small_config(), hidden_states=True)
    save_model_directory(tmp_path / "m", shallow, data / "words.txt")
    with pytest.raises(ValueError, match="'Weighted Sum Last Four Hidden' needs at least 4 layers"):
        run(data, tmp_path / "out", model_dir=tmp_path / "m")


def test_the_command_says_in_one_line_what_is_wrong(data, tmp_path):
    done = warm_commands.run(
        [
            "experiments/run_feature_based.py",
            f"--train_file={data}/train.conll",
            f"--dev_file={data}/none.conll",
            f"--output_dir={tmp_path}/out",
            f"--model_dir={data}/model",
        ],
        cwd=REPOSITORY,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"run_feature_based: dev_file: no such file or directory: {data}/none.conll"
    ]
