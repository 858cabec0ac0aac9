"""Filling and making models: every weight accounted for, whatever the checkpoint comes from."""

import dataclasses
import json
import logging
import pathlib
import re
import shutil

import keras
import numpy as np
import pytest
import safetensors.numpy

from bert_tf.config import BertConfig
from bert_tf.models.encoder import bert_encoder
from bert_tf.models.task_models import HEADS
from bert_tf.models.variables import weights_by_name
from bert_tf.tokenization.vocabulary import load_vocab
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights.checkpoint import open_checkpoint
from bert_tf.weights.keras_hub import save_keras_hub, to_keras_hub
from bert_tf.weights.load import RESIZABLE, load_bert, load_checkpoint, load_model
from bert_tf.weights.save import save_hf, save_keras, save_model_directory, save_tf1
from bert_tf.weights.tensor_bundle import read_tensors, write_tensors
from bert_tf.weights.tokenizers import load_tokenizer
from bert_tf.weights.uninitialized import Uninitialized
from tests.support import synthetic_records as synthetic

# Keras of itself reads its variables in a way that NumPy is about to give up.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

POSITIONS = "bert/embeddings/position_embeddings"
TYPES = "bert/embeddings/token_type_embeddings"
WORDS = "bert/embeddings/word_embeddings"
OUTPUT_BIAS = "cls/predictions/output_bias"
SMALL = synthetic.small_config(num_hidden_layers=1)
NUM_LABELS = {"classification": 3, "token_classification": 7}


def make(kind, config=SMALL, seed=3):
    keras.utils.set_random_seed(seed)
    arguments = {"num_labels": NUM_LABELS[kind]} if kind in NUM_LABELS else {}
    model = HEADS[kind].make(config, **arguments)
    # What begins as zeros or ones would look the same wherever it came from.
    random = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.path.endswith(("bias", "beta", "gamma")):
            weight.assign(random.normal(size=weight.shape).astype(np.float32))
    return model


@pytest.fixture(scope="module")
def model():
    return make("pretraining")


@pytest.fixture(scope="module")
def encoder():
    return make("encoder", seed=11)


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory):
    return synthetic.write_vocabulary(tmp_path_factory.mktemp("vocabulary") / "words.txt")


