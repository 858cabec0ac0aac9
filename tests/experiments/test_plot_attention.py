"""The pictures: what is drawn is what the model computes, and what cannot be drawn is told."""

import keras
import numpy as np
import pytest
from matplotlib import pyplot

import bert_tf
from bert_tf.weights.save import save_model_directory
from experiments.plots import attention
from experiments.plots.attention import (
    activations_of,
    attention_figure,
    embedding_figure,
    prediction_figure,
)
from experiments.plots.options import AttentionOptions
from tests.support import command_options
from tests.support import synthetic_records as synthetic

TEXT, TEXT_B = "w3 w1 [MASK] w4", "w2 [MASK]"
TOKENS = ("[CLS]", "w3", "w1", "[MASK]", "w4", "[SEP]", "w2", "[MASK]", "[SEP]")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return the pre-training model, and a directory that holds it."""
    folder = tmp_path_factory.mktemp("model")
    keras.utils.set_random_seed(5)
    config = synthetic.small_config(initializer_range=0.3, max_position_embeddings=16)
    made = bert_tf.bert_pretrainer(config)
    vocab = synthetic.write_vocabulary(folder / "words.txt")
    save_model_directory(folder / "all", made, vocab)
    save_model_directory(folder / "plain", made)
    save_model_directory(folder / "encoder", bert_tf.bert_encoder(config), vocab)
    return made, config, folder


def test_what_is_seen_is_what_the_model_computes(model):
    made, config, folder = model
    seen = activations_of(folder / "all", TEXT, TEXT_B)
    assert seen.tokens == TOKENS and seen.masks == (3, 7)
    layers, heads, length = config.num_hidden_layers, config.num_attention_heads, len(TOKENS)
    assert seen.attention.shape == (layers, heads, length, length)
    assert np.abs(seen.attention.sum(-1) - 1).max() < 1e-5
    assert seen.embeddings.shape == (layers + 1, length, config.hidden_size)
    vocab = (folder / "all" / "vocab.txt").read_text().split()
    ids = np.array([[vocab.index(token) for token in TOKENS]], np.int32)
    logits = made(
        {
            "input_ids": ids,
            "input_mask": np.ones_like(ids),
            "segment_ids": np.array([[0] * 6 + [1] * 3], np.int32),
            "masked_lm_positions": np.array([[3, 7]], np.int32),
        }
    )["masked_lm_logits"]
    shares = keras.ops.convert_to_numpy(keras.ops.softmax(logits))[0]
    for mask in range(2):  # the last layer is the model's own answer
        order = np.argsort(-shares[mask])[: len(seen.pieces[-1][mask])]
        assert seen.pieces[-1][mask] == tuple(vocab[i] for i in order)
        assert seen.probabilities[-1, mask] == pytest.approx(shares[mask][order], rel=1e-4)


def test_pictures_have_a_panel_for_each_head_layer_and_mask(model):
    _, config, folder = model
    seen = activations_of(folder / "all", TEXT, TEXT_B)
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    assert len(attention_figure(seen).axes) == layers * heads
    assert len(embedding_figure(seen).axes) == min(4, layers + 1)
    panels = prediction_figure(seen).axes
    assert [panel.get_title() for panel in panels] == ["[MASK] at 3", "[MASK] at 7"]
    best = f"{seen.pieces[-1][0][0]} {seen.probabilities[-1, 0, 0]:.2f}"
    assert best in [text.get_text() for text in panels[0].texts]
    assert not pyplot.get_fignums()  # else a notebook would show them twice


def run(**given):
    attention.run(command_options.of(AttentionOptions, **given))


def test_the_script_writes_what_it_can(model, tmp_path):
    _, _, folder = model
    run(model_dir=folder / "all", text=TEXT, output_dir=tmp_path / "all")
    names = sorted(path.name for path in (tmp_path / "all").iterdir())
    assert names == ["attention.png", "embeddings.png", "predictions.png"]
    run(model_dir=folder / "encoder", text=TEXT, output_dir=tmp_path / "encoder")
    names = sorted(path.name for path in (tmp_path / "encoder").iterdir())
    assert names == ["attention.png", "embeddings.png"]


def test_what_cannot_be_drawn_is_told(model):
    _, _, folder = model
    with pytest.raises(ValueError, match="text: has 18 pieces, the model 16 positions"):
        activations_of(folder / "all", " ".join(["w1"] * 16))
    with pytest.raises(ValueError, match="no vocabulary lies with"):
        activations_of(folder / "plain", TEXT)
    with pytest.raises(ValueError, match=r"expected a \[MASK\] to predict"):
        prediction_figure(activations_of(folder / "all", "w1 w2"))
    with pytest.raises(ValueError, match="the model has no head of a masked language model"):
        prediction_figure(activations_of(folder / "encoder", TEXT))
