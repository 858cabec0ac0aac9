"""What is written: whole or not at all, and read back to the bit."""

import dataclasses
import importlib.util
import json
import logging
import os
import pathlib
import re

import h5py
import keras
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import tensorflow as tf

from bert_tf.config import ACTIVATIONS, BertConfig
from bert_tf.models.task_models import HEADS
from bert_tf.models.variables import weights_by_name
from bert_tf.serving.load import load_served_model
from bert_tf.tokenization.vocabulary import SPECIAL_TOKENS
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights import tensor_files
from bert_tf.weights.keras_hub import save_keras_hub, to_keras_hub
from bert_tf.weights.layouts import KERAS_HUB
from bert_tf.weights.load import load_bert, load_checkpoint, load_model
from bert_tf.weights.locate import locate
from bert_tf.weights.save import save_hf, save_keras, save_model_directory, save_tf1
from bert_tf.weights.tensor_bundle import read_tensors
from tests.support import synthetic_records as synthetic

# Keras of itself reads its variables in a way that NumPy is about to give up.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SMALL = synthetic.small_config(num_hidden_layers=1)
NUM_LABELS = {"classification": 3, "token_classification": 7}
POOLER = {"bert/pooler/dense/kernel", "bert/pooler/dense/bias"}


def make(kind, config=SMALL, seed=3, **arguments):
    keras.utils.set_random_seed(seed)
    if kind in NUM_LABELS:
        arguments = {"num_labels": NUM_LABELS[kind], **arguments}
    model = HEADS[kind].make(config, **arguments)
    # What begins as zeros or ones would look the same wherever it came from.
    random = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.path.endswith(("bias", "beta", "gamma")):
            weight.assign(random.normal(size=weight.shape).astype(np.float32))
    return model


def values(model):
    return {name: weight.numpy() for name, weight in weights_by_name(model).items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.fixture(scope="module")
def models():
    return {kind: make(kind, seed=3 + i) for i, kind in enumerate(HEADS)}


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory):
    """Return a vocabulary whose bytes do not follow from its pieces: no newline at its end."""
    path = tmp_path_factory.mktemp("vocabulary") / "words.txt"
    synthetic.write_vocabulary(path)
    path.write_bytes(path.read_bytes()[:-1])
    return path


@pytest.fixture(scope="module")
def tokenizer(vocab_file):
    return FullTokenizer(vocab_file, True)


def save(form, folder, model, tokenizer=None, labels=None):
    if form == "tf":
        vocab_file = tokenizer.vocab_file if tokenizer else None
        return save_model_directory(folder, model, vocab_file, labels)
    if form == "hf":
        return save_hf(folder, model, tokenizer, labels)
    if form == "hub":
        return save_keras_hub(folder, model, tokenizer)
    return save_keras(folder / f"model{form}", model, tokenizer, labels)


