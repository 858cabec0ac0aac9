"""What rows that hold several sequences must do, on any of Keras' backends.

    KERAS_BACKEND=jax python -m tests.support.packed_rows <folder>

reads the batches that `write_batches` wrote there. Imports no TensorFlow, so that a process needs
only its own backend.
"""

import pathlib
import sys

import keras
import numpy as np

from bert_tf.models.task_models import bert_pretrainer
from bert_tf.models.variables import to_numpy
from bert_tf.records.encoding import encode_examples
from bert_tf.records.files import RecordWriter
from bert_tf.records.schema import pretraining_features, unmasked_pretraining_features
from bert_tf.training.objectives import pretraining_compile_arguments
from tests.support import synthetic_records as synthetic

LENGTH, PREDICTIONS, SEQUENCES = 79, 17, 5  # of a row; sequences have 11 to 31 tokens
_INPUTS = ("input_ids", "input_mask", "segment_ids")
_WIDTHS = {synthetic.LENGTH: LENGTH, synthetic.PREDICTIONS: PREDICTIONS}


def make_arrays(count, seed, masked=True):
    """Return the records of `synthetic_records`, padded to LENGTH and PREDICTIONS."""
    arrays = synthetic.make_arrays(count, seed, masked)
    return {
        name: np.pad(x, ((0, 0), (0, _WIDTHS.get(x.shape[1], x.shape[1]) - x.shape[1])))
        for name, x in arrays.items()
    }


def write(path, count, seed, masked=True):
    """Write the records of `make_arrays`; gzip where the name ends in .gz."""
    features = unmasked_pretraining_features(LENGTH)
    if masked:
        features = pretraining_features(LENGTH, PREDICTIONS)
    with RecordWriter(path, "gzip" if path.suffix == ".gz" else None) as writer:
        for example in encode_examples(features, make_arrays(count, seed, masked)):
            writer.write(example)
    return str(path)


def unpack(batch, pools_last=False):
    """Return a batch with a row for each sequence of a packed one, as records hold them."""
    inputs, labels, weights = batch
    found = []
    for row, ids in enumerate(inputs["sequence_ids"]):
        mask, present = inputs["input_mask"][row], weights["next_sentence_logits"][row]
        assert (np.sort(ids[mask > 0]) == ids[mask > 0]).all() and not ids[mask == 0].any()
        assert (present == (np.arange(len(present)) < ids.max())).all()
        for number in range(1, ids.max() + 1):
            (places,) = np.nonzero(ids == number)
            start, length = places[0], len(places)
            assert (places == np.arange(start, start + length)).all()
            assert (inputs["position_ids"][row, places] == np.arange(length)).all()
            pooled = places[-1 if pools_last else 0]
            assert inputs["pooled_positions"][row, number - 1] == pooled
            positions = inputs["masked_lm_positions"][row]
            own = (weights["masked_lm_logits"][row] > 0) & np.isin(positions, places)
            sequence = {name: inputs[name][row, places] for name in _INPUTS}
            sequence["masked_lm_positions"] = positions[own] - start
            sequence["masked_lm_logits"] = labels["masked_lm_logits"][row, own]
            sequence["weights"] = weights["masked_lm_logits"][row, own]
            sequence["next_sentence_logits"] = labels["next_sentence_logits"][row, number - 1]
            found.append(sequence)

    def rows(name, like):
        array = np.zeros((len(found), like.shape[1]), like.dtype)
        for row, sequence in zip(array, found, strict=True):
            row[: len(sequence[name])] = sequence[name]
        return array

    counted = weights["masked_lm_logits"]
    assert sum(len(sequence["weights"]) for sequence in found) == (counted > 0).sum()
    return (
        {name: rows(name, inputs[name]) for name in (*_INPUTS, "masked_lm_positions")},
        {
            "masked_lm_logits": rows("masked_lm_logits", labels["masked_lm_logits"]),
            "next_sentence_logits": np.array([x["next_sentence_logits"] for x in found], np.int32),
        },
        {
            "masked_lm_logits": rows("weights", counted),
            "next_sentence_logits": np.ones(len(found), np.float32),
        },
    )


def make_model(packed, left_to_right=False, **changes):
    """Return a model without dropout, whose masks would depend on shapes."""
    keras.utils.set_random_seed(3)
    config = synthetic.small_config(
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=LENGTH,
        initializer_range=0.2,
        left_to_right=left_to_right,
        **changes,
    )
    return bert_pretrainer(config, packed=packed)


def loss_and_gradients(model, batch):
    """Return the losses of a batch, and what a step of gradient descent takes from each weight."""
    config = model.get_layer("bert").config
    jit_compile = keras.backend.backend() == "jax"
    losses = pretraining_compile_arguments(config)["loss"]
    model.compile(keras.optimizers.SGD(1.0), losses, jit_compile=jit_compile)
    before = [np.array(to_numpy(v)) for v in model.trainable_variables]
    losses = model.train_on_batch(*batch, return_dict=True)
    variables = model.trainable_variables
    taken = {v.path: x - to_numpy(v) for v, x in zip(variables, before, strict=True)}
    return {name: float(loss) for name, loss in losses.items()}, taken


def check_same(batch, left_to_right):
    """Packed and unpacked, a batch has the same losses and gradients to 1e-6."""
    losses, found = loss_and_gradients(make_model(True, left_to_right), batch)
    single = unpack(batch, pools_last=left_to_right)
    assert len(single[0]["input_ids"]) > 1.5 * len(batch[0]["input_ids"])
    expected_losses, expected = loss_and_gradients(make_model(False, left_to_right), single)
    for name, loss in expected_losses.items():
        np.testing.assert_allclose(losses[name], loss, rtol=1e-6, err_msg=name)
    assert found.keys() == expected.keys()
    for path, gradient in expected.items():
        np.testing.assert_allclose(found[path], gradient, rtol=0, atol=1e-6, err_msg=path)
    assert max(np.abs(gradient).max() for gradient in expected.values()) > 1e-2


def write_batches(folder, batches):
    """Write name -> batch, for other backends; those of a left-to-right model are "causal"."""
    for name, batch in batches.items():
        arrays = {f"{n} {key}": x for n, part in enumerate(batch) for key, x in part.items()}
        np.savez(folder / f"{name}.npz", **arrays)


def main(folder):
    for path in sorted(pathlib.Path(folder).glob("*.npz")):
        batch = ({}, {}, {})
        with np.load(path) as arrays:
            for name in arrays:
                part, key = name.split(" ")
                batch[int(part)][key] = arrays[name]
        check_same(batch, path.stem == "causal")
        print(path.stem, keras.backend.backend())


if __name__ == "__main__":
    main(sys.argv[1])
