"""Order, resuming, padding and checks of the pre-training input pipeline."""

import collections
import gzip
import json
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

from bert_tf.input_pipeline import pretraining, record_checks
from bert_tf.input_pipeline.baselines import label_counts, unigram_cross_entropy
from bert_tf.input_pipeline.masking import MaskingRule
from bert_tf.input_pipeline.pretraining import pretraining_dataset
from bert_tf.input_pipeline.record_checks import (
    CheckedFile,
    check_manifests,
    check_record_shape,
    check_records,
    count_records,
    damage_report,
    expand_files,
    manifests_of,
    without_empty_shards,
)
from bert_tf.records.encoding import encode_examples, frame_record
from bert_tf.records.files import RecordWriter, read_records
from bert_tf.records.schema import (
    FeatureSpec,
    pretraining_features,
    unmasked_pretraining_features,
)
from tests.support import object_store
from tests.support import synthetic_records as synthetic
from tests.support.synthetic_records import LENGTH, PREDICTIONS, VOCAB, VOCAB_SIZE

COUNTS = (101, 53, 37)
BATCH = 13


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    return [
        synthetic.write(folder / "a.tfrecord", COUNTS[0], 1),
        synthetic.write(folder / "b.tfrecord.gz", COUNTS[1], 2),
        synthetic.write(folder / "c.tfrecord", COUNTS[2], 3),
    ]


@pytest.fixture(scope="module")
def unmasked(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("unmasked") / "u.tfrecord", 59, 4, masked=False)


def take(files, count=None, **changes):
    settings = {
        "batch_size": BATCH,
        "max_seq_length": LENGTH,
        "max_predictions_per_seq": PREDICTIONS,
        "is_training": True,
        "seed": 7,
        **changes,
    }
    dataset = pretraining_dataset(files, **settings)
    if count is not None:
        dataset = dataset.take(count)
    return list(dataset.as_numpy_iterator())


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(tf.nest.flatten(first), tf.nest.flatten(second), strict=True):
        np.testing.assert_array_equal(one, other)


def rows(batches):
    return [row.tobytes() for batch in batches for row in batch[0]["input_ids"]]


def test_begins_anywhere_as_if_it_had_run_from_the_start(files):
    steps = 2 * sum(COUNTS) // BATCH + 3  # into the third epoch, across both ends
    whole = take(files, steps)
    for start in (1, 14, 15, 29):
        tf.random.set_seed(start)  # the user's seeds have no say
        assert_same(whole[start:], take(files, steps - start, start_step=start))