def values(model):
    return {name: weight.numpy() for name, weight in weights_by_name(model).items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def of_encoder(weights):
    return {name: array for name, array in weights.items() if name.startswith("bert/")}


def change_hf(folder, change):
    """Let `change` alter the dict of tensors of a directory of transformers."""
    path = pathlib.Path(folder) / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors = change(tensors) or tensors
    safetensors.numpy.save_file({n: a.copy() for n, a in tensors.items()}, path)


# === Filling a model ===


def test_round_trip_and_what_is_told_of_it(model, tmp_path):
    prefix = tmp_path / "bert_model.ckpt"
    save_tf1(prefix, model)
    other = make("pretraining", seed=5)
    assert not np.array_equal(other.weights[0].numpy(), model.weights[0].numpy())
    transfer = load_checkpoint(other, tmp_path)
    assert_same(values(other), values(model))
    assert transfer.layout == "google-research/bert" and str(prefix) in transfer.description
    assert {move.name for move in transfer.moved} == set(values(model))
    word = next(move for move in transfer.moved if move.name == WORDS)
    assert word == (WORDS, WORDS, (97, 22), (97, 22))
    assert transfer.missing == transfer.ignored == () and transfer.step is None


def test_the_original_code_checkpoint_loads_and_is_written_back(shared_data, tmp_path):
    folder = shared_data / "tf1_checkpoint"
    model, config, tokenizer, kind, labels, transfer, problem_type = load_model(folder)
    assert problem_type is None
    assert kind == "pretraining" and labels is None and transfer.step is not None
    assert config == BertConfig.from_json_file(folder / "bert_config.json")
    assert tokenizer.vocab_file == str(folder / "vocab.txt")
    stored = read_tensors(folder / "bert_model.ckpt")
    assert transfer.step == stored["global_step"]
    weights = {n: a for n, a in stored.items() if "adam_" not in n and n != "global_step"}
    assert len(weights) == 46
    assert_same(values(model), weights)
    save_model_directory(tmp_path, model, tokenizer.vocab_file)
    assert (tmp_path / "vocab.txt").read_bytes() == (folder / "vocab.txt").read_bytes()
    assert BertConfig.from_json_file(tmp_path / "bert_config.json") == config
    assert_same(read_tensors(tmp_path / "bert_model.ckpt"), weights)


def test_loading_is_strict_both_ways(model, tmp_path):
    prefix = tmp_path / "full.ckpt"
    save_tf1(prefix, model)
    encoder = bert_encoder(SMALL)
    before = values(encoder)
    with pytest.raises(
        ValueError, match=r"in the checkpoint but not in the model \(ignore= .*cls/predictions"
    ) as error:
        load_checkpoint(encoder, prefix)
    assert str(prefix) in str(error.value)
    assert_same(values(encoder), before)
    full = values(model)
    transfer = load_checkpoint(encoder, prefix, ignore=["^cls/"])
    assert_same(values(encoder), of_encoder(full))
    heads = sorted(name for name in full if name.startswith("cls/"))
    assert sorted(transfer.ignored) == heads

    save_tf1(tmp_path / "encoder.ckpt", encoder)
    other = make("pretraining", seed=5)
    before = values(other)
    with pytest.raises(
        ValueError, match="in the model but not in the checkpoint .allow_missing= .*cls/predictions"
    ):
        load_checkpoint(other, tmp_path / "encoder.ckpt")
    assert_same(values(other), before)
    transfer = load_checkpoint(other, tmp_path / "encoder.ckpt", allow_missing=["^cls/"])
    assert sorted(transfer.missing) == heads
    assert_same(values(other), {**before, **of_encoder(full)})


@pytest.mark.parametrize("layout", ["tf", "hf"])
def test_one_message_has_all_differences_and_nothing_is_assigned(layout, tmp_path):
    source = make("classification", synthetic.small_config(intermediate_size=41))
    if layout == "tf":
        save_model_directory(tmp_path, source)
        expected = (
            "in the model but not in the checkpoint .*cls/predictions/transform/dense/kernel",
            "in the checkpoint but not in the model .*output_bias",
            r"of another shape: .*layer_0/intermediate/dense/kernel: model \(22, 37\), "
            r"checkpoint \(22, 41\)",
        )
    else:
        save_hf(tmp_path, source)
        expected = (
            "in the model but not in the checkpoint .*cls/predictions/transform/dense/kernel",
            "in the checkpoint but not in the model .*classifier.bias",
            r"of another shape: .*layer_0/intermediate/dense/kernel: model \(37, 22\), "
            r"checkpoint \(41, 22\)",
        )
    model = make("pretraining", synthetic.small_config(), seed=5)
    before = values(model)
    with pytest.raises(ValueError, match="weights differ") as error:
        load_checkpoint(model, tmp_path)
    for text in expected:
        assert re.search(text, str(error.value))
    assert_same(values(model), before)
    with pytest.raises(ValueError, match="of another shape") as error:
        load_checkpoint(model, tmp_path, ignore=["^classifier", "^output"], allow_missing=["^cls/"])
    assert "but not in" not in str(error.value)
    assert_same(values(model), before)


def test_patterns_are_searched_for_in_names_of_the_file_and_of_the_layout(tmp_path):
    # A run of ours keeps a classifier under our names, the original at the root.
    write_tensors(tmp_path / "model.ckpt-7", values(make("classification")))
    for pattern in ("^output_", "^classifier/", "put_"):
        transfer = load_checkpoint(bert_encoder(SMALL), tmp_path, ignore=[pattern])
        assert sorted(transfer.ignored) == ["classifier/output_bias", "classifier/output_weights"]
    for pattern in ("^put_", "^Classifier", "output_$"):
        with pytest.raises(ValueError, match="not in the model .*classifier/output_bias"):
            load_checkpoint(bert_encoder(SMALL), tmp_path, ignore=[pattern])


@pytest.mark.parametrize("layout", ["tf", "hf"])
def test_a_tensor_of_another_type_changes_no_weight(layout, encoder, tmp_path):
    if layout == "tf":
        save_model_directory(tmp_path, encoder)
        tensors = read_tensors(tmp_path / "bert_model.ckpt")
        tensors["bert/pooler/dense/bias"] = np.array([b"text"] * 22)
        write_tensors(tmp_path / "bert_model.ckpt", tensors)
    else:
        save_hf(tmp_path, encoder)
        change_hf(tmp_path, lambda t: t | {"pooler.dense.bias": np.arange(22)})
    model = make("encoder", seed=5)
    before = values(model)
    with pytest.raises(ValueError, match="pooler.dense.bias"):
        load_checkpoint(model, tmp_path)
    assert_same(values(model), before)


def test_optimizer_state_needs_no_place_and_the_step_is_told(encoder, tmp_path):
    weights = values(encoder)
    state = {
        "global_step": np.int64(101),
        f"{WORDS}/adam_m": np.zeros((97, 22), np.float32),
        f"{WORDS}/adam_v": np.zeros((97, 22), np.float32),
        "training/optimizer/iteration": np.int64(101),
    }
    write_tensors(tmp_path / "model.ckpt-101", weights | state)
    other = make("encoder", seed=5)
    transfer = load_checkpoint(other, tmp_path)
    assert transfer.step == 101 and transfer.ignored == ()
    assert_same(values(other), weights)


def test_a_pooler_that_nothing_reads_may_be_missing(model, tmp_path):
    weights = {n: a for n, a in values(model).items() if not n.startswith("bert/pooler/")}
    write_tensors(tmp_path / "x.ckpt", of_encoder(weights))
    with pytest.raises(ValueError, match="not in the checkpoint .*bert/pooler/dense/kernel"):
        load_checkpoint(bert_encoder(SMALL), tmp_path / "x.ckpt")
    transfer = load_checkpoint(bert_encoder(SMALL, pooled_output=False), tmp_path / "x.ckpt")
    assert sorted(transfer.missing) == ["bert/pooler/dense/bias", "bert/pooler/dense/kernel"]


def test_a_model_in_memory_is_a_source(model):
    other = make("pretraining", seed=5)
    transfer = load_checkpoint(other, model)
    assert_same(values(other), values(model))
    assert transfer.layout == transfer.description == "bert_tf"
    with pytest.raises(ValueError, match="expected a model of bert_tf"):
        load_checkpoint(keras.Sequential([keras.Input((3,))]), model)


# === Rows cut and extended ===


@pytest.fixture(scope="module")
def sources(model, tmp_path_factory):
    """Return a folder with the same pre-training model in every format that takes one."""
    folder = tmp_path_factory.mktemp("sources")
    save_model_directory(folder / "tf", model)
    save_hf(folder / "hf", model)
    save_keras(folder / "keras" / "model.keras", model)
    save_keras(folder / "h5" / "model.weights.h5", model)
    return folder


CUT = {"vocab_size": 89, "max_position_embeddings": 31, "type_vocab_size": 1}
EXTENDED = {"vocab_size": 101, "max_position_embeddings": 97, "type_vocab_size": 5}
RESIZED = {
    "vocab_size": (WORDS, OUTPUT_BIAS),
    "max_position_embeddings": (POSITIONS,),
    "type_vocab_size": (TYPES,),
}


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        ("tf", CUT),
        ("tf", EXTENDED),
        ("hf", CUT),
        ("hf", EXTENDED),
        ("keras", EXTENDED),
        ("h5", CUT),
    ],
    ids=["tf-cut", "tf-extended", "hf-cut", "hf-extended", "keras-extended", "h5-cut"],
)
def test_rows_are_cut_and_extended_as_documented(model, sources, source, changes):
    other = make("pretraining", synthetic.small_config(num_hidden_layers=1, **changes), seed=5)
    initial, theirs = values(other), values(model)
    with pytest.raises(ValueError) as error:
        load_checkpoint(other, sources / source)
    way = "cut the rest off" if changes is CUT else "add rows"
    for key, names in RESIZED.items():
        for name in names:
            text = f"{name}: model {initial[name].shape}, checkpoint {theirs[name].shape}"
            assert f"{text} ({key} differs: " in str(error.value)
            assert f"resize=['{key}']) {way})" in str(error.value)
    assert_same(values(other), initial)
    with pytest.raises(ValueError, match="of another shape") as error:
        load_checkpoint(other, sources / source, resize=["vocab_size"])
    assert WORDS not in str(error.value) and TYPES in str(error.value)
    assert_same(values(other), initial)

    transfer = load_checkpoint(other, sources / source, resize=list(changes))
    found = values(other)
    resized = {name for names in RESIZED.values() for name in names}
    assert {move.name for move in transfer.moved if move.shape != move.source_shape} >= resized
    for name in found:
        if name not in resized:
            np.testing.assert_array_equal(found[name], theirs[name], err_msg=name)
            continue
        common = min(len(found[name]), len(theirs[name]))
        np.testing.assert_array_equal(found[name][:common], theirs[name][:common])
        if name == POSITIONS:  # from the first again, as often as it takes
            for row in range(len(found[name])):
                np.testing.assert_array_equal(found[name][row], theirs[name][row % 41])
        else:
            np.testing.assert_array_equal(found[name][common:], initial[name][common:])


