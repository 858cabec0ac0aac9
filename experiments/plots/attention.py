"""Pictures of attention, position embeddings and predictions."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from bert_tf.models.encoder import layer_outputs
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights.checkpoint import Checkpoint, open_checkpoint
from bert_tf.weights.layouts import kinds_of_heads
from bert_tf.weights.load import load_bert, load_model
from experiments.plots.figures import save_figure, subplots
from experiments.plots.options import AttentionOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MASK = "[MASK]"
_SHOWN = 5  # pieces for each mask and layer


@dataclasses.dataclass(frozen=True)
class Activations:
    """What a model makes of one sequence. T tokens, L layers, N heads, M masks, K pieces.

    Attributes:
        tokens: the pieces, [CLS] and [SEP] among them.
        attention: float32 [L, N, T, T]: of each query (third axis) over the keys.
        embeddings: float32 [L + 1, T, D]: the embeddings, and what each layer makes of them.
        masks: places of [MASK].
        pieces: [L + 1][M][K] best pieces if the language model's head reads that layer, in falling
            order; empty for a model without that head.
        probabilities: float32 [L + 1, M, K], theirs.
    """

    tokens: tuple[str, ...]
    attention: np.ndarray
    embeddings: np.ndarray
    masks: tuple[int, ...]
    pieces: tuple[tuple[tuple[str, ...], ...], ...]
    probabilities: np.ndarray


def activations_of(
    model_dir: str | os.PathLike[str], text: str, text_b: str | None = None
) -> Activations:
    """Run a model over a sentence or a pair.

    Args:
        model_dir: model directory or checkpoint of any format; with its vocabulary.
        text: the sentence; [MASK] stands for a piece to predict.
        text_b: the second sentence, if any.

    Raises:
        ValueError: the model has no vocabulary, or the text is too long for it.
        FileNotFoundError: there is no such model.
    """
    checkpoint = open_checkpoint(model_dir)
    loaded = load_bert(checkpoint, hidden_states=True, attention_probs=True)
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        raise ValueError(f"model_dir: no vocabulary lies with {checkpoint.description}")
    first, second = _pieces(tokenizer, text), _pieces(tokenizer, text_b) if text_b else []
    tokens = ["[CLS]", *first, "[SEP]", *second, *(["[SEP]"] if second else [])]
    if len(tokens) > loaded.config.max_position_embeddings:
        raise ValueError(
            f"text: has {len(tokens)} pieces, the model {loaded.config.max_position_embeddings} "
            "positions"
        )
    ids = np.array([tokenizer.convert_tokens_to_ids(tokens)], np.int32)
    segments = np.array([[0] * (len(first) + 2) + [1] * (len(tokens) - len(first) - 2)], np.int32)
    inputs = {"input_ids": ids, "input_mask": np.ones_like(ids), "segment_ids": segments}
    outputs = loaded.encoder(inputs)
    states, attention = (
        np.stack([np.asarray(of_layer, np.float32)[0] for of_layer in layer_outputs(outputs, name)])
        for name in ("hidden_states", "attention_probs")
    )
    masks = tuple(i for i, token in enumerate(tokens) if token == _MASK)
    pieces: tuple[Any, ...] = ()
    probabilities = np.zeros((len(states), len(masks), 0), np.float32)
    if masks and "pretraining" in kinds_of_heads(checkpoint.layout, checkpoint.canonical()):
        logits = _logits(checkpoint, states, masks)  # [L + 1, M, V]
        order = np.argsort(-logits, axis=-1)[..., :_SHOWN]
        exponents = np.exp(logits - logits.max(-1, keepdims=True))
        shares = exponents / exponents.sum(-1, keepdims=True)
        probabilities = np.take_along_axis(shares, order, -1)
        pieces = tuple(
            tuple(tuple(tokenizer.convert_ids_to_tokens(row.tolist())) for row in layer)
            for layer in order
        )
    return Activations(tuple(tokens), attention, states, masks, pieces, probabilities)


def _pieces(tokenizer: FullTokenizer, text: str) -> list[str]:
    """Tokenize a text in which [MASK] is a token of its own."""
    parts = text.split(_MASK)
    pieces = tokenizer.tokenize(parts[0])
    for part in parts[1:]:
        pieces += [_MASK, *tokenizer.tokenize(part)]
    return pieces


def _logits(checkpoint: Checkpoint, states: np.ndarray, masks: tuple[int, ...]) -> np.ndarray:
    """Return what the masked language model's head says of each layer, float32 [L + 1, M, V]."""
    model = load_model(checkpoint, kind="pretraining").model
    table = next(w for w in model.weights if w.path.endswith("/word_embeddings"))
    head = model.get_layer("cls").predictions
    positions = np.array([masks] * len(states), np.int32)
    return keras.ops.convert_to_numpy(head(states, keras.ops.convert_to_tensor(table), positions))


