import dataclasses
import json
import logging
import math

import pytest

from bert_tf.config import BASE, LARGE, SIZES, BertConfig
from bert_tf.models.encoder import bert_encoder
from bert_tf.models.task_models import bert_pretrainer

GOOGLE = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}
# What google-research/bert reads with its own class; more keys would be shown as set attributes.
SMALL = dict(
    vocab_size=97,
    hidden_size=22,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=37,
    max_position_embeddings=29,
    type_vocab_size=5,
)


def write(path, values):
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def count(model):
    return sum(variable.value.shape.num_elements() for variable in model.weights)


def test_defaults_are_base_uncased_of_google(tmp_path):
    config = BertConfig.from_json_file(write(tmp_path / "bert_config.json", GOOGLE))
    assert config == BertConfig(vocab_size=30522) == BASE
    assert config.hidden_act == "gelu_tanh"
    assert config.ignored_keys == ()


def test_config_is_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BASE.hidden_size = 1  # type: ignore[misc]
    assert hash(BASE) == hash(BertConfig(vocab_size=30522))


def test_unused_keys_of_google_are_listed(tmp_path, caplog):
    extra = {"directionality": "bidi", "pooler_type": "first_token_transform"}
    path = write(tmp_path / "bert_config.json", {**GOOGLE, **extra})
    with caplog.at_level(logging.DEBUG, "bert_tf.config"):
        config = BertConfig.from_json_file(path)
    assert config.ignored_keys == ("directionality", "pooler_type")
    assert "directionality, pooler_type" in caplog.text
    assert config == BASE


def test_unknown_key_of_google_raises_naming_file_and_key(tmp_path):
    path = write(tmp_path / "bert_config.json", {**GOOGLE, "hiden_size": 3})
    with pytest.raises(ValueError, match=r"bert_config\.json: unknown .*hiden_size"):
        BertConfig.from_json_file(path)


def test_google_without_type_vocab_size_raises(tmp_path):
    values = {key: value for key, value in GOOGLE.items() if key != "type_vocab_size"}
    with pytest.raises(ValueError, match="type_vocab_size is missing"):
        BertConfig.from_json_file(write(tmp_path / "c.json", values))


HF = {
    **GOOGLE,
    "architectures": ["BertForPreTraining"],
    "model_type": "bert",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "transformers_version": "4.6.0",
    "position_embedding_type": "absolute",
    "use_cache": True,
}


@pytest.mark.parametrize("mark", ["architectures", "model_type", "transformers_version"])
def test_gelu_of_transformers_is_exact(tmp_path, mark):
    """One key that only transformers writes is enough to tell the files apart."""
    config = BertConfig.from_json_file(write(tmp_path / "c.json", {**GOOGLE, mark: HF[mark]}))
    assert config.hidden_act == "gelu_erf"
    assert config == dataclasses.replace(BASE, hidden_act="gelu_erf")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gelu", "gelu_erf"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("relu", "relu"),
    ],
)
def test_activations_of_transformers(tmp_path, name, expected):
    path = write(tmp_path / "config.json", {**HF, "hidden_act": name})
    assert BertConfig.from_json_file(path).hidden_act == expected


def test_extra_keys_of_transformers_are_listed(tmp_path):
    config = BertConfig.from_json_file(write(tmp_path / "config.json", HF))
    assert config.ignored_keys == (
        "architectures",
        "pad_token_id",
        "transformers_version",
        "use_cache",
    )


def test_style_can_be_said(tmp_path):
    path = write(tmp_path / "config.json", GOOGLE)
    assert BertConfig.from_json_file(path, style="hf").hidden_act == "gelu_erf"
    path = write(tmp_path / "config.json", {**GOOGLE, "model_type": "bert"})
    with pytest.raises(ValueError, match="unknown configuration keys: model_type"):
        BertConfig.from_json_file(path, style="google")
    with pytest.raises(ValueError, match="style must be"):
        BertConfig.from_json_file(path, style="torch")


@pytest.mark.parametrize(
    ("key", "value"),
    [("model_type", "roberta"), ("position_embedding_type", "relative_key")],
)
def test_other_models_of_transformers_are_refused(tmp_path, key, value):
    with pytest.raises(ValueError, match=f"{key} must be"):
        BertConfig.from_json_file(write(tmp_path / "config.json", {**HF, key: value}))


def test_config_written_by_transformers_itself(tmp_path):
    hf = pytest.importorskip("transformers", reason="transformers is not installed")
    hf.BertConfig(
        **{**SMALL, "hidden_act": "gelu_new"}, hidden_dropout_prob=0.2, layer_norm_eps=1e-6
    ).save_pretrained(tmp_path)
    config = BertConfig.from_json_file(tmp_path / "config.json")
    assert config == BertConfig(**SMALL, hidden_dropout_prob=0.2, layer_norm_eps=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_act": "gelu_erf"},
        {"hidden_act": "relu", "left_to_right": True},
        {"layer_norm_eps": 1e-5, "next_sentence_prediction": False, "hidden_dropout_prob": 0.0},
    ],
)
def test_written_file_reads_back_identically(tmp_path, changes):
    config = BertConfig(**SMALL, **changes)
    config.to_json_file(tmp_path / "bert_config.json")
    assert BertConfig.from_json_file(tmp_path / "bert_config.json") == config
    assert BertConfig.from_dict(config.to_dict()) == config
    assert "window_pooling" not in config.to_dict()  # runs of earlier versions compare equal
    in_windows = dataclasses.replace(config, window_pooling="max")
    assert BertConfig.from_dict(in_windows.to_dict()) == in_windows
    path = write(tmp_path / "hf.json", in_windows.to_hf_dict())
    assert BertConfig.from_json_file(path).window_pooling == "max"


