"""Floating point operations of training, for the estimate of what a table costs."""

from collections.abc import Mapping
from typing import Any

from bert_tf.config import BertConfig
from experiments.paper_tables import recipes


def flops_per_token(config: BertConfig, length: int, predictions: float, outputs: int) -> float:
    """Return the floating point operations of one training step, for each token.

    Products of matrices alone, forward and twice as much backward.

    Args:
        config: the model's.
        length: tokens of a sequence.
        predictions: rows of a sequence that go through the last layer.
        outputs: width of that layer: the vocabulary, or the labels.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    layer = 4 * hidden * hidden + 2 * hidden * inner + 2 * length * hidden
    head = predictions / length * hidden * (hidden + outputs)
    return 3 * 2 * (config.num_hidden_layers * layer + head)


def pretraining_flops(
    config: Mapping[str, Any], recipe: recipes.Pretraining, vocab_size: int
) -> float:
    """Return the operations of a pre-training; a second phase has a tenth of the steps."""
    model = recipes.model_config(config, vocab_size)
    phases = [(recipe.length, 1.0)]
    if recipe.second_length is not None:
        phases = [(recipe.length, 0.9), (recipe.second_length, 0.1)]
    total = 0.0
    for length, part in phases:
        predictions = length - 1 if model.left_to_right else recipe.predictions(length)
        tokens = part * recipe.steps * recipe.batch_size * length
        total += tokens * flops_per_token(model, length, predictions, vocab_size)
    return total


def finetuning_flops(
    config: Mapping[str, Any], recipe: recipes.Recipe, batch_size: int, target: recipes.Target
) -> float:
    """Return the operations of a fine-tuning, were all sequences of full length."""
    model = recipes.model_config(config, 30_522)
    examples = (recipe.steps or 0) * batch_size or (recipe.epochs or 0) * target.num_examples
    length = recipe.max_seq_length
    return examples * length * flops_per_token(model, length, 1, 2)
