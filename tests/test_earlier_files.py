"""Files of the code before its modules moved to other packages: it goes on with all of them.

tests/golden/earlier/make_artifacts.py made them. Here are only commands and names of the front
door, no modules, so that what is asked does not depend on where these lie.
"""

import codecs
import gzip
import hashlib
import json
import os
import pathlib
import shutil
import tarfile
import unicodedata

import keras
import numpy as np
import pytest

import bert_tf
from bert_tf.tasks.trained_task import read_trained_task
from tests.support import warm_commands

REPOSITORY = next(
    folder for folder in pathlib.Path(__file__).resolve().parents if (folder / "setup.py").is_file()
)
EARLIER = REPOSITORY / "tests" / "golden" / "earlier"
EXPECTED = json.loads((EARLIER / "expected.json").read_text(encoding="utf-8"))
TIMED = ("sequences_per_second", "tokens_per_second", "time_seconds")
# What logs and results hold since these runs.
LATER = {"eval_ece", "tokens", "cpu_seconds", "unigram_accuracy"}
LATER |= {f"eval_mlm_{name}_at_mask" for name in ("loss", "accuracy")}
LATER |= {f"masked_lm_{name}_at_mask" for name in ("loss", "accuracy")}
# Bits are equal on one machine; another way of adding up (XLA, one thread) moves a weight by 2e-6.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

# The digest by which records of a task are known holds the version of Unicode.
needs_same_unicode = pytest.mark.skipif(
    unicodedata.unidata_version != EXPECTED["finetuning_data"]["unicode"],
    reason="records of a task are made anew where Python has another version of Unicode",
)


