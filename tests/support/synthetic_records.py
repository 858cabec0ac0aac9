"""Small pre-training records whose examples can be told apart; sizes are distinct primes."""

import dataclasses
import pathlib

import numpy as np

from bert_tf.records.encoding import encode_examples
from bert_tf.records.files import RecordWriter
from bert_tf.records.schema import pretraining_features, unmasked_pretraining_features

LENGTH, PREDICTIONS, VOCAB_SIZE = 31, 5, 97
RECORD_COUNTS = (101, 53)  # of two files, neither a multiple of a batch
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCAB = {t: i for i, t in enumerate([*SPECIALS, *(f"w{i}" for i in range(VOCAB_SIZE - 5))])}


def make_arrays(count: int, seed: int, masked: bool = True) -> dict[str, np.ndarray]:
    """Arrays of `count` examples of between 11 and LENGTH tokens."""
    random = np.random.default_rng(seed)
    lengths = random.integers(11, LENGTH + 1, count)
    mask = np.arange(LENGTH)[None] < lengths[:, None]
    ids = random.integers(5, VOCAB_SIZE, (count, LENGTH)) * mask
    ids[:, 0] = VOCAB["[CLS]"]
    ids[np.arange(count), lengths - 1] = VOCAB["[SEP]"]
    arrays = {
        "input_ids": ids,
        "input_mask": mask.astype(np.int64),
        "segment_ids": ((np.arange(LENGTH)[None] >= lengths[:, None] // 2) & mask).astype(np.int64),
        "next_sentence_labels": random.integers(0, 2, (count, 1)),
    }
    if masked:
        real = np.arange(PREDICTIONS)[None] < random.integers(1, PREDICTIONS + 1, count)[:, None]
        positions = np.stack(
            [np.sort(random.permutation(np.arange(1, 10))[:PREDICTIONS]) for _ in range(count)]
        )
        labels = np.take_along_axis(ids, positions, axis=1)
        np.put_along_axis(ids, positions, np.where(real, VOCAB["[MASK]"], labels), axis=1)
        arrays |= {
            "masked_lm_positions": positions * real,
            "masked_lm_ids": labels * real,
            "masked_lm_weights": real.astype(np.float32),
        }
    return arrays


def assert_rows_are(arrays: dict[str, np.ndarray], inputs: dict, labels: dict, weights: dict):
    """Check that each row of a batch, of whole width, is a record of `arrays`, labels and all."""
    index = {row.tobytes(): i for i, row in enumerate(arrays["input_ids"].astype(np.int32))}
    found = {
        "input_mask": inputs["input_mask"],
        "segment_ids": inputs["segment_ids"],
        "masked_lm_positions": inputs["masked_lm_positions"],
        "masked_lm_ids": labels["masked_lm_logits"],
        "masked_lm_weights": weights["masked_lm_logits"],
    }
    for i, row in enumerate(inputs["input_ids"]):
        source = index[row.tobytes()]
        for name, values in found.items():
            np.testing.assert_array_equal(values[i], arrays[name][source], err_msg=name)
        assert labels["next_sentence_logits"][i] == arrays["next_sentence_labels"][source, 0]


def write(path: pathlib.Path, count: int, seed: int, masked: bool = True) -> str:
    """Write `count` examples; gzip where the name ends in .gz."""
    features = (
        pretraining_features(LENGTH, PREDICTIONS)
        if masked
        else unmasked_pretraining_features(LENGTH)
    )
    compression = "gzip" if path.suffix == ".gz" else None
    with RecordWriter(path, compression) as writer:
        for example in encode_examples(features, make_arrays(count, seed, masked)):
            writer.write(example)
    return str(path)


def write_vocabulary(path: pathlib.Path) -> str:
    """Write the vocabulary file of the records."""
    path.write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
    return str(path)


def small_config(**changes):
    """Return a model that takes the records, of width 22 = 2 heads of 11."""
    from bert_tf.config import BertConfig

    config = BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=22,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=37,
        max_position_embeddings=41,
    )
    return dataclasses.replace(config, **changes)