def attention_figure(activations: Activations) -> Figure:
    """Draw a panel for each layer (rows) and head (columns): queries down, keys across."""
    layers, heads, length, _ = activations.attention.shape
    side = max(1.1, min(2.6, 0.11 * length))
    size = min(8, 55 * side / length)
    figsize = (1.0 + side * heads, 0.8 + side * layers)
    figure, axes = subplots(layers, heads, figsize=figsize, squeeze=False)
    for (layer, head), axis in np.ndenumerate(axes):
        axis.imshow(activations.attention[layer, head], cmap="viridis", vmin=0, vmax=1)
        axis.set_xticks([])
        axis.set_yticks([])
        if layer == 0:
            axis.set_title(f"head {head + 1}", fontsize=8)
        if head == 0:
            axis.set_ylabel(f"layer {layer + 1}", fontsize=8)
            if length <= 24:
                axis.set_yticks(range(length), activations.tokens, fontsize=size)
        if layer == layers - 1 and length <= 24:
            axis.set_xticks(range(length), activations.tokens, fontsize=size, rotation=90)
    figure.suptitle("attention: from each token (down) to all tokens (across)", fontsize=9)
    return figure


def embedding_figure(activations: Activations) -> Figure:
    """Draw the tokens of a few layers in the plane of their two largest principal components."""
    from sklearn.decomposition import PCA

    count = len(activations.embeddings)
    chosen = sorted({0, count // 3, 2 * count // 3, count - 1})
    figure, axes = subplots(1, len(chosen), figsize=(3.4 * len(chosen), 3.4), squeeze=False)
    for axis, layer in zip(axes[0], chosen, strict=True):
        points = PCA(n_components=2).fit_transform(activations.embeddings[layer])
        axis.scatter(points[:, 0], points[:, 1], s=8, color="#4c72b0")
        for (x, y), token in zip(points, activations.tokens, strict=True):
            axis.annotate(token, (x, y), fontsize=7, xytext=(2, 2), textcoords="offset points")
        axis.set_title("embeddings" if layer == 0 else f"layer {layer}", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.margins(0.25)
    return figure


def prediction_figure(activations: Activations) -> Figure:
    """Draw, for each [MASK], the best pieces if the head reads each layer; dark is probable.

    Raises:
        ValueError: there is no [MASK], or the model has no head to predict it.
    """
    if not activations.masks:
        raise ValueError("text: expected a [MASK] to predict, got none")
    if not activations.pieces:
        raise ValueError("model_dir: the model has no head of a masked language model")
    layers, masks, count = activations.probabilities.shape
    figsize = (0.8 + 1.0 * count * masks, 0.9 + 0.32 * layers)
    figure, axes = subplots(1, masks, figsize=figsize, squeeze=False)
    for number, axis in enumerate(axes[0]):
        shares = activations.probabilities[:, number]
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (layer, rank), share in np.ndenumerate(shares):
            piece = activations.pieces[layer][number][rank]
            color = "white" if share > 0.5 else "black"
            label = f"{piece} {share:.2f}"
            axis.text(rank, layer, label, ha="center", va="center", fontsize=7, color=color)
        names = ["embeddings", *(f"layer {layer}" for layer in range(1, layers))]
        axis.set_yticks(range(layers), names if number == 0 else [""] * layers, fontsize=8)
        axis.set_xticks([])
        axis.set_title(f"[MASK] at {activations.masks[number]}", fontsize=9)
    return figure


def run(options: AttentionOptions) -> None:
    """Write attention.png, embeddings.png and, where the model can predict, predictions.png.

    Raises:
        ValueError, OSError: bad options, model or text.
    """
    activations = activations_of(options.model_dir, options.text, options.text_b)
    figures = {
        "attention": attention_figure(activations),
        "embeddings": embedding_figure(activations),
    }
    if activations.pieces:
        figures["predictions"] = prediction_figure(activations)
    for name, figure in figures.items():
        path = pathlib.Path(options.output_dir) / f"{name}.png"
        save_figure(figure, path, dpi=130)
        print(f"wrote {path}")