def unpack(folder, *names):
    for name in names:
        with tarfile.open(EARLIER / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")


def run(name, folder):
    """Runs the command that made the files in a folder, and returns what it printed."""
    script, *arguments = EXPECTED["commands"][name]
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    done = warm_commands.run([REPOSITORY / script, *arguments], cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def states_of(folder):
    """Content of every file, and when it was written."""
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- preparation of data --------------------------------------------------------------------------


def test_records_and_their_manifest_are_read(tmp_path):
    unpack(tmp_path, "pretraining_data")
    manifest = read_json(tmp_path / "records" / "train.manifest.json")
    found = {path.name: sha256(path) for path in (tmp_path / "records").glob("*.tfrecord")}
    assert found == EXPECTED["pretraining_data"]["record_sha256"]
    dataset = bert_tf.pretraining_dataset(
        f"{tmp_path}/records/train-*.tfrecord",
        batch_size=7,
        max_seq_length=manifest["max_seq_length"],
        max_predictions_per_seq=manifest["max_predictions_per_seq"],
        is_training=False,
    )
    labels = [
        (batch_weights["masked_lm_logits"].sum(), (inputs["input_ids"] > 0).sum())
        for inputs, _, batch_weights in dataset.as_numpy_iterator()
    ]
    masked, tokens = np.sum(labels, axis=0)
    counts = manifest["counts"]
    assert masked == counts["masked_tokens"]
    padding = 1 - tokens / (counts["instances"] * manifest["max_seq_length"])
    assert padding == pytest.approx(counts["padding_fraction"])


def name_of_work_folder(folder):
    """The name that unfinished work must have here, of which paths and times are a part."""
    what = dict(EXPECTED["pretraining_data"]["work_folder_of"])
    stats = [(folder / path, (folder / path).stat()) for path, *_ in what["input_files"]]
    what["input_files"] = [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]
    what["output_files"] = [str(folder / path) for path in what["output_files"]]
    what |= {"numpy": np.__version__, "unicode": unicodedata.unidata_version}
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return f"train.work-{digest[:16]}"


@pytest.mark.parametrize(("stage", "tokenized"), [("tokenizing", [1]), ("writing", [1, 2])])
def test_a_preparation_that_was_killed_goes_on(tmp_path, stage, tokenized):
    """A text that had been tokenized is garbled: were it read again, other records would come."""
    folder = tmp_path.resolve()
    unpack(folder, "pretraining_data")
    manifest = read_json(folder / "records" / "train.manifest.json")
    shutil.rmtree(folder / "records")
    for number in tokenized:
        path = folder / f"text_{number}.txt"
        path.write_text(codecs.encode(path.read_text(encoding="utf-8"), "rot13"), encoding="utf-8")
    (folder / "records").mkdir()
    (folder / f"work_{stage}").rename(folder / "records" / name_of_work_folder(folder))
    output = run("pretraining_data", folder)
    expected = EXPECTED["pretraining_data"]["record_sha256"]
    assert {name: sha256(folder / "records" / name) for name in expected} == expected
    made = read_json(folder / "records" / "train.manifest.json")
    made["counts"] = {name: made["counts"][name] for name in manifest["counts"]}  # there are more
    assert made == manifest
    names = sorted(path.name for path in (folder / "records").iterdir())
    assert names == sorted([*expected, "train.manifest.json"])
    for step in ("1/3 tokenizing", "2/3 drawing pairs"):
        assert (step in output) == (stage == "tokenizing"), output
    assert "3/3 writing records" in output


@needs_same_unicode
def test_records_of_a_task_are_found_made(tmp_path):
    unpack(tmp_path, "finetuning_data")
    made = tmp_path / "task_records"
    before = states_of(made)
    output = run("finetuning_data", tmp_path)
    assert "found task_records/train.tfrecord" in output
    assert "found task_records/dev.tfrecord" in output and "wrote" not in output
    assert states_of(made) == before
    for split, fingerprint in EXPECTED["finetuning_data"]["fingerprints"].items():
        manifest = read_json(made / f"{split}.manifest.json")
        assert manifest["fingerprint"] == fingerprint
        records = bert_tf.TaskRecords.open(made / f"{split}.tfrecord")
        assert len(records) == manifest["counts"]["records"]


# --- runs -----------------------------------------------------------------------------------------


def check_log(folder, expected):
    """The lines of a run's log; what the clock decides is left out."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [
        (line["kind"], line["step"]) for line in expected
    ]
    for line, other in zip(lines, expected, strict=True):
        assert line.keys() - LATER - set(TIMED) == other.keys()
        for name in other.keys() - {"kind"}:
            np.testing.assert_allclose(line[name], other[name], **CLOSE, err_msg=f"{name}, {other}")


def check_weights(ours, theirs):
    """All weights of two models, as the front door loads them."""
    first, second = (
        {weight.path: np.asarray(weight) for weight in bert_tf.load_model(path).model.weights}
        for path in (ours, theirs)
    )
    assert first.keys() == second.keys() and len(first) > 20
    for name, value in second.items():
        np.testing.assert_allclose(first[name], value, **CLOSE, err_msg=name)


def check_results(folder, expected):
    found = read_json(folder / "eval_results.json")
    assert found.keys() - LATER == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, **CLOSE, err_msg=name)


def test_pretraining_that_was_stopped_goes_on_to_the_same_weights(tmp_path):
    unpack(tmp_path, "pretraining_data", "pretrained", "stopped_pretraining")
    (tmp_path / "pretrained").rename(tmp_path / "whole")
    (tmp_path / "stopped").rename(tmp_path / "pretrained")
    output = run("pretraining", tmp_path)
    assert "step 7 (continued)" in output
    assert "not as it would have" not in output and "damaged" not in output
    expected = EXPECTED["pretraining"]
    check_log(tmp_path / "pretrained", expected["log"])
    check_results(tmp_path / "pretrained", expected["eval_results"])
    check_weights(tmp_path / "pretrained", tmp_path / "whole")
    for name in ("bert_config.json", "vocab.txt"):
        assert (tmp_path / "pretrained" / name).read_bytes() == (
            tmp_path / "whole" / name
        ).read_bytes()


@needs_same_unicode
def test_fine_tuning_that_was_stopped_goes_on_to_the_same_weights(tmp_path):
    """The best weights are those of step 5, before the stop; of later steps the log tells."""
    unpack(tmp_path, "finetuning_data", "pretrained", "classifier", "stopped_classifier")
    folder = tmp_path / "classifier"
    folder.rename(tmp_path / "whole")
    (tmp_path / "stopped").rename(folder)
    before = states_of(folder / "records")
    output = run("classifier", tmp_path)
    assert "9/11" in output and "3/11" not in output and "6/11" not in output
    assert states_of(folder / "records") == before
    expected = EXPECTED["classifier"]
    check_log(folder, expected["log"])
    check_results(folder, expected["eval_results"])
    check_weights(folder, tmp_path / "whole")
    for name in ("bert_config.json", "labels.txt", "vocab.txt"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # What training writes has had more settings since.
    assert read_trained_task(folder) == read_trained_task(tmp_path / "whole")


# --- models ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arrays():
    with np.load(EARLIER / "models" / "arrays.npz") as stored:
        return dict(stored)


@pytest.fixture
def models(tmp_path):
    """Copy of the folder of models, in which no file is compressed."""
    folder = shutil.copytree(EARLIER / "models", tmp_path / "models")
    for path in folder.rglob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    return folder


def load_compiled(path):
    """What Keras alone loads, once the modules of what it meets have been imported."""
    assert bert_tf.bert_classifier and bert_tf.AdamWeightDecay
    return keras.models.load_model(path)


def inputs_of(arrays):
    return {name: arrays[name] for name in ("input_ids", "input_mask", "segment_ids")}


@pytest.mark.parametrize("place", ["directory", "directory/bert_model.ckpt", "saved_keras"])
def test_saved_models_load_and_give_the_outputs_of_then(models, arrays, place):
    loaded = bert_tf.load_model(models / place)
    assert loaded.kind == "token_classification" and loaded.labels == ("bad", "good", "so so")
    assert loaded.config.num_hidden_layers == 2
    assert loaded.tokenizer.tokenize("the cats") == ["the", "cat", "##s"]
    outputs = loaded.model.predict(inputs_of(arrays), verbose=0)
    np.testing.assert_allclose(outputs, arrays["directory"], **CLOSE)
    encoder, config, _ = bert_tf.load_bert(models / place)
    assert config == loaded.config
    assert encoder(inputs_of(arrays))["sequence_output"].shape == (3, 11, 14)


def test_a_compiled_classifier_goes_on_training(models, arrays):
    inputs = inputs_of(arrays)
    loaded = bert_tf.load_model(models / "classifier.keras")
    assert loaded.kind == "classification"
    np.testing.assert_allclose(
        loaded.model.predict(inputs, verbose=0), arrays["classifier"], **CLOSE
    )
    model = load_compiled(models / "classifier.keras")
    assert type(model.optimizer) is bert_tf.AdamWeightDecay
    assert int(model.optimizer.iterations.numpy()) == 3
    np.testing.assert_allclose(model.predict(inputs, verbose=0), arrays["classifier"], **CLOSE)
    losses = [
        model.train_on_batch(inputs, arrays["labels"], return_dict=True)["loss"] for _ in range(2)
    ]
    np.testing.assert_allclose(losses, arrays["classifier_losses"], **CLOSE)
    later = model.predict(inputs, verbose=0)
    np.testing.assert_allclose(later, arrays["classifier_later"], **CLOSE)


def test_a_compiled_pretrainer_goes_on_training(models, arrays):
    """Its losses are classes of the package, too."""
    inputs = {**inputs_of(arrays), "masked_lm_positions": arrays["masked_lm_positions"]}
    model = load_compiled(models / "pretrainer.keras")

    def check(name):
        for output, value in model.predict(inputs, verbose=0).items():
            np.testing.assert_allclose(value, arrays[f"{name}/{output}"], **CLOSE, err_msg=output)

    check("pretrainer")
    labels = {
        "masked_lm_logits": arrays["masked_lm_ids"],
        "next_sentence_logits": arrays["next_sentence_labels"],
    }
    weights = {
        "masked_lm_logits": arrays["masked_lm_weights"],
        "next_sentence_logits": np.ones((3, 1), np.float32),
    }
    losses = [
        model.train_on_batch(inputs, labels, weights, return_dict=True)["loss"] for _ in range(2)
    ]
    np.testing.assert_allclose(losses, arrays["pretrainer_losses"], **CLOSE)
    check("pretrainer_later")
