"""Ten steps of `model.fit` on any of Keras' backends, to be compared with those on TensorFlow.

    KERAS_BACKEND=jax python -m tests.support.backend_training <folder>

reads initial values from <folder>/initial.npz and writes <folder>/results.npz. Imports no
TensorFlow, so that a process needs only its own backend.
"""

import sys

import keras
import numpy as np

from bert_tf.config import BertConfig
from bert_tf.models.lora import add_lora
from bert_tf.models.task_models import bert_classifier, bert_pretrainer
from bert_tf.models.variables import to_numpy
from bert_tf.training.objectives import pretraining_compile_arguments
from bert_tf.training.optimizers import create_optimizer

STEPS, BATCH, LENGTH, PREDICTIONS = 10, 5, 11, 3
CASES = ("adamw", "lamb", "recompute", "lora")


def make_model(case):
    """Return the compiled model of a case."""
    rate = 0.1 if case == "recompute" else 0.0
    config = BertConfig(
        vocab_size=37,
        hidden_size=14,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=19,
        max_position_embeddings=13,
        hidden_dropout_prob=rate,
        attention_probs_dropout_prob=rate,
        initializer_range=0.2,
    )
    keras.utils.set_random_seed(3)
    optimizer = create_optimizer(1e-3, 17, 2, optimizer="lamb" if case == "lamb" else "adamw")
    if case == "lora":
        model = bert_classifier(config, 3, dropout_rate=0.0)
        add_lora(model, 2, 5.0, ["query", "value", "output"])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=optimizer, loss=loss)
        return model
    model = bert_pretrainer(config, recompute="all" if case == "recompute" else "none")
    losses = pretraining_compile_arguments(config)["loss"]
    model.compile(optimizer=optimizer, loss=losses)
    return model


def make_data(case):
    """Return the inputs, labels and sample weights of all steps."""
    rng, count = np.random.default_rng(5), STEPS * BATCH
    inputs = {
        "input_ids": rng.integers(0, 37, (count, LENGTH)),
        "input_mask": np.arange(LENGTH) < rng.integers(3, LENGTH + 1, (count, 1)),
        "segment_ids": rng.integers(0, 2, (count, LENGTH)),
    }
    if case == "lora":
        labels, weights = rng.integers(0, 3, (count, 1)), np.ones(count, np.float32)
    else:
        inputs["masked_lm_positions"] = rng.integers(0, LENGTH, (count, PREDICTIONS))
        labels = {
            "masked_lm_logits": rng.integers(0, 37, (count, PREDICTIONS)),
            "next_sentence_logits": rng.integers(0, 2, (count, 1)),
        }
        weights = {
            "masked_lm_logits": rng.integers(0, 2, (count, PREDICTIONS)).astype(np.float32),
            "next_sentence_logits": np.ones((count, 1), np.float32),
        }
    inputs, labels = keras.tree.map_structure(lambda x: x.astype(np.int32), (inputs, labels))
    return inputs, labels, weights


def values(model):
    """All variables in the model's order, the states of dropout among them."""
    return [to_numpy(variable) for variable in model.variables]


def train(model, case):
    """Losses as `fit` reports them after each step, and the variables at the end."""
    losses = []
    log = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: losses.append(logs))
    inputs, labels, weights = make_data(case)
    model.fit(
        inputs,
        labels,
        sample_weight=weights,
        batch_size=BATCH,
        shuffle=False,
        verbose=0,
        callbacks=[log],
    )
    return np.array([float(line["loss"]) for line in losses]), values(model)


def main(folder):
    results = {}
    with np.load(f"{folder}/initial.npz") as initial:
        for case in CASES:
            model = make_model(case)
            for index, variable in enumerate(model.variables):
                variable.assign(initial[f"{case}:{index}"])
            losses, after = train(model, case)
            results[f"{case}:losses"] = losses
            results |= {f"{case}:{index}": value for index, value in enumerate(after)}
    np.savez(f"{folder}/results.npz", **results)


if __name__ == "__main__":
    main(sys.argv[1])