def test_positions_beyond_the_usual_512_repeat_the_first(tmp_path):
    tiny = BertConfig(
        vocab_size=13,
        hidden_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=7,
    )
    source = make("encoder", tiny)
    save_model_directory(tmp_path, source)
    encoder, config, _ = load_bert(tmp_path, max_position_embeddings=1031)
    assert config.max_position_embeddings == 1031
    theirs, found = values(source)[POSITIONS], values(encoder)[POSITIONS]
    np.testing.assert_array_equal(found, np.concatenate([theirs, theirs, theirs[:7]]))
    ids = np.ones((1, 1031), np.int32)
    output = encoder({"input_ids": ids, "input_mask": ids, "segment_ids": ids})["sequence_output"]
    assert output.shape == (1, 1031, 6)


@pytest.mark.parametrize("source", ["tf", "hf", "keras", "h5"])
def test_load_bert_takes_overrides_of_rows(model, sources, source):
    changes = {"vocab_size": 89, "max_position_embeddings": 53, "type_vocab_size": 1}
    encoder, config, _ = load_bert(sources / source, **changes)
    assert config == synthetic.small_config(num_hidden_layers=1, **changes)
    theirs, found = values(model), values(encoder)
    np.testing.assert_array_equal(found[WORDS], theirs[WORDS][:89])
    np.testing.assert_array_equal(found[POSITIONS], theirs[POSITIONS][np.arange(53) % 41])
    np.testing.assert_array_equal(found[TYPES], theirs[TYPES][:1])


@pytest.mark.parametrize("source", ["tf", "keras"])
def test_rows_that_load_bert_adds_are_initialised_and_not_zero(model, sources, source):
    keras.utils.set_random_seed(17)
    found = values(load_bert(sources / source, vocab_size=101, type_vocab_size=5)[0])
    np.testing.assert_array_equal(found[WORDS][:97], values(model)[WORDS])
    for rows in (found[WORDS][97:], found[TYPES][2:]):
        assert np.all(rows != 0) and 0.005 < rows.std() < 0.04