FORMS = ["tf", "hf", ".keras", ".weights.h5"]
FILES = {
    "tf": {"bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001", "bert_config.json"},
    "hf": {
        "config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    },
    ".keras": {"model.keras", "bert_config.json"},
    ".weights.h5": {"model.weights.h5", "bert_config.json"},
}


# === Whole ===


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_and_nothing_temporary(models, tokenizer, form, tmp_path):
    folder = tmp_path / "a" / "b"  # made where it is missing
    labels = ["x", "y", "z"]
    save(form, folder, models["classification"], tokenizer, labels)
    others = {"vocab.txt"} if form == "hf" else {"vocab.txt", "labels.txt"}
    assert set(os.listdir(folder)) == FILES[form] | others
    vocab = pathlib.Path(tokenizer.vocab_file).read_bytes()
    assert (folder / "vocab.txt").read_bytes() == vocab
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    save(form, folder, models["classification"], tokenizer, labels)
    assert set(os.listdir(folder)) == set(first)
    if form in ("tf", "hf"):  # files of Keras hold dates
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", HEADS)
def test_what_is_written_is_read_back_to_the_bit(models, kind, form, tmp_path):
    model = models[kind]
    skipped = save(form, tmp_path, model)
    left_out = POOLER if form == "hf" and kind in ("span", "token_classification") else set()
    assert set(skipped or ()) == left_out
    found = load_model(tmp_path)
    assert found.kind == kind and found.config == SMALL
    assert set(found.transfer.missing) == left_out
    expected, got = values(model), values(found.model)
    for name in left_out:
        del expected[name], got[name]
    assert_same(got, expected)


def test_names_and_arrays_of_each_format_are_those_of_its_system(models, tmp_path):
    model = models["classification"]
    ours = values(model)
    query = ours["bert/encoder/layer_0/attention/self/query/kernel"]
    save("tf", tmp_path / "tf", model)
    stored = read_tensors(tmp_path / "tf" / "bert_model.ckpt")
    root = {"classifier/output_weights": "output_weights", "classifier/output_bias": "output_bias"}
    assert_same(stored, {root.get(name, name): array for name, array in ours.items()})
    reader = tf.compat.v1.train.NewCheckpointReader(str(tmp_path / "tf" / "bert_model.ckpt"))
    assert reader.get_variable_to_shape_map()["output_weights"] == [3, 22]

    save("hf", tmp_path / "hf", model)
    stored = safetensors.numpy.load_file(tmp_path / "hf" / "model.safetensors")
    assert len(stored) == len(ours) and all(a.dtype == np.float32 for a in stored.values())
    np.testing.assert_array_equal(
        stored["bert.encoder.layer.0.attention.self.query.weight"], query.T
    )
    np.testing.assert_array_equal(stored["classifier.weight"], ours["classifier/output_weights"])
    with safetensors.safe_open(tmp_path / "hf" / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    save("hf", tmp_path / "bare", models["encoder"])
    names = set(safetensors.numpy.load_file(tmp_path / "bare" / "model.safetensors"))
    assert names and not any(name.startswith("bert.") for name in names)

    save(".weights.h5", tmp_path / "h5", model)
    with h5py.File(tmp_path / "h5" / "model.weights.h5") as file:
        np.testing.assert_array_equal(
            file["layers/classification_head/vars/0"][()], ours["classifier/output_weights"]
        )


def test_the_file_of_keras_is_read_by_keras(models, tmp_path):
    save(".keras", tmp_path, models["classification"])
    assert_same(
        values(keras.models.load_model(tmp_path / "model.keras", compile=False)),
        values(models["classification"]),
    )


@pytest.mark.parametrize("form", ["hf", ".keras"])
def test_a_model_in_mixed_precision_is_written_in_full(form, tmp_path):
    model = make("classification", dtype="mixed_bfloat16")
    save(form, tmp_path, model)
    found = load_model(tmp_path)
    assert_same(values(found.model), values(model))
    if form != ".keras":  # which holds the model with its types
        assert found.model.dtype_policy.name == "float32"


def test_what_was_read_is_written_with_the_same_bytes(models, tokenizer, tmp_path):
    for form, file in (("hf", "model.safetensors"), ("tf", "bert_model.ckpt.data-00000-of-00001")):
        save(form, tmp_path / form, models["classification"], tokenizer, ["x", "y", "z"])
        found = load_model(tmp_path / form)
        save(form, tmp_path / f"{form} again", found.model, found.tokenizer, found.labels)
        again = {path.name: path.read_bytes() for path in (tmp_path / f"{form} again").iterdir()}
        assert again == {path.name: path.read_bytes() for path in (tmp_path / form).iterdir()}
        assert file in again


def test_a_tokenizer_without_a_file_is_written_piece_by_piece(models, tokenizer, tmp_path):
    other = FullTokenizer.from_vocab(tokenizer.vocab, True)
    for form in ("hf", ".keras"):
        save(form, tmp_path / form, models["encoder"], other)
        content = (tmp_path / form / "vocab.txt").read_bytes()
        assert content == "".join(f"{piece}\n" for piece in synthetic.VOCAB).encode()
        assert FullTokenizer(tmp_path / form / "vocab.txt").vocab == tokenizer.vocab


def test_a_vocabulary_may_lie_where_it_is_written(models, vocab_file, tmp_path):
    content = vocab_file.read_bytes()
    (tmp_path / "vocab.txt").write_bytes(content)
    tokenizer = FullTokenizer(tmp_path / "vocab.txt", True)
    for form in FORMS:
        save(form, tmp_path, models["encoder"], tokenizer)
        assert (tmp_path / "vocab.txt").read_bytes() == content


@pytest.mark.parametrize("form", ["tf", "hf", ".weights.h5"])
def test_labels_of_a_model_before_do_not_become_those_of_another(models, form, tmp_path):
    save(form, tmp_path, models["classification"], labels=["x", "y", "z"])
    assert load_model(tmp_path).labels == ("x", "y", "z")
    save(form, tmp_path, make("classification", num_labels=3, seed=23))
    assert load_model(tmp_path).labels in (None, ("LABEL_0", "LABEL_1", "LABEL_2"))
    save(form, tmp_path, make("classification", num_labels=2, seed=23))
    assert load_model(tmp_path).labels in (None, ("LABEL_0", "LABEL_1"))


# === config.json of transformers ===


@pytest.mark.parametrize("left_to_right", [False, True])
def test_the_configuration_is_read_back_identically(left_to_right, tmp_path):
    for activation in ACTIVATIONS:
        config = BertConfig(
            vocab_size=13,
            hidden_size=6,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=7,
            hidden_act=activation,
            hidden_dropout_prob=0.3,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=11,
            type_vocab_size=5,
            initializer_range=0.07,
            layer_norm_eps=1e-5,
            left_to_right=left_to_right,
        )
        model = make("encoder", config)
        for form, name in (("hf", "config.json"), ("tf", "bert_config.json")):
            folder = tmp_path / form / activation
            save(form, folder, model)
            assert BertConfig.from_json_file(folder / name) == config


def test_config_json_names_the_class_and_the_labels(models, tmp_path):
    architectures = {
        "encoder": "BertModel",
        "pretraining": "BertForPreTraining",
        "next_sentence": "BertForNextSentencePrediction",
        "classification": "BertForSequenceClassification",
        "span": "BertForQuestionAnswering",
        "token_classification": "BertForTokenClassification",
        "multiple_choice": "BertForMultipleChoice",
    }
    for kind, architecture in architectures.items():
        save("hf", tmp_path / kind, models[kind])
        settings = json.loads((tmp_path / kind / "config.json").read_text())
        assert settings["architectures"] == [architecture] and settings["model_type"] == "bert"
        assert ("id2label" in settings) == (kind in NUM_LABELS)
    save("hf", tmp_path / "x", models["classification"], labels=["no", "yes", "può darsi"])
    settings = json.loads((tmp_path / "x" / "config.json").read_text())
    assert settings["id2label"] == {"0": "no", "1": "yes", "2": "può darsi"}
    assert settings["label2id"] == {"no": 0, "yes": 1, "può darsi": 2}


# === Refusals ===


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["x", "y"], "labels: the classification head has 3 of them, got 2"),
        ([], "labels: the classification head has 3 of them, got 0"),
        (["x", "y\nz", "w"], r"names of one line each, got 'y\\nz'"),
        (["x", "y", "z\r"], r"names of one line each, got 'z\\r'"),
        (["x", "y", "z\u2028"], "names of one line each"),
        (["x", "", "z"], "names of one line each, got ''"),
    ],
)
def test_wrong_labels_are_refused_before_anything_is_written(
    models, form, labels, message, tmp_path
):
    with pytest.raises(ValueError, match=message):
        save(form, tmp_path / "x", models["classification"], labels=labels)
    assert not (tmp_path / "x").exists()