def test_written_file_has_the_keys_of_google(tmp_path):
    BASE.to_json_file(tmp_path / "bert_config.json")
    assert json.loads((tmp_path / "bert_config.json").read_text(encoding="utf-8")) == GOOGLE


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_broken_file_is_named(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken\.json: "):
        BertConfig.from_json_file(path)
    with pytest.raises(FileNotFoundError):
        BertConfig.from_json_file(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0),
        ("vocab_size", None),
        ("hidden_size", 22.0),
        ("num_hidden_layers", True),
        ("num_attention_heads", 3),
        ("hidden_act", "gelu"),
        ("hidden_dropout_prob", 1.0),
        ("attention_probs_dropout_prob", "0.1"),
        ("initializer_range", 0),
        pytest.param("initializer_range", 10**400, id="too large for a float"),
        ("layer_norm_eps", math.inf),
        ("left_to_right", 1),
    ],
)
def test_wrong_values_raise_naming_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        BertConfig(**{**SMALL, field: value})


def test_a_bilstm_has_an_even_size():
    with pytest.raises(ValueError, match="hidden_size must be even for bilstm, got 21"):
        BertConfig(**{**SMALL, "hidden_size": 21, "num_attention_heads": 3}, bilstm=True)


def test_google_takes_null_as_no_activation(tmp_path):
    path = write(tmp_path / "bert_config.json", {**GOOGLE, "hidden_act": None})
    assert BertConfig.from_json_file(path).hidden_act == "linear"


def test_from_dict_needs_a_vocabulary_size():
    with pytest.raises(ValueError, match="vocab_size"):
        BertConfig.from_dict({"hidden_size": 22})


def test_sizes_are_those_of_the_paper_and_the_small_models():
    small = {f"{layers}/{width}" for layers in range(2, 13, 2) for width in (128, 256, 512, 768)}
    names = {"tiny", "mini", "small", "medium", "base", "large"}
    assert set(SIZES) == small | {"24/1024"} | names
    for name, key in [("tiny", "2/128"), ("mini", "4/256"), ("small", "4/512")]:
        assert SIZES[name] is SIZES[key]
    assert SIZES["medium"] is SIZES["8/512"]
    assert SIZES["base"].parameters == 109_482_240
    assert SIZES["large"].parameters == 335_141_888
    assert dataclasses.astuple(SIZES["mini"])[:4] == (4, 256, 4, 1024)
    assert LARGE == BertConfig(
        vocab_size=30522,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
    )


def test_unknown_size_raises():
    with pytest.raises(ValueError, match="size must be one of .*mini.*got 'micro'"):
        BertConfig.from_size("micro", vocab_size=97)


def parameter_count(config, pooler=True, pretraining_heads=False):
    """Return the exact number of a model's parameters; tied word embeddings count once."""
    width, inner = config.hidden_size, config.intermediate_size
    layer_norm = 2 * width
    square = width * width + width
    rows = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
    feed_forward = (width * inner + inner) + (inner * width + width)
    count = rows * width + layer_norm
    count += config.num_hidden_layers * (4 * square + feed_forward + 2 * layer_norm)
    if pooler:
        count += square
    if pretraining_heads:
        count += square + layer_norm + config.vocab_size
        if config.next_sentence_prediction:
            count += 2 * width + 2
    return count


@pytest.mark.parametrize("size", list(SIZES))
def test_parameter_count_formula_equals_the_table(size):
    config = BertConfig.from_size(size, vocab_size=30522)
    assert parameter_count(config) == SIZES[size].parameters


@pytest.mark.parametrize("size", ["tiny", "mini"])
def test_parameter_count_equals_built_model(size):
    assert count(bert_encoder(BertConfig.from_size(size, vocab_size=30522))) == (
        SIZES[size].parameters
    )


@pytest.mark.parametrize("next_sentence_prediction", [True, False])
def test_parameter_count_of_pretraining_model(next_sentence_prediction):
    config = BertConfig(**SMALL, next_sentence_prediction=next_sentence_prediction)
    expected = parameter_count(config, pretraining_heads=True)
    assert count(bert_pretrainer(config)) == expected
    assert parameter_count(config) - parameter_count(config, pooler=False) == 22 * 23


@pytest.mark.slow
@pytest.mark.parametrize("size", ["base", "large"])
def test_parameter_count_equals_built_large_model(size):
    assert count(bert_encoder(BertConfig.from_size(size, vocab_size=30522))) == (
        SIZES[size].parameters
    )