def test_a_given_configuration_with_other_rows_is_not_taken_for_a_wish_to_resize(sources):
    config = synthetic.small_config(num_hidden_layers=1, max_position_embeddings=53)
    for source in ("tf", "hf", "keras"):
        with pytest.raises(ValueError, match=r"model \(53, 22\), checkpoint \(41, 22\)"):
            load_bert(sources / source, config=config)


def test_only_rows_may_differ(sources):
    with pytest.raises(
        ValueError, match="resize: expected any of vocab_size, .* got 'hidden_size'"
    ):
        load_checkpoint(bert_encoder(SMALL), sources / "tf", resize=["hidden_size"])
    other = bert_encoder(synthetic.small_config(num_hidden_layers=1, hidden_size=26))
    with pytest.raises(ValueError, match=r"word_embeddings: model \(97, 26\), checkpoint \(97, 22"):
        load_checkpoint(other, sources / "tf", ignore=["^cls/"], resize=list(RESIZABLE))
    with pytest.raises(TypeError, match="'hidden' is neither an argument nor a field"):
        load_bert(sources / "tf", hidden=3)
    with pytest.raises(ValueError, match="of another shape"):
        load_bert(sources / "tf", intermediate_size=41)


# === Files of transformers ===


def test_a_decoder_that_is_the_embeddings_is_accepted_and_another_refused(model, tmp_path):
    save_hf(tmp_path, model)
    word = "bert.embeddings.word_embeddings.weight"
    change_hf(
        tmp_path,
        lambda t: (
            t
            | {
                "cls.predictions.decoder.weight": t[word],
                "cls.predictions.decoder.bias": t["cls.predictions.bias"],
                "bert.embeddings.position_ids": np.arange(41)[None],
            }
        ),
    )
    other = make("pretraining", seed=5)
    transfer = load_checkpoint(other, tmp_path)
    assert_same(values(other), values(model))
    assert transfer.ignored == ()
    for name in ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"):
        folder = tmp_path / name
        shutil.copytree(tmp_path, folder, ignore=lambda *_: [f.name for f in tmp_path.glob("cls*")])
        change_hf(folder, lambda t, name=name: t | {name: t[name] + np.float32(1e-3)})
        other = make("pretraining", seed=5)
        before = values(other)
        with pytest.raises(ValueError, match=f"{name} differs from .*; in BERT") as error:
            load_checkpoint(other, folder)
        assert str(folder) in str(error.value)
        assert_same(values(other), before)
        load_bert(folder)  # an encoder has no projection to differ


def test_a_file_may_keep_the_embeddings_under_the_name_of_the_decoder(model, tmp_path):
    save_hf(tmp_path, model)

    def rename(tensors):
        word = tensors.pop("bert.embeddings.word_embeddings.weight")
        bias = tensors.pop("cls.predictions.bias")
        return tensors | {
            "cls.predictions.decoder.weight": word,
            "cls.predictions.decoder.bias": bias,
        }

    change_hf(tmp_path, rename)
    other = make("pretraining", seed=5)
    load_checkpoint(other, tmp_path)
    assert_same(values(other), values(model))


@pytest.mark.parametrize("prefixed", [True, False])
@pytest.mark.parametrize("old", [True, False])
def test_old_names_and_names_without_prefix_are_the_same_weights(encoder, tmp_path, prefixed, old):
    save_hf(tmp_path, encoder)

    def rename(tensors):
        renamed = {}
        for name, array in tensors.items():
            if old:
                name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
                name = name.replace("LayerNorm.bias", "LayerNorm.beta")
            renamed[f"bert.{name}" if prefixed else name] = array
        return renamed

    change_hf(tmp_path, rename)
    found = load_bert(tmp_path)
    assert_same(values(found.encoder), values(encoder))


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("pooler.dense.bias", "bert.pooler.dense.bias"),
        ("embeddings.LayerNorm.weight", "embeddings.LayerNorm.gamma"),
        ("embeddings.LayerNorm.bias", "bert.embeddings.LayerNorm.beta"),
    ],
)
def test_the_same_weight_twice_is_refused(encoder, tmp_path, name, again):
    save_hf(tmp_path, encoder)
    change_hf(tmp_path, lambda t: t | {again: t[name]})
    with pytest.raises(ValueError, match="are the same weight") as error:
        load_bert(tmp_path)
    assert name in str(error.value) and again in str(error.value)
    assert str(tmp_path) in str(error.value)


# === load_bert ===


@pytest.mark.parametrize("source", ["tf", "hf", "keras", "h5"])
def test_load_bert_leaves_heads_behind_and_tells(model, sources, source, caplog):
    with caplog.at_level(logging.INFO, "bert_tf.weights"):
        encoder, config, tokenizer = load_bert(sources / source)
    assert_same(values(encoder), of_encoder(values(model)))
    assert config == SMALL and tokenizer is None
    assert set(encoder.output) == {"sequence_output", "pooled_output"}
    (line,) = [m for m in caplog.messages if "left behind" in m]
    assert ("layers/pretraining_heads" if source == "h5" else "cls") in line
    assert "predictions" in line and "seq_relationship" in line
    assert "bert.encoder" not in line and "bert/encoder" not in line