def test_epochs_hold_every_record_once_in_orders_of_their_own(files):
    total = sum(COUNTS)
    order = rows(take(files, 2 * total // BATCH + 1))
    expected = collections.Counter(
        row.tobytes()
        for count, seed in zip(COUNTS, (1, 2, 3), strict=True)
        for row in synthetic.make_arrays(count, seed)["input_ids"].astype(np.int32)
    )
    assert max(expected.values()) == 1
    first, second = order[:total], order[total : 2 * total]
    assert collections.Counter(first) == collections.Counter(second) == expected
    same = sum(one == other for one, other in zip(first, second, strict=True))
    assert same < 10  # of 191; about 1 is expected by chance


def test_shuffling_mixes_files_and_depends_on_the_seed(files):
    of_file = {
        row.tobytes(): name
        for name, count, seed in zip("abc", COUNTS, (1, 2, 3), strict=True)
        for row in synthetic.make_arrays(count, seed)["input_ids"].astype(np.int32)
    }
    batches = take(files, 4)
    for batch in batches:
        assert len({of_file[row] for row in rows([batch])}) > 1
    assert rows(batches) != rows(take(files, 4, seed=8))
    # With nothing to shuffle what remains is the order of files, of which there are six.
    orders = {tuple(rows(take(files, 1, shuffle_buffer_records=1, seed=i))) for i in range(6)}
    assert len(orders) > 1


def test_the_order_of_a_seed_stays_what_it_was(files):
    """Else a run of an earlier version would not continue to the same bits."""
    arrays = [synthetic.make_arrays(n, i + 1)["input_ids"] for i, n in enumerate(COUNTS)]
    numbers = {row.tobytes(): i for i, row in enumerate(np.concatenate(arrays).astype(np.int32))}
    first, later = (
        [numbers[row] for row in rows(take(files, 1, start_step=step))] for step in (0, 29)
    )
    assert first == [73, 134, 154, 88, 153, 2, 30, 131, 56, 44, 145, 116, 123]
    assert later == [78, 14, 54, 89, 47, 26, 123, 129, 79, 70, 137, 106, 6]


def test_eight_files_are_read_in_turns(tmp_path):
    """As it stays what it was; with a buffer of one record nothing else shuffles."""
    counts = dict.fromkeys(range(9), 2)
    files = [synthetic.write(tmp_path / f"{i}.tfrecord", n, i) for i, n in counts.items()]
    of_file = {
        row.tobytes(): i
        for i, n in counts.items()
        for row in synthetic.make_arrays(n, i)["input_ids"].astype(np.int32)
    }
    batch = rows(take(files, 1, batch_size=18, shuffle_buffer_records=1))
    order = [of_file[row] for row in batch]
    first, again, last = order[:8], order[8:16], order[16:]
    assert first == again and len(set(first)) == 8
    assert last == 2 * list(set(counts) - set(first))


def test_training_has_no_last_epoch(files):
    assert len(rows(take(files, 1, start_step=100_000))) == BATCH


@pytest.mark.parametrize(
    ("is_training", "changes", "count"),
    [
        (True, {}, 2),
        (True, {"length_bins": 4}, 3),
        (True, {"sequences_per_row": 3}, 3),
        (False, {}, 1),
    ],
)
def test_no_stage_that_runs_in_parallel_gives_up_the_order(files, is_training, changes, count):
    """What a race would show now and then only."""
    sizes = {"max_seq_length": LENGTH, "max_predictions_per_seq": PREDICTIONS, **changes}
    dataset = pretraining_dataset(files, batch_size=BATCH, is_training=is_training, **sizes)
    graph = tf.compat.v1.GraphDef.FromString(dataset._as_serialized_graph().numpy())
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    stages = [n.attr["deterministic"].s for n in nodes if "deterministic" in n.attr]
    assert stages == count * [b"true"]


def test_element_is_what_fit_takes(files):
    inputs, labels, weights = take(files[0], 1)[0]
    shapes = {name: (a.shape, a.dtype.name) for name, a in inputs.items()}
    assert shapes == {
        "input_ids": ((BATCH, LENGTH), "int32"),
        "input_mask": ((BATCH, LENGTH), "int32"),
        "segment_ids": ((BATCH, LENGTH), "int32"),
        "masked_lm_positions": ((BATCH, PREDICTIONS), "int32"),
    }
    assert labels["masked_lm_logits"].shape == weights["masked_lm_logits"].shape
    assert labels["masked_lm_logits"].dtype == labels["next_sentence_logits"].dtype == np.int32
    assert labels["next_sentence_logits"].shape == weights["next_sentence_logits"].shape == (BATCH,)
    # The labels stand with their own inputs.
    synthetic.assert_rows_are(synthetic.make_arrays(COUNTS[0], 1), inputs, labels, weights)
    _, labels, weights = take(files[0], 1, next_sentence=False)[0]
    assert set(labels) == set(weights) == {"masked_lm_logits"}


def test_weights_of_the_predictions_that_show_mask(files, unmasked):
    mask_id = VOCAB["[MASK]"]
    rule = MaskingRule(VOCAB, masked_lm_prob=0.3)
    for settings in ({"files": files}, {"files": [unmasked], "masking": rule}):
        batches = take(**settings, is_training=False, mask_id=mask_id)
        for inputs, _, weights in batches:
            positions = inputs["masked_lm_positions"]
            shown = np.take_along_axis(inputs["input_ids"], positions, axis=1) == mask_id
            expected = weights["masked_lm_logits"] * shown
            np.testing.assert_array_equal(weights["masked_lm_at_mask"], expected)
    shares = [w["masked_lm_at_mask"].sum() / w["masked_lm_logits"].sum() for _, _, w in batches]
    assert 0.6 < np.mean(shares) < 0.95  # of the last, whose masks are drawn here


def test_evaluation_is_of_the_records_alone(files):
    filled, found = (take(files, is_training=False, fill_last_batch=fill) for fill in (True, False))
    rest = sum(COUNTS) % BATCH
    assert rest
    assert_same(found[:-1], filled[:-1])
    assert_same(found[-1:], tf.nest.map_structure(lambda x: x[:rest], filled[-1:]))
    assert_same(take(files, is_training=False, start_step=len(filled) - 1), found[-1:])


def test_what_only_fills_a_row_up_does_not_count_as_mask(tmp_path):
    arrays = synthetic.make_arrays(2, 5, True)
    arrays["input_ids"][:, 0] = VOCAB["[MASK]"]  # which positions of padding, 0, show
    path = tmp_path / "x.tfrecord"
    features = pretraining_features(LENGTH, PREDICTIONS)
    with RecordWriter(path) as writer:
        for record in encode_examples(features, arrays):
            writer.write(record)
    ((_, _, weights),) = take(str(path), is_training=False, mask_id=VOCAB["[MASK]"])
    assert (weights["masked_lm_logits"] == 0).any()
    assert (weights["masked_lm_at_mask"] <= weights["masked_lm_logits"]).all()


def test_evaluation_counts_every_example_once_in_order(files):
    batches = take(files, is_training=False, fill_last_batch=True)
    assert len(batches) == -(-sum(COUNTS) // BATCH)
    real = np.concatenate([weights["next_sentence_logits"] for _, _, weights in batches])
    assert real.sum() == sum(COUNTS) and (np.diff(real) <= 0).all()
    expected = np.concatenate(
        [
            synthetic.make_arrays(count, seed)["input_ids"]
            for count, seed in zip(COUNTS, (1, 2, 3), strict=True)
        ]
    )
    ids = np.concatenate([inputs["input_ids"] for inputs, _, _ in batches])
    np.testing.assert_array_equal(ids[: len(expected)], expected)
    weights = np.concatenate([weights["masked_lm_logits"] for _, _, weights in batches])
    assert not weights[len(expected) :].any()
    assert len(take(files, is_training=False, max_steps=4)) == 4
    assert_same(batches[3:], take(files, is_training=False, start_step=3, fill_last_batch=True))


def test_dynamic_masks_are_fresh_each_epoch_and_the_same_on_resuming(unmasked):
    rule = MaskingRule(VOCAB)
    whole = take(unmasked, 20, masking=rule)
    assert_same(whole[11:], take(unmasked, 9, masking=rule, start_step=11))
    by_text = collections.defaultdict(set)
    for inputs, labels, weights in whole:
        positions, ids = inputs["masked_lm_positions"], labels["masked_lm_logits"]
        for i in range(BATCH):
            text = inputs["input_ids"][i].copy()
            chosen = weights["masked_lm_logits"][i] > 0
            text[positions[i][chosen]] = ids[i][chosen]
            by_text[text.tobytes()].add(positions[i].tobytes())
    assert len(by_text) == 59  # the records, once the masks are undone
    assert sum(len(masks) > 1 for masks in by_text.values()) > 50
    evaluations = [take(unmasked, is_training=False, masking=rule) for _ in range(2)]
    assert_same(*evaluations)


def test_no_two_streams_of_any_seeds_draw_the_same():
    """Orders, masks of training and masks of evaluation, at the same step and at others."""
    streams = (
        pretraining._ORDER_STREAM,
        pretraining._TRAIN_MASK_STREAM,
        pretraining._EVAL_MASK_STREAM,
    )
    drawn = [
        tuple(pretraining._mix(seed, stream, tf.constant(step)).numpy())
        for seed in (0, 1, 2, 3, 4, 5, 2**31 - 2, 2**31 - 1)
        for stream in streams
        for step in range(3)
    ]
    assert len(set(drawn)) == len(drawn)


def test_evaluation_has_masks_of_its_own(tmp_path):
    """Of records that are all alike only the masks can differ."""
    arrays = synthetic.make_arrays(1, 5, masked=False)
    path = tmp_path / "same.tfrecord"
    with RecordWriter(path) as writer:
        (example,) = encode_examples(unmasked_pretraining_features(LENGTH), arrays)
        for _ in range(BATCH):
            writer.write(example)
    rule = MaskingRule(VOCAB)
    (train,) = take(str(path), 1, masking=rule)
    (evaluation,) = take(str(path), is_training=False, masking=rule)
    masks = [batch[0]["masked_lm_positions"].tolist() for batch in (train, evaluation)]
    assert masks[0] != masks[1]
    # Nor are they those of the next seed.
    (other,) = take(str(path), 1, masking=rule, seed=8)
    assert other[0]["masked_lm_positions"].tolist() not in masks


@pytest.mark.parametrize("is_training", [True, False])
def test_the_most_steps_count_from_the_beginning(files, is_training):
    whole = take(files, 9, is_training=is_training)
    found = take(files, is_training=is_training, start_step=3, max_steps=7)
    assert_same(whole[3:7], found)
    for start in (7, 8):
        assert take(files, is_training=is_training, start_step=start, max_steps=7) == []


def test_whole_epoch_from_one_file_smaller_than_a_batch(tmp_path):
    path = synthetic.write(tmp_path / "few.tfrecord", 3, 5)
    batches = take(path, 2)
    counts = collections.Counter(rows(batches))
    assert len(counts) == 3 and set(counts.values()) <= {8, 9}
    assert_same(batches[1:], take(path, 1, start_step=1))


def test_files_are_expanded_in_order_and_missing_ones_named(tmp_path):
    for name in ("x-1.tfrecord", "x-0.tfrecord", "y.tfrecord"):
        (tmp_path / name).write_bytes(b"")
    found = expand_files(f"{tmp_path}/x-*.tfrecord, {tmp_path}/y.tfrecord")
    assert [name.rsplit("/", 1)[1] for name in found] == [
        "x-0.tfrecord",
        "x-1.tfrecord",
        "y.tfrecord",
    ]
    with pytest.raises(FileNotFoundError, match="z-\\*"):
        expand_files([f"{tmp_path}/y.tfrecord", f"{tmp_path}/z-*"])
    with pytest.raises(FileNotFoundError, match="no record files"):
        expand_files("")
    with pytest.raises(ValueError, match="twice.*y.tfrecord"):
        expand_files([f"{tmp_path}/y.tfrecord", f"{tmp_path}/*.tfrecord"])


def test_two_stars_cross_folders(tmp_path):
    record = tmp_path / "a" / "b" / "y.tfrecord"
    record.parent.mkdir(parents=True)
    record.write_bytes(b"")
    assert expand_files(f"{tmp_path}/**/y.tfrecord") == [str(record)]


def test_globs_take_records_only(tmp_path):
    """The original's README writes tf_examples.tf_record, and reads tf_examples.tf_record*."""
    record = synthetic.write(tmp_path / "tf_examples.tf_record", 3, 1)
    for name in ("tf_examples.tf_record.manifest.json", "tf_examples.tf_record.tmp-123"):
        (tmp_path / name).write_text("{}")
    assert expand_files(f"{tmp_path}/tf_examples.tf_record*") == [record]
    assert take(f"{tmp_path}/tf_examples.tf_record*", 1)
    with pytest.raises(FileNotFoundError, match=r"\*.json: no such record file"):
        expand_files(f"{tmp_path}/*.json")


def test_a_path_with_brackets_that_exists_is_that_file(tmp_path):
    record = synthetic.write(tmp_path / "x[1].tfrecord", 3, 1)
    assert expand_files(record) == [record]


def test_remote_records_are_copied_here_with_their_manifest(tmp_path, store):
    record = synthetic.write(tmp_path / "t-0.tfrecord", 3, 1)
    object_store.put("b/t-0.tfrecord", (tmp_path / "t-0.tfrecord").read_bytes())
    manifest = {"files": ["t-0.tfrecord"], "vocab_sha256": "x"}
    object_store.put("b/t-0.manifest.json", json.dumps(manifest))
    for pattern in ("bucket://b/t-0.tfrecord", "bucket://b/t-*"):
        (found,) = expand_files(pattern)
        assert list(read_records(found)) == list(read_records(record))
        assert manifests_of([found]) == [manifest]
    with pytest.raises(FileNotFoundError, match=r"bucket://b/u-\*"):
        expand_files("bucket://b/u-*")


def test_one_file_by_two_paths_is_named_twice(tmp_path, monkeypatch):
    record = synthetic.write(tmp_path / "t.tfrecord", 3, 1)
    monkeypatch.chdir(tmp_path)
    for other in ("./t.tfrecord", record):
        with pytest.raises(ValueError, match="named twice: .*t.tfrecord"):
            expand_files(["t.tfrecord", other])


def test_what_does_not_fit_is_said(files, unmasked, tmp_path):
    with pytest.raises(ValueError, match=r"a.tfrecord: .* max_seq_length 31, expected 29"):
        take(files, max_seq_length=29)
    with pytest.raises(ValueError, match=r"max_predictions_per_seq 5, expected 7"):
        take(files, max_predictions_per_seq=7)
    with pytest.raises(ValueError, match="unmasked.*masking="):
        take(unmasked)
    with pytest.raises(ValueError, match="one kind at a time"):
        take([files[0], unmasked])
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        take(files, batch_size=0)
    with pytest.raises(ValueError, match="start_step"):
        take(files, start_step=-1)
    with pytest.raises(ValueError, match="record_counts"):
        take(files, record_counts=[1, 2])
    empty = tmp_path / "empty.tfrecord"
    empty.write_bytes(b"")
    with pytest.raises(ValueError, match="empty.tfrecord: no records"):
        take(str(empty))
    other = tmp_path / "other.tfrecord"
    features = (FeatureSpec("label", "int64", 1),)
    with RecordWriter(other) as writer:
        writer.write(encode_examples(features, {"label": np.array([[1]])})[0])
    with pytest.raises(ValueError, match="other.tfrecord: record 0: expected the features"):
        take(str(other))


def test_damaged_records_are_named(files, tmp_path):
    damaged = tmp_path / "damaged.tfrecord"
    data = bytearray(pathlib.Path(files[0]).read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged.tfrecord: record \d+"):
        count_records([files[2], str(damaged)])
    assert count_records(files) == list(COUNTS)


def test_an_id_outside_the_vocabulary_stops_the_stream(files):
    highest = max(
        int(synthetic.make_arrays(count, seed)[name].max())
        for count, seed in zip(COUNTS, (1, 2, 3), strict=True)
        for name in ("input_ids", "masked_lm_ids")
    )
    assert highest == VOCAB_SIZE - 1
    take(files, 20, vocab_size=highest + 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="outside the vocabulary of 96"):
        take(files, 20, vocab_size=highest)


BAD_VALUES = [
    ("input_ids", -1, "holds token id -1, but"),
    ("input_ids", 2**31 + 5, "holds token id 2147483653, but"),
    ("input_ids", 2**32 + 5, "holds token id 4294967301, but"),  # 5 once it is cast
    ("masked_lm_ids", -100, "holds token id -100, but"),
    ("masked_lm_ids", VOCAB_SIZE, f"holds token id {VOCAB_SIZE}, but"),
    ("masked_lm_positions", LENGTH + 9, "masked_lm_positions: expected 0 to 30, got 40"),
    ("masked_lm_positions", -1, "masked_lm_positions: expected 0 to 30, got -1"),
    ("next_sentence_labels", 2, "next_sentence_labels: expected 0 to 1, got 2"),
    ("segment_ids", 2, "segment_ids: expected 0 to 1, got 2"),
    ("input_mask", 3, "input_mask: expected 0 to 1, got 3"),
    ("masked_lm_weights", np.nan, "masked_lm_weights: expected numbers from 0, got nan"),
]


@pytest.mark.parametrize("name, value, message", BAD_VALUES)
def test_values_that_a_model_cannot_have_are_refused(tmp_path, name, value, message):
    """As records of other programs may have; looked at before they are cast."""
    arrays = synthetic.make_arrays(19, 5)
    arrays[name] = arrays[name].astype(np.float32 if name.endswith("weights") else np.int64)
    arrays[name][13, 0] = value
    path = tmp_path / "other.tfrecord"
    with RecordWriter(path) as writer:
        for example in encode_examples(pretraining_features(LENGTH, PREDICTIONS), arrays):
            writer.write(example)
    for skip in (False, True):
        with pytest.raises(ValueError, match=f"other.tfrecord: record 13: {message}"):
            check_records(
                [str(path)],
                vocab_size=VOCAB_SIZE,
                type_vocab_size=2,
                skip_corrupt_records=skip,
            )
    if name not in ("segment_ids", "masked_lm_weights"):
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"{name}: a record holds"):
            take(str(path), 2, vocab_size=VOCAB_SIZE)


def test_next_sentence_labels_that_are_not_used_may_be_anything(tmp_path):
    arrays = synthetic.make_arrays(19, 5)
    arrays["next_sentence_labels"] = arrays["next_sentence_labels"] - 100
    path = tmp_path / "other.tfrecord"
    with RecordWriter(path) as writer:
        for example in encode_examples(pretraining_features(LENGTH, PREDICTIONS), arrays):
            writer.write(example)
    (checked,) = check_records([str(path)], vocab_size=VOCAB_SIZE, next_sentence=False)
    assert checked.num_records == 19
    take(str(path), 2, vocab_size=VOCAB_SIZE, next_sentence=False)


def test_unigram_baseline_is_the_cross_entropy_with_one_added(files):
    dataset = pretraining_dataset(
        files,
        batch_size=BATCH,
        max_seq_length=LENGTH,
        max_predictions_per_seq=PREDICTIONS,
        is_training=False,
    )
    counts = label_counts(dataset, VOCAB_SIZE)
    expected = collections.Counter()
    for count, seed in zip(COUNTS, (1, 2, 3), strict=True):
        arrays = synthetic.make_arrays(count, seed)
        expected.update(arrays["masked_lm_ids"][arrays["masked_lm_weights"] > 0].tolist())
    assert {i: n for i, n in enumerate(counts) if n} == expected
    assert label_counts(dataset, VOCAB_SIZE, max_steps=1).sum() < counts.sum()
    with pytest.raises(ValueError, match="vocab_size 11"):
        label_counts(dataset, 11)
    # By hand: training counts (3, 0, 1) become 4/7, 1/7, 2/7.
    value = unigram_cross_entropy(np.array([3, 0, 1]), np.array([2, 1, 0]))
    assert value == pytest.approx(-(2 * np.log(4 / 7) + np.log(1 / 7)) / 3, rel=1e-12)
    with pytest.raises(ValueError, match="held_out_counts"):
        unigram_cross_entropy(np.array([1]), np.array([0]))


def test_manifests_count_only_for_the_files_they_name(tmp_path):
    manifest = {"files": ["m-00000-of-00002.tfrecord"], "max_token_id": 3}
    (tmp_path / "m.manifest.json").write_text(json.dumps(manifest))
    named, other = (str(tmp_path / f"m-0000{i}-of-00002.tfrecord") for i in (0, 1))
    assert manifests_of([named, other]) == [manifest]
    assert manifests_of([other]) == []
    assert manifests_of([str(tmp_path / "n.tfrecord")]) == []
    (tmp_path / "m.manifest.json").write_text("{")
    with pytest.raises(ValueError, match="m.manifest.json: not a JSON file"):
        manifests_of([named])


# === Damaged, missing and foreign files ===


def _framed(path):
    """Bytes of each record of a file, with its frame."""
    return [frame_record(record) for record in read_records(path)]


def _check(paths, skip=False, vocab_size=VOCAB_SIZE):
    return check_records(list(map(str, paths)), vocab_size=vocab_size, skip_corrupt_records=skip)


def _flip(data, place):
    return data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :]


def _damages(framed):
    """name -> (bytes of the file, numbers of the sound records, pattern of the damage)."""
    whole = b"".join(framed)
    at = [0, *np.cumsum(list(map(len, framed))).tolist()]
    every = list(range(len(framed)))
    return {
        "data": (_flip(whole, at[5] + 50), [*every[:5], *every[6:]], "record 5: corrupt data"),
        "first": (_flip(whole, 50), every[1:], "record 0: corrupt data"),
        "length": (_flip(whole, at[3] + 1), [*every[:3], *every[4:]], "record 3: corrupt length"),
        "hole": (
            whole[: at[2] + 30] + bytes(at[4] - at[2]) + whole[at[4] + 30 :],
            [0, 1, *every[5:]],
            "record 2: corrupt data",
        ),
        # A number is told after a length is lost, as before.
        "length and data": (
            _flip(_flip(whole, at[3] + 1), at[7] + 50),
            [*every[:3], *every[4:7], *every[8:]],
            "record 3: corrupt length",
        ),
        "truncated": (whole[: at[-1] - 9], every[:-1], f"record {len(every) - 1}: .*truncated"),
        "in a header": (whole[: at[-2] + 7], every[:-1], f"record {len(every) - 1}: .*truncated"),
    }


@pytest.mark.parametrize(
    "damage",
    ["data", "first", "length", "hole", "length and data", "truncated", "in a header"],
)
def test_damaged_records_are_named_or_left_out(files, tmp_path, damage):
    framed = _framed(files[2])
    data, sound, message = _damages(framed)[damage]
    path = tmp_path / "damaged.tfrecord"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"damaged.tfrecord: {message}"):
        _check([files[0], path])
    (intact, checked) = _check([files[0], path], skip=True)
    assert intact == CheckedFile(files[0], COUNTS[0], ())
    assert _framed(checked.path) == [framed[number] for number in sound]
    assert checked.num_records == len(sound) and path.read_bytes() == data
    if damage == "length and data":
        assert [re.search(r"record (\d+)", text)[1] for text in checked.damage] == ["3", "7"]
    lines = damage_report([intact, checked])
    assert len(lines) == len(checked.damage) + 1
    assert checked.damage[0] in lines[0] and "damaged.tfrecord: record " in lines[0]
    assert f"{len(sound) + COUNTS[0]} records sound" in lines[-1]
    assert damage_report([intact]) == []
    assert check_record_shape([str(path)], LENGTH, PREDICTIONS, True).masked


@pytest.mark.parametrize("damage", ["truncated", "corrupt"])
def test_what_comes_before_damage_of_compressed_data_is_kept(files, tmp_path, damage):
    raw = pathlib.Path(files[1]).read_bytes()
    path = tmp_path / "x.tfrecord.gz"
    cut = len(raw) // 2
    path.write_bytes(raw[:cut] if damage == "truncated" else raw[:cut] + bytes(200) + raw[cut:])
    with pytest.raises(ValueError, match=r"x.tfrecord.gz: record \d+: "):
        _check([path])
    (checked,) = _check([path], skip=True)
    framed = _framed(files[1])
    assert 0 < checked.num_records < len(framed) and damage in checked.damage[-1]
    assert _framed(checked.path) == framed[: checked.num_records]


def test_training_without_damaged_records_is_training_on_the_sound_ones(files, tmp_path):
    """Order included, from any step; and another reader makes the same of the same files."""
    framed = _framed(files[0])
    damaged, sound = tmp_path / "a.tfrecord", tmp_path / "sound" / "a.tfrecord"
    damaged.write_bytes(_damages(framed)["data"][0])
    sound.parent.mkdir()
    sound.write_bytes(b"".join(framed[:5] + framed[6:]))
    read = [[file.path for file in _check([damaged, files[2]], skip=True)] for _ in range(2)]
    assert read[0][0] != read[1][0]
    assert_same(take([str(sound), files[2]], 20)[7:], take(read[1], 13, start_step=7))
    assert _framed(read[0][0]) == _framed(read[1][0])


def test_files_of_which_no_record_is_sound_are_refused(files, tmp_path):
    framed = _framed(files[2])
    lost = b"".join(_flip(data, 50) for data in framed)
    empty = tmp_path / "empty.tfrecord"
    for name, data in (("lost", lost), ("cut", framed[0][:-9]), ("nothing", b"")):
        path = tmp_path / f"{name}.tfrecord"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}.tfrecord: no records in this file"):
            _check([path], skip=True)
    empty.write_bytes(b"")
    with pytest.raises(ValueError, match="empty.tfrecord: no records in this file"):
        count_records([files[2], str(empty)])
    # Of which the manifest tells all that the first record would.
    manifest = {"files": ["empty.tfrecord"], "max_token_id": 5}
    (tmp_path / "empty.manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="empty.tfrecord: no records in this file"):
        _check([empty])
    # Their first is sound and of another program.
    other = tmp_path / "other.tfrecord"
    other.write_bytes(frame_record(b"no example \xff") + framed[0])
    with pytest.raises(ValueError, match="other.tfrecord: record 0: not a tf.train.Example"):
        check_record_shape([str(other)], LENGTH, PREDICTIONS)


def test_a_stretch_of_records_of_another_schema_is_left_out(files, unmasked, tmp_path):
    """More of them than are looked at together, so that of some batches nothing is left."""
    framed, others = _framed(files[2]), _framed(unmasked)
    path = tmp_path / "mixed.tfrecord"
    count = 2 * record_checks._CHECKED_AT_ONCE
    path.write_bytes(b"".join([framed[0], *(others[i % 59] for i in range(count)), framed[1]]))
    (checked,) = _check([path], skip=True)
    assert _framed(checked.path) == framed[:2] and len(checked.damage) == count
    assert f"record {count}: no feature" in checked.damage[-1]
    *named, more, _ = damage_report([checked], most_lines=2)
    assert len(named) == 2 and more == f"and {count - 2} more"


def test_records_that_tensorflow_cannot_even_quote_are_named(files, tmp_path):
    """Its error is none of its own where its message holds bytes that are no text."""
    framed, path = _framed(files[2]), tmp_path / "other.tfrecord"
    path.write_bytes(framed[0] + frame_record(b"no example \xff") + framed[1])
    message = "other.tfrecord: record 1: not a serialized tf.train.Example"
    with pytest.raises(ValueError, match=message):
        _check([path])
    (checked,) = _check([path], skip=True)
    assert _framed(checked.path) == framed[:2] and checked.damage == (f"{tmp_path}/{message}",)
    # The first says how long all are.
    example = tf.train.Example.FromString(next(read_records(files[2])))
    example.features.feature["input_ids"].float_list.value.append(1.0)
    path.write_bytes(frame_record(example.SerializeToString()) + framed[1])
    with pytest.raises(ValueError, match="other.tfrecord: record 0: input_ids: expected integers"):
        _check([path])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": 5}, "files: expected a list of str"),
        ({"files": [5, "x"]}, "files: expected a list of str"),
        ({"file_instances": [1]}, "file_instances: expected a list of int, one for each of its"),
        ({"file_instances": ["1", "2"]}, "file_instances: expected a list of int"),
        ({"file_bytes": None}, "file_bytes: expected a list of int"),
        ({"file_bytes": [1, True]}, "file_bytes: expected a list of int"),
        ({"max_token_id": "5"}, "max_token_id: expected int, got '5'"),
        ({"vocab_sha256": ["x"]}, "vocab_sha256: expected str"),
    ],
)
def test_a_manifest_of_other_entries_is_named(shards, tmp_path, changes, message):
    paths, manifest = shards
    (tmp_path / "m.manifest.json").write_text(json.dumps({**manifest, **changes}))
    for check in (check_manifests, _check, without_empty_shards, manifests_of):
        with pytest.raises(ValueError, match=f"m.manifest.json: {message}"):
            check(paths)