def test_labels_of_a_model_without_labels_are_refused(models, tmp_path):
    for form in FORMS:
        with pytest.raises(ValueError, match="labels: the span head has None of them, got 1"):
            save(form, tmp_path / "x", models["span"], labels=["x"])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["model", "model.h5", "model.weights", "model.keras.zip", "x.tf"])
def test_other_suffixes_are_refused(models, name, tmp_path):
    with pytest.raises(ValueError, match="expected a name ending in .keras or .weights.h5"):
        save_keras(tmp_path / "x" / name, models["encoder"])
    assert not (tmp_path / "x").exists()


def test_models_of_others_are_refused(tmp_path):
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    for form in (*FORMS, "hub"):
        with pytest.raises(ValueError, match="expected a model of bert_tf, got Sequential"):
            save(form, tmp_path / "x", other)
    assert not (tmp_path / "x").exists()


# === A write that fails ===


def half(path):
    with open(path, "wb") as file:
        file.write(b"half of it")
    raise OSError("disk full")


def break_writing(monkeypatch, form):
    if form == "tf":
        monkeypatch.setattr(tf.raw_ops, "SaveV2", lambda prefix, **_: half(f"{prefix}.data-x"))
    elif form == "hf":
        monkeypatch.setattr(
            safetensors.numpy, "save_file", lambda tensors, path, metadata=None: half(path)
        )
    elif form == ".keras":
        monkeypatch.setattr(keras.Model, "save", lambda self, path: half(path))
    else:
        monkeypatch.setattr(keras.Model, "save_weights", lambda self, path: half(path))