def test_load_bert_leaves_no_unknown_weight_behind(model, tmp_path):
    write_tensors(tmp_path / "bert_model.ckpt", values(model) | {"bert/extra": np.zeros(3, "f")})
    (tmp_path / "bert_config.json").write_text(SMALL.to_json_string())
    with pytest.raises(ValueError, match="not in the model .*: bert/extra"):
        load_bert(tmp_path)
    found = load_bert(tmp_path, ignore=["extra$"])
    assert_same(values(found.encoder), of_encoder(values(model)))


@pytest.mark.parametrize("source", ["tf", "hf"])
def test_without_a_pooler_there_is_no_pooled_output(model, tmp_path, source, caplog):
    if source == "tf":
        weights = {n: a for n, a in values(model).items() if not n.startswith("bert/pooler/")}
        write_tensors(tmp_path / "bert_model.ckpt", weights)
        (tmp_path / "bert_config.json").write_text(SMALL.to_json_string())
    else:
        skipped = save_hf(tmp_path, make("span"))
        assert sorted(skipped) == ["bert/pooler/dense/bias", "bert/pooler/dense/kernel"]
    with caplog.at_level(logging.INFO, "bert_tf.weights"):
        encoder = load_bert(tmp_path).encoder
    assert set(encoder.output) == {"sequence_output"}
    assert "has no trained pooler; the encoder gives no pooled output" in caplog.text


def test_an_encoder_alone_gives_pooled_output_from_keras_weights_too(encoder, tmp_path):
    save_keras(tmp_path / "model.weights.h5", encoder)
    found = load_bert(tmp_path)
    assert set(found.encoder.output) == {"sequence_output", "pooled_output"}
    assert_same(values(found.encoder), values(encoder))


def test_load_bert_makes_the_outputs_and_the_type_that_are_asked_for(sources):
    encoder = load_bert(
        sources / "tf", hidden_states=True, attention_probs=True, dtype="mixed_bfloat16"
    ).encoder
    assert set(encoder.output) == {
        "sequence_output",
        "pooled_output",
        *(f"hidden_states_{n}" for n in range(SMALL.num_hidden_layers + 1)),
        *(f"attention_probs_{n}" for n in range(SMALL.num_hidden_layers)),
    }
    assert encoder.output["sequence_output"].dtype == "bfloat16"
    assert all(weight.dtype == "float32" for weight in encoder.weights)


@pytest.mark.parametrize("source", ["tf", "hf"])
def test_without_a_configuration_the_message_says_what_is_missing(sources, source, tmp_path):
    shutil.copytree(sources / source, tmp_path / "x")
    for name in ("bert_config.json", "config.json"):
        (tmp_path / "x" / name).unlink(missing_ok=True)
    for load in (load_bert, load_model):
        with pytest.raises(FileNotFoundError, match="no bert_config.json .or config.json of trans"):
            load(tmp_path / "x")
    found = load_bert(tmp_path / "x", config=SMALL)
    assert found.config == SMALL


# === load_model ===


@pytest.fixture(scope="module")
def heads(vocab_file):
    return {kind: make(kind, seed=13 + i) for i, kind in enumerate(HEADS)}


LABELS = {
    "classification": ("no", "yes", "può darsi"),
    "token_classification": ("O", "B-PER", "I-PER", "B LOC", "I LOC", "#", "0"),
}


def save(form, folder, model, tokenizer=None, labels=None):
    if form == "tf":
        vocab_file = tokenizer.vocab_file if tokenizer else None
        save_model_directory(folder, model, vocab_file, labels)
    elif form == "hf":
        save_hf(folder, model, tokenizer, labels)
    else:
        save_keras(folder / f"model{form}", model, tokenizer, labels)


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("tf", "classification"),
        ("hf", "classification"),
        ("hf", "token_classification"),
        (".keras", "token_classification"),
        (".weights.h5", "classification"),
    ],
)
def test_load_model_tells_the_kind_and_the_labels(heads, kind, form, tmp_path):
    labels = LABELS[kind]
    save(form, tmp_path, heads[kind], labels=labels)
    found = load_model(tmp_path)
    assert found.kind == kind and found.config == SMALL and found.labels == labels
    expected, got = values(heads[kind]), values(found.model)
    for name in found.transfer.missing:
        assert form == "hf" and name.startswith("bert/pooler/")
        expected.pop(name), got.pop(name)
    assert_same(got, expected)
    assert [x.name for x in found.model.inputs] == [x.name for x in heads[kind].inputs]


def test_what_a_config_json_says_is_not_of_weights_of_another_system(heads, tmp_path):
    save("tf", tmp_path, heads["classification"], labels=LABELS["classification"])
    of_others = {"id2label": {"0": "a", "1": "b", "2": "c"}}  # as many
    (tmp_path / "config.json").write_text(json.dumps(of_others))
    assert load_model(tmp_path).labels == LABELS["classification"]