def test_sizes_without_counts_in_a_manifest_are_named(shards, tmp_path):
    paths, manifest = shards
    del manifest["file_instances"]
    (tmp_path / "m.manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="m.manifest.json: file_instances: expected with file_byt"):
        check_manifests(paths)


def test_a_manifest_that_is_no_object_is_named(files, tmp_path):
    (tmp_path / "m.manifest.json").write_text("[1]")
    path = synthetic.write(tmp_path / "m.tfrecord", 3, 1)
    with pytest.raises(ValueError, match="m.manifest.json: expected a JSON object, got list"):
        manifests_of([path])


def test_records_of_another_schema_or_vocabulary_are_named(files, unmasked, tmp_path):
    """Within a file, where the first record says nothing about the others."""
    mixed = tmp_path / "mixed.tfrecord"
    framed = _framed(files[2])
    mixed.write_bytes(b"".join([*framed[:7], _framed(unmasked)[0], *framed[7:]]))
    message = "mixed.tfrecord: record 7: no feature 'masked_lm_positions'"
    with pytest.raises(ValueError, match=message):
        _check([mixed])
    (checked,) = _check([mixed], skip=True)
    assert _framed(checked.path) == framed and message in checked.damage[0]
    ids = synthetic.make_arrays(COUNTS[2], 3)
    highest = np.maximum(ids["input_ids"].max(1), ids["masked_lm_ids"].max(1))
    place = int(np.argmax(highest == VOCAB_SIZE - 1))
    message = f"record {place}: holds token id {VOCAB_SIZE - 1}, but the model's vocab_size is"
    for skip in (False, True):  # a whole file of another vocabulary is no damage
        with pytest.raises(ValueError, match=message):
            _check([files[2]], skip, VOCAB_SIZE - 1)


@pytest.fixture
def shards(tmp_path):
    """Two shards with a manifest, as create_pretraining_data writes it."""
    names = [f"m-0000{i}-of-00002.tfrecord" for i in range(2)]
    paths = [synthetic.write(tmp_path / name, 11 + i, i) for i, name in enumerate(names)]
    manifest = {
        "files": names,
        "file_instances": [11, 12],
        "file_bytes": [pathlib.Path(path).stat().st_size for path in paths],
        "vocab_sha256": "one",
        "max_token_id": VOCAB_SIZE - 1,
    }
    (tmp_path / "m.manifest.json").write_text(json.dumps(manifest))
    return paths, manifest


def test_shards_are_those_of_their_manifest(shards, tmp_path):
    paths, manifest = shards
    check_manifests(paths)
    check_manifests(paths[:1])
    assert [file.num_records for file in _check(paths)] == [11, 12]
    # Cut off after a record: every checksum is right.
    framed = _framed(paths[1])
    whole = b"".join(framed)
    pathlib.Path(paths[1]).write_bytes(whole[: -len(framed[-1])])
    message = "m-00001-of-00002.tfrecord: has 11 records, but .*m.manifest.json says 12"
    with pytest.raises(ValueError, match=message):
        _check(paths)
    checked = _check(paths, skip=True)
    assert [file.num_records for file in checked] == [11, 11] and len(checked[1].damage) == 1
    # As many records of another run, which are not as long.
    pathlib.Path(paths[1]).write_bytes(whole)
    for more in (-1, 1):
        sizes = [manifest["file_bytes"][0], len(whole) + more]
        (tmp_path / "m.manifest.json").write_text(json.dumps({**manifest, "file_bytes": sizes}))
        for skip in (False, True):
            with pytest.raises(ValueError, match="00001-of-00002.tfrecord: has .* bytes, but"):
                _check(paths, skip)
    (tmp_path / "m.manifest.json").write_text(json.dumps(manifest))
    pathlib.Path(paths[1]).write_bytes(whole + framed[0])
    for skip in (False, True):
        with pytest.raises(ValueError, match="has 13 records"):
            _check(paths, skip)
    pathlib.Path(paths[1]).unlink()
    message = "m-00001-of-00002.tfrecord: missing; .*m.manifest.json names 2 shards"
    with pytest.raises(FileNotFoundError, match=message):
        check_manifests(paths[:1])


def test_shards_that_are_empty_as_their_manifest_says_are_left_out(shards, tmp_path):
    paths, manifest = shards
    empty = tmp_path / "m-00002-of-00003.tfrecord"
    empty.write_bytes(b"")
    assert without_empty_shards([*paths, str(empty)]) == [*paths, str(empty)]
    manifest["files"].append(empty.name)
    manifest["file_instances"].append(0)
    manifest["file_bytes"].append(0)
    (tmp_path / "m.manifest.json").write_text(json.dumps(manifest))
    assert without_empty_shards([*paths, str(empty)]) == paths
    assert without_empty_shards([str(empty)]) == [str(empty)]


def test_shards_that_an_earlier_run_left_are_refused(shards, tmp_path):
    paths, _ = shards
    stale = [synthetic.write(tmp_path / f"m-0000{i}-of-00003.tfrecord", 5, i) for i in range(2)]
    with pytest.raises(ValueError, match="00001-of-00003.tfrecord: .*m.manifest.json, which does"):
        check_manifests([*paths, stale[1]])
    message = "00000-of-00003.tfrecord, .*00001-of-00003.tfrecord: .* remove them"
    with pytest.raises(ValueError, match=message):
        check_manifests(expand_files(f"{tmp_path}/m-*"))
    stale += [synthetic.write(tmp_path / f"m-0000{i}-of-00005.tfrecord", 5, i) for i in range(3)]
    shown = f"^{', '.join(map(re.escape, stale[:3]))} and 2 more: lying beside"
    with pytest.raises(ValueError, match=shown):
        check_manifests(stale)
    # One file, where there are shards now.
    whole = synthetic.write(tmp_path / "m.tfrecord.gz", 5, 7)
    with pytest.raises(ValueError, match="m.tfrecord.gz: .*m.manifest.json, which does not name"):
        check_manifests([whole])
    # A manifest of another program says nothing of files.
    (tmp_path / "o.manifest.json").write_text('{"name": "x"}')
    check_manifests([synthetic.write(tmp_path / "o.tfrecord", 3, 3)])


def test_shards_of_two_vocabularies_are_refused(shards, tmp_path):
    paths, manifest = shards
    other = synthetic.write(tmp_path / "o.tfrecord", 3, 3)
    made = {"files": ["o.tfrecord"], "vocab_sha256": "two", "max_token_id": VOCAB_SIZE}
    (tmp_path / "o.manifest.json").write_text(json.dumps(made))
    with pytest.raises(ValueError, match=r"m.manifest.json and .*o.manifest.json: .* different"):
        check_manifests([*paths, other])
    with pytest.raises(ValueError, match=f"o.tfrecord: holds token id {VOCAB_SIZE}, but"):
        _check([other])


def test_gzip_members_written_one_after_another_are_sound(files, tmp_path):
    framed = _framed(files[2])
    path = tmp_path / "x.tfrecord.gz"
    path.write_bytes(gzip.compress(b"".join(framed[:9])) + gzip.compress(b"".join(framed[9:])))
    assert _check([path])[0] == CheckedFile(str(path), COUNTS[2], ())