@pytest.mark.parametrize("form", FORMS)
def test_a_write_that_fails_leaves_no_checkpoint(models, tokenizer, form, tmp_path, monkeypatch):
    break_writing(monkeypatch, form)
    with pytest.raises(OSError, match="disk full"):
        save(form, tmp_path, models["classification"], tokenizer, ["x", "y", "z"])
    with pytest.raises(FileNotFoundError, match="expected bert_model.ckpt.index"):
        locate(tmp_path)
    assert not [name for name in os.listdir(tmp_path) if "tmp" in name]


@pytest.mark.parametrize("form", FORMS)
def test_a_write_that_fails_leaves_what_was_before(models, form, tmp_path, monkeypatch):
    save(form, tmp_path, models["classification"], labels=["x", "y", "z"])
    before, weights = folder_of(tmp_path), values(models["classification"])
    break_writing(monkeypatch, form)
    other = dataclasses.replace(SMALL, num_attention_heads=1)
    with pytest.raises(OSError, match="disk full"):
        save(form, tmp_path, make("classification", other), labels=["a", "b", "c"])
    monkeypatch.undo()
    after = folder_of(tmp_path)
    assert {name: after[name] for name in before} == before
    assert_same(values(load_model(tmp_path).model), weights)


def folder_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("form", [*FORMS, "hub"])
def test_a_configuration_is_never_beside_the_weights_of_another(
    models, form, tmp_path, monkeypatch
):
    """Whatever rename of an overwriting save is the last that happens, what can be read fits."""
    if form == "hub":
        pytest.importorskip("keras_hub", reason="keras-hub is not installed")
    config = dataclasses.replace(SMALL, hidden_act="gelu_tanh", layer_norm_eps=1e-12)
    old = make("encoder", config, seed=3)
    new = make("encoder", dataclasses.replace(config, hidden_size=26), seed=5)
    widths, replace = set(), os.replace
    for stop in range(20):
        save(form, tmp_path / str(stop), old)
        left = [stop]

        def limited(source, target, left=left):
            if not left[0]:
                raise KilledError
            left[0] -= 1
            replace(source, target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", limited)
            try:
                save(form, tmp_path / str(stop), new)
            except KilledError:
                pass
            else:
                break
        try:
            widths.add(load_bert(tmp_path / str(stop)).config.hidden_size)
        except FileNotFoundError:
            pass
    assert stop > 1 and widths <= {SMALL.hidden_size, 26}


def test_weights_of_other_layers_are_not_written_nor_taken_for_known(tmp_path):
    encoder = make("encoder")
    scores = keras.layers.Dense(5, name="own")(encoder.output["pooled_output"])
    model = keras.Model(encoder.input, scores)
    for form in ("tf", "hf", "hub"):
        with pytest.raises(
            ValueError, match="not of BERT or of a head of this package.*own/kernel"
        ):
            save(form, tmp_path / "x", model)
    assert not (tmp_path / "x").exists()
    save(".keras", tmp_path, model)
    with pytest.raises(ValueError, match="layers that are not of this package: own/kernel"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="not in the model.*own/kernel"):
        load_bert(tmp_path)
    found = load_bert(tmp_path, ignore=["^own/"]).encoder
    assert_same(values(found), values(encoder))


def test_a_folder_has_the_configuration_of_one_model(models, tmp_path):
    save(".keras", tmp_path, models["encoder"])
    save(".weights.h5", tmp_path, models["span"])  # the same configuration
    other = make("encoder", dataclasses.replace(SMALL, num_attention_heads=1))
    with pytest.raises(ValueError, match="model.keras, whose bert_config.json and labels.txt"):
        save_keras(tmp_path / "other.keras", other)
    assert not (tmp_path / "other.keras").exists()


def test_the_tokenizer_before_does_not_stay(models, tokenizer, tmp_path):
    save("hf", tmp_path, models["encoder"], FullTokenizer.from_vocab(tokenizer.vocab, False))
    assert load_bert(tmp_path).tokenizer.do_lower_case is False
    (tmp_path / "model.safetensors").unlink()
    save("tf", tmp_path, models["encoder"], tokenizer)
    assert load_bert(tmp_path).tokenizer.do_lower_case is True


@pytest.mark.parametrize("form", FORMS)
def test_a_pooler_that_nothing_has_trained_gives_no_output(form, tmp_path):
    if form != ".weights.h5":  # which holds weights, and nothing of what they are for
        save(form, tmp_path, make("encoder", pooled_output=False))
        assert set(load_bert(tmp_path).encoder.output) == {"sequence_output"}
    config = dataclasses.replace(SMALL, next_sentence_prediction=False)
    save(form, tmp_path, make("pretraining", config))
    assert set(load_bert(tmp_path).encoder.output) == {"sequence_output"}


@pytest.mark.parametrize("form", ["hf", ".keras"])
def test_the_dropout_before_a_head_is_kept(form, tmp_path):
    save(form, tmp_path, make("classification", dropout_rate=0.37))
    model = load_model(tmp_path, dtype="mixed_bfloat16").model
    assert model.get_layer("dropout").rate == 0.37
    assert model.get_layer("dropout").dtype_policy.name == "mixed_bfloat16"


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("form", ["hf", ".keras", ".weights.h5"])
@pytest.mark.parametrize("before", [True, False])
def test_what_a_killed_write_leaves_is_not_taken_for_a_checkpoint(models, form, before, tmp_path):
    if before:
        save(form, tmp_path, models["classification"])
        whole = locate(tmp_path)
    left = []

    def kill(source, target):
        if pathlib.Path(target).suffix in (".safetensors", ".keras", ".h5"):
            left.append(pathlib.Path(source))
            raise KilledError
        replace(source, target)

    replace = os.replace
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(os, "replace", kill)
        patch.setattr(pathlib.Path, "unlink", lambda *_, **__: None)
        patch.setattr(
            os, "unlink", lambda *_, **__: None
        )  # a process that is killed tidies nothing
        save(form, tmp_path, models["classification"])
    assert left[0].exists()
    if before:
        assert locate(tmp_path) == whole
    else:
        with pytest.raises(FileNotFoundError):
            locate(tmp_path)


def test_an_unwritable_folder_is_an_error_of_the_system(models, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for form in FORMS:
        with pytest.raises(OSError, match=re.escape(str(tmp_path / "file"))):
            save(form, tmp_path / "file" / "x", models["encoder"])
    assert os.listdir(tmp_path) == ["file"]


# === KerasHub ===


@pytest.fixture
def keras_hub():
    return pytest.importorskip("keras_hub")


def test_a_preset_is_read_back_to_the_bit(keras_hub, models, tokenizer, tmp_path):
    for kind in ("encoder", "classification", "pretraining"):
        ours = values(models[kind])
        skipped = save("hub", tmp_path / kind, models[kind], tokenizer)
        assert set(skipped) == {name for name in ours if not name.startswith("bert/")}
        found = load_bert(tmp_path / kind)
        bert = {name: array for name, array in ours.items() if name.startswith("bert/")}
        assert found.config == SMALL and found.tokenizer.vocab == tokenizer.vocab
        assert_same(values(found.encoder), bert)
        backbone = keras_hub.models.BertBackbone.from_preset(str(tmp_path / kind))
        assert_same(values(load_bert(backbone).encoder), bert)
    vocab = (tmp_path / "encoder" / "assets" / "tokenizer" / "vocabulary.txt").read_text()
    assert vocab.splitlines() == list(synthetic.VOCAB)


def test_a_backbone_has_every_weight_of_the_encoder_and_no_other(keras_hub, models):
    backbone = to_keras_hub(models["pretraining"])
    assert isinstance(backbone, keras_hub.models.BertBackbone)
    ours = values(models["pretraining"])
    theirs = weights_by_name(backbone)
    names = {KERAS_HUB.theirs(name) for name in ours if name.startswith("bert/")}
    assert names == set(theirs)
    query = theirs["transformer_layer_0/self_attention_layer/query/kernel"].numpy()
    expected = ours["bert/encoder/layer_0/attention/self/query/kernel"].reshape(22, 2, 11)
    np.testing.assert_array_equal(query, expected)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_act", "gelu_erf"),
        ("hidden_act", "relu"),
        ("layer_norm_eps", 1e-5),
        ("left_to_right", True),
    ],
)
def test_what_keras_hub_cannot_compute_is_refused(field, value, tmp_path):
    model = make("encoder", dataclasses.replace(SMALL, **{field: value}))
    with pytest.raises(
        ValueError,
        match=f"^{field}: KerasHub's BertBackbone always has .* this model has {value!r}",
    ):
        save("hub", tmp_path / "x", model)
    assert not (tmp_path / "x").exists()