def test_a_classifier_of_transformers_is_told_by_its_architecture_or_by_the_user(heads, tmp_path):
    kinds = ("classification", "token_classification", "multiple_choice")
    for kind in kinds:
        folder = tmp_path / kind
        save_hf(folder, heads[kind])
        settings = json.loads((folder / "config.json").read_text())
        for wrong in (None, [], ["BertModel"]):
            settings["architectures"] = wrong
            if wrong is None:
                del settings["architectures"]
            (folder / "config.json").write_text(json.dumps(settings))
            with pytest.raises(ValueError, match="its head may be .*say which with kind=") as error:
                load_model(folder)
            assert all(kind in str(error.value) for kind in kinds)
            assert str(folder) in str(error.value)
        found = load_model(folder, kind=kind)
        assert found.kind == kind
        head = {n: a for n, a in values(heads[kind]).items() if not n.startswith("bert/")}
        assert len(head) == 2
        assert_same({n: values(found.model)[n] for n in head}, head)


def test_a_kind_must_be_one_and_be_there(heads, tmp_path):
    save_model_directory(tmp_path, heads["classification"])
    with pytest.raises(ValueError, match="kind: expected one of encoder, .* got 'sentiment'"):
        load_model(tmp_path, kind="sentiment")
    with pytest.raises(ValueError, match="has no weights of a token_classification head") as error:
        load_model(tmp_path, kind="token_classification")
    assert str(tmp_path) in str(error.value)
    with pytest.raises(ValueError, match="not in the model .*output_bias"):
        load_model(tmp_path, kind="encoder")
    with pytest.raises(ValueError, match="not in the checkpoint .*cls/squad/output_bias"):
        load_model(tmp_path, kind="span", ignore=["^output_"])
    found = load_model(tmp_path, kind="span", ignore=["^output_"], allow_missing=["^cls/squad/"])
    assert found.transfer.missing and found.kind == "span"


def test_a_masked_language_model_without_next_sentence_prediction(tmp_path):
    config = synthetic.small_config(num_hidden_layers=1, next_sentence_prediction=False)
    model = make("pretraining", config)
    for form in ("tf", "hf", ".keras", ".weights.h5"):
        save(form, tmp_path / form, model)
        found = load_model(tmp_path / form)
        assert found.kind == "pretraining" and not found.config.next_sentence_prediction
        head = {n: a for n, a in values(model).items() if not n.startswith("bert/pooler/")}
        assert_same({n: values(found.model)[n] for n in head}, head)
    settings = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert settings["architectures"] == ["BertForMaskedLM"]


def test_labels_that_are_not_as_many_as_the_head_has(heads, tmp_path):
    save("tf", tmp_path, heads["classification"], labels=LABELS["classification"])
    (tmp_path / "labels.txt").write_text("yes\nno\n")
    with pytest.raises(ValueError, match="labels.txt: 2 labels, but the head has 3"):
        load_model(tmp_path)


def test_a_head_of_no_labels_at_all_is_refused_by_name(heads, tmp_path):
    save_hf(tmp_path, heads["classification"])
    for shape in ((), (0,), (3, 1)):
        change_hf(tmp_path, lambda t, s=shape: t | {"classifier.bias": np.zeros(s, np.float32)})
        with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
            load_model(tmp_path)


def test_models_give_the_same_outputs_after_a_detour(heads, tmp_path):
    random = np.random.default_rng(3)
    ids = random.integers(5, 97, (2, 13)).astype(np.int32)
    inputs = {
        "input_ids": ids,
        "input_mask": np.ones_like(ids),
        "segment_ids": (np.arange(13) > 6).astype(np.int32)[None].repeat(2, 0),
    }
    model = heads["classification"]
    for form in ("tf", "hf", ".keras", ".weights.h5"):
        save(form, tmp_path / form, model)
        other = load_model(tmp_path / form).model
        np.testing.assert_array_equal(other(inputs).numpy(), model(inputs).numpy())


# === The tokenizer ===


def tokenizer_of(folder, do_lower_case=None):
    return load_tokenizer(open_checkpoint(folder), do_lower_case)


@pytest.mark.parametrize(
    ("form", "lower"),
    [("tf", True), ("tf", False), ("hf", True), ("hf", False), (".keras", False)],
)
def test_the_casing_comes_from_what_lies_with_the_weights_or_is_given(
    encoder, vocab_file, lower, form, tmp_path
):
    tokenizer = FullTokenizer(vocab_file, lower)
    save(form, tmp_path, encoder, tokenizer)
    found = load_bert(tmp_path).tokenizer
    assert found.vocab == tokenizer.vocab
    # Only transformers' files tell; the words of the vocabulary have no capitals.
    assert found.do_lower_case == (lower if form == "hf" else True)
    for given in (True, False):
        assert tokenizer_of(tmp_path, given).do_lower_case is given
    if form == "hf":
        (tmp_path / "tokenizer_config.json").unlink()
        assert tokenizer_of(tmp_path).do_lower_case is lower
        (tmp_path / "tokenizer.json").unlink()
        assert tokenizer_of(tmp_path).do_lower_case is True
    given = load_bert(tmp_path, do_lower_case=not lower).tokenizer
    assert given.do_lower_case is not lower


def test_the_settings_of_the_tokenizer_come_before_its_file(encoder, vocab_file, tmp_path):
    save("hf", tmp_path, encoder, FullTokenizer(vocab_file, True))
    path = tmp_path / "tokenizer_config.json"
    path.write_text('{"do_lower_case": false}')
    assert tokenizer_of(tmp_path).do_lower_case is False
    path.write_text("{}")
    assert tokenizer_of(tmp_path).do_lower_case is True
    path.write_text("{")
    with pytest.raises(ValueError, match="tokenizer_config.json: not a JSON file"):
        load_bert(tmp_path)


@pytest.mark.parametrize("lower", [True, False])
def test_the_vocabulary_may_be_in_tokenizer_json_alone(encoder, vocab_file, lower, tmp_path):
    tokenizer = FullTokenizer(vocab_file, lower)
    save("hf", tmp_path, encoder, tokenizer)
    for name in ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    found = load_bert(tmp_path).tokenizer
    assert found.vocab == tokenizer.vocab and found.do_lower_case is lower
    assert found.tokenize("w3 w5") == tokenizer.tokenize("w3 w5")
    save("hf", tmp_path / "again", encoder, found)
    assert load_vocab(tmp_path / "again" / "vocab.txt") == tokenizer.vocab


def test_a_tokenizer_of_another_kind_is_not_taken_for_one(encoder, vocab_file, tmp_path):
    save("hf", tmp_path, encoder, FullTokenizer(vocab_file, True))
    (tmp_path / "vocab.txt").unlink()
    path = tmp_path / "tokenizer.json"
    for model in ({"type": "BPE", "vocab": {}}, None):
        path.write_text(json.dumps({"model": model}))
        assert tokenizer_of(tmp_path) is None
    path.unlink()
    assert tokenizer_of(tmp_path) is None


@pytest.mark.parametrize("lower", [True, False])
def test_a_preset_of_keras_hub_tells_the_casing(encoder, vocab_file, lower, tmp_path):
    pytest.importorskip("keras_hub")
    tokenizer = FullTokenizer(vocab_file, lower)
    save_keras_hub(tmp_path, encoder, tokenizer)
    found = load_bert(tmp_path)
    assert found.tokenizer.do_lower_case is lower
    assert found.tokenizer.vocab == tokenizer.vocab
    assert_same(values(found.encoder), values(encoder))
    (tmp_path / "tokenizer.json").unlink()
    assert tokenizer_of(tmp_path).do_lower_case is True


@pytest.mark.parametrize("form", ["tf", "hf"])
def test_without_heads_the_encoder_alone_is_loaded(form, tmp_path):
    config = synthetic.small_config()
    source, model = HEADS["classification"].make(config, 3), HEADS["classification"].make(config, 3)
    if form == "tf":
        save_model_directory(tmp_path, source)
    else:
        save_hf(tmp_path, source)
    before = {w.path: w.numpy() for w in model.weights}
    transfer = load_checkpoint(model, tmp_path, heads=False)
    assert set(transfer.missing) == {"classifier/output_weights", "classifier/output_bias"}
    assert len(transfer.ignored) == 2
    for ours, theirs in zip(model.weights, source.weights, strict=True):
        expected = before[ours.path] if "classifier" in ours.path else theirs.numpy()
        np.testing.assert_array_equal(ours.numpy(), expected)
    # A head of another task, and of another size, is no obstacle.
    spans = HEADS["span"].make(config)
    assert load_checkpoint(spans, tmp_path, heads=False).missing == (
        "cls/squad/output_weights",
        "cls/squad/output_bias",
    )


def test_settings_that_bert_does_not_have_are_told(sources, tmp_path, caplog):
    shutil.copytree(sources / "hf", tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "do_lower_case": True,
                "strip_accents": False,
                "tokenizer_class": "BertJapaneseTokenizer",
            }
        )
    )
    load_bert(tmp_path / "hf")
    assert ": tokenizer_class 'BertJapaneseTokenizer'" in caplog.text
    assert "hidden_act" not in caplog.text
    config = dataclasses.replace(load_bert(sources / "hf").config, hidden_act="relu")
    model = bert_encoder(config)
    load_checkpoint(model, sources / "hf", heads=False)
    assert "was made with hidden_act 'gelu_tanh', the model has 'relu'" in caplog.text


def test_vocabularies_of_other_models_are_told(sources, vocab_file, tmp_path, caplog):
    shutil.copytree(sources / "tf", tmp_path / "tf")
    shutil.copy(vocab_file, tmp_path / "tf" / "vocab.txt")
    load_bert(tmp_path / "tf")
    assert not caplog.text
    lines = pathlib.Path(vocab_file).read_text().splitlines()
    other = "\n".join([*lines[:-5], *"ABC"]) + "\n"
    (tmp_path / "tf" / "vocab.txt").write_text(other)
    (tmp_path / "tf" / "added_tokens.json").write_text(json.dumps({"[NEW]": 7, "A": 8}))
    load_bert(tmp_path / "tf", do_lower_case=True)
    size = len(lines)
    assert f"has {size - 2} pieces, the model embeddings for {size}: " in caplog.text
    assert "of the vocabulary's pieces have capital letters" in caplog.text
    assert "added tokens [NEW]" in caplog.text


def test_another_number_of_heads_is_refused(model, tmp_path):
    save_model_directory(tmp_path, model)
    other = make("pretraining", dataclasses.replace(SMALL, num_attention_heads=1))
    with pytest.raises(ValueError, match="was made with num_attention_heads 2, the model has 1"):
        load_checkpoint(other, tmp_path)