def test_of_two_rates_of_dropout_one_is_kept_and_the_other_told(keras_hub, tmp_path, caplog):
    config = dataclasses.replace(SMALL, attention_probs_dropout_prob=0.3)
    save("hub", tmp_path, make("encoder", config))
    assert "attention_probs_dropout_prob 0.3 is not" in caplog.text
    found = load_bert(tmp_path).config
    assert found == dataclasses.replace(config, attention_probs_dropout_prob=0.1)


def test_what_another_system_would_do_otherwise_is_told(keras_hub, tmp_path, caplog):
    without = dataclasses.replace(SMALL, next_sentence_prediction=False)
    with caplog.at_level(logging.WARNING, "bert_tf"):
        backbone = to_keras_hub(make("pretraining", without))
        save_hf(tmp_path, make("classification", window_pooling="max"))
    assert isinstance(backbone, keras_hub.models.BertBackbone)
    assert "nothing has trained the pooler of this model" in caplog.text
    assert "BertForSequenceClassification reads one window of a text, and pools no" in caplog.text


def test_a_preset_that_is_not_whole_is_not_taken_for_a_checkpoint(
    keras_hub, models, tmp_path, monkeypatch
):
    monkeypatch.setattr(keras_hub.models.BertBackbone, "save_weights", lambda self, p, **_: half(p))
    with pytest.raises(OSError, match="disk full"):
        save("hub", tmp_path, models["encoder"])
    with pytest.raises(FileNotFoundError):
        locate(tmp_path)