def test_a_classifier_of_transformers_may_say_that_nothing_is_tied(tmp_path):
    classifier = make("classification")
    save_hf(tmp_path, classifier)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "tie_word_embeddings": False}))
    assert_same(values(load_model(tmp_path).model), values(classifier))


def test_load_bert_may_leave_weights_at_their_initial_values(encoder, tmp_path):
    weights = {n: a for n, a in values(encoder).items() if n != TYPES}
    write_tensors(tmp_path / "bert_model.ckpt", weights)
    (tmp_path / "bert_config.json").write_text(SMALL.to_json_string())
    with pytest.raises(ValueError, match="in the model but not in the checkpoint"):
        load_bert(tmp_path)
    found = values(load_bert(tmp_path, allow_missing=[TYPES]).encoder)
    assert np.abs(found.pop(TYPES)).max() > 0
    assert_same(found, weights)


def test_what_no_checkpoint_fills_has_an_initial_value(encoder, heads, tmp_path, monkeypatch):
    """Memory that was reserved without a value shows as NaN here, in a run as anything."""

    def nan(self, shape, dtype=None):
        return keras.ops.full(shape, np.nan, dtype or "float32")

    monkeypatch.setattr(Uninitialized, "__call__", nan)
    weights = {n: a for n, a in values(encoder).items() if n != TYPES}
    write_tensors(tmp_path / "encoder" / "bert_model.ckpt", weights)
    (tmp_path / "encoder" / "bert_config.json").write_text(SMALL.to_json_string())
    save_model_directory(tmp_path / "classifier", heads["classification"])
    save_model_directory(
        tmp_path / "unpooled",
        make("pretraining", dataclasses.replace(SMALL, next_sentence_prediction=False)),
    )
    spans = {"ignore": ["^output_"], "allow_missing": ["^cls/squad/"]}
    for model in (
        load_bert(tmp_path / "encoder", allow_missing=[TYPES]).encoder,
        load_model(tmp_path / "classifier", kind="span", **spans).model,
        load_bert(tmp_path / "unpooled").encoder,
        load_model(tmp_path / "unpooled").model,
        load_bert(tmp_path / "classifier").encoder,
    ):
        for name, array in values(model).items():
            assert np.isfinite(array).all(), name


def test_the_head_of_a_task_preset_of_keras_hub_is_not_lost_silently(encoder, tmp_path):
    pytest.importorskip("keras_hub", reason="keras-hub is not installed")
    config = dataclasses.replace(SMALL, hidden_act="gelu_tanh", layer_norm_eps=1e-12)
    save_keras_hub(tmp_path, make("encoder", config))
    (tmp_path / "task.json").write_text(
        json.dumps({"registered_name": "keras_hub>BertTextClassifier"})
    )
    with pytest.raises(ValueError, match="a preset of BertTextClassifier, whose head is not read"):
        load_model(tmp_path)
    assert load_model(tmp_path, kind="encoder").kind == "encoder"


@pytest.mark.parametrize("source", ["tf", "hf"])
@pytest.mark.parametrize(
    "key",
    [
        "vocab_size",
        "max_position_embeddings",
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
    ],
)
def test_sizes_that_no_memory_holds_are_compared_first(sources, tmp_path, source, key):
    shutil.copytree(sources / source, tmp_path / "x")
    path = tmp_path / "x" / ("config.json" if source == "hf" else "bert_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), key: 2 * 10**12}))
    for load in (load_bert, load_model):
        with pytest.raises(ValueError, match="2000000000000"):
            load(tmp_path / "x")


@pytest.mark.parametrize(
    "damage",
    [
        {"model": {"type": "WordPiece", "vocab": ["[PAD]"]}},
        {"model": {"type": "WordPiece", "vocab": {"[PAD]": "zero"}}},
        {"model": {"type": "WordPiece"}},
    ],
)
def test_a_tokenizer_file_that_is_none_is_refused_by_name(encoder, tmp_path, damage):
    save_hf(tmp_path, encoder)
    (tmp_path / "tokenizer.json").write_text(json.dumps(damage))
    with pytest.raises(ValueError, match="tokenizer.json"):
        load_bert(tmp_path)


def test_odd_values_of_a_tokenizer_file_end_in_no_exception(encoder, tmp_path):
    save_hf(tmp_path, encoder)
    odd = {"normalizer": [1], "config": "x", "model": 3, "added_tokens": [7, {"id": 3}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(odd))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": "yes"}))
    assert load_bert(tmp_path).tokenizer is None


def test_a_live_task_of_keras_hub_is_pointed_to_its_backbone():
    keras_hub = pytest.importorskip("keras_hub", reason="keras-hub is not installed")
    config = dataclasses.replace(SMALL, hidden_act="gelu_tanh", layer_norm_eps=1e-12)
    backbone = to_keras_hub(make("encoder", config))
    task = keras_hub.models.BertTextClassifier(backbone, num_classes=3)
    with pytest.raises(ValueError, match="BertTextClassifier.*pass its .backbone"):
        load_bert(task)
    assert load_bert(task.backbone).config.hidden_size == SMALL.hidden_size