def test_formats_are_told_from_what_they_hold(models, tmp_path):
    found = {}
    for form in FORMS:
        save(form, tmp_path / form, models["encoder"])
        found[form] = locate(tmp_path / form)
    assert [found[form].format for form in FORMS] == ["tf", "hf", "keras", "keras_weights"]
    assert [tensor_files.recognise(found[form].path) for form in FORMS[1:]] == [
        "safetensors",
        "keras",
        "hdf5",
    ]


def test_half_precision_is_rounded_and_refused_where_it_cannot_hold_a_weight(tmp_path):
    model = make("pretraining")
    save_hf(tmp_path / "full", model)
    save_hf(tmp_path / "half", model, dtype="float16")
    full, half = (
        safetensors.numpy.load_file(tmp_path / name / "model.safetensors")
        for name in ("full", "half")
    )
    assert full.keys() == half.keys()
    for name, array in full.items():
        assert (array.dtype, half[name].dtype) == (np.float32, np.float16), name
        # Half of a unit in the last place: 11 bits, down to the least number of 2 ** -24.
        assert (np.abs(half[name] - array) <= np.maximum(2.0**-11 * abs(array), 2.0**-25)).all()
    loaded = load_model(tmp_path / "half").model
    assert {weight.dtype for weight in loaded.weights} == {"float32"}
    kernel = model.weights[0]
    kernel.assign(np.where(np.arange(kernel.shape[-1]) == 3, 7e4, kernel.numpy()))
    with pytest.raises(ValueError, match="dtype: bert.* has the value 70000, too large for float1"):
        save_hf(tmp_path / "half", model, dtype="float16")
    kernel.assign(np.where(kernel.numpy() == np.float32(7e4), np.inf, kernel.numpy()))
    kernel.assign(np.where(np.arange(kernel.shape[-1]) == 4, 7e4, kernel.numpy()))
    with pytest.raises(ValueError, match="dtype: bert.* has the value 70000, too large for float1"):
        save_hf(tmp_path / "half", model, dtype="float16")
    assert load_model(tmp_path / "half").transfer.moved
    with pytest.raises(ValueError, match="dtype: expected float32 or float16, got 'int8'"):
        save_hf(tmp_path / "half", model, dtype="int8")


def test_labels_that_are_alike_and_a_folder_for_a_prefix_are_refused(models, tmp_path):
    with pytest.raises(ValueError, match="labels: expected different names"):
        save_hf(tmp_path, models["classification"], None, ["a"] * 3)
    with pytest.raises(ValueError, match="prefix: expected a name"):
        save_tf1(f"{tmp_path}/", models["encoder"])
    with pytest.raises(ValueError, match=r"ignore: '\[' is not a regular expression"):
        load_checkpoint(models["encoder"], models["encoder"], ignore=["["])
    assert not list(tmp_path.iterdir())


def test_a_piece_that_came_twice_leaves_an_id_that_is_written(keras_hub, models, tmp_path):
    tokenizer = FullTokenizer.from_vocab({"[UNK]": 0, "b": 1, "a": 3}, True)
    save_model_directory(tmp_path / "tf", models["encoder"], tokenizer=tokenizer)
    lines = (tmp_path / "tf" / "vocab.txt").read_text().splitlines()
    assert lines == ["[UNK]", "b", "[unused_id_2]", "a"]


@pytest.mark.parametrize("form", ["tf", "hf", ".keras", "hub"])
@pytest.mark.parametrize("do_lower_case", [True, False])
def test_accents_are_treated_alike_by_who_reads_the_model_again(
    models, form, do_lower_case, tmp_path
):
    """Lower-cased text that keeps its accents, or cased text that loses them."""
    if form == "hub":
        pytest.importorskip("keras_hub")
    letters = ["ż", "z", "ł"] if do_lower_case else ["ż", "Z", "z", "Ł"]
    pieces = [*SPECIAL_TOKENS, *letters, *(f"q{i}" for i in range(SMALL.vocab_size))]
    vocab = {piece: i for i, piece in enumerate(pieces[: SMALL.vocab_size])}
    expected = ["ż", "ż", "ł"] if do_lower_case else ["Z", "z", "Ł"]

    def write(tokenizer):
        if form == "tf":
            save_model_directory(tmp_path, models["encoder"], tokenizer=tokenizer)
        else:
            save(form, tmp_path, models["encoder"], tokenizer)
        return load_bert(tmp_path).tokenizer

    default = FullTokenizer.from_vocab(vocab, do_lower_case)
    tokenizer = default.with_strip_accents(not do_lower_case)
    assert tokenizer.tokenize("Ż ż Ł") == expected
    read = write(tokenizer)
    assert (read.do_lower_case, read.strip_accents) == (do_lower_case, not do_lower_case)
    assert read.tokenize("Ż ż Ł") == expected
    if form == "tf":
        served = load_served_model(tmp_path, task="embeddings")
        ids = served.text_to_ids(tf.constant(["Ż ż Ł"])).to_list()
        assert ids == [tokenizer.convert_tokens_to_ids(expected)]
    if form == "hf" and importlib.util.find_spec("transformers"):
        import transformers

        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert theirs.tokenize("Ż ż Ł") == expected
    assert write(default).strip_accents == do_lower_case
