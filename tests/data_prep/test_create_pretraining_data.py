"""Tests of create_pretraining_data: the original's records exactly, its distribution in bulk."""

import collections
import dataclasses
import gzip
import hashlib
import io
import itertools
import json
import logging
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from absl import flags

from bert_tf.records.decoding import parse_example_fn, read_examples
from bert_tf.records.files import compression_of, read_records, scan_records
from bert_tf.tokenization.vocabulary import load_vocab
from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.corpus import text_files
from data_prep.pretraining import (
    instances,
    local_runner,
    manifest,
    original_order,
    run,
    token_store,
    units,
)
from data_prep.pretraining.local_runner import create_pretraining_data
from data_prep.pretraining.options import (
    Options,
    define_flags,
    options_from_flags,
    shard_names,
)
from data_prep.pretraining.run import first_example
from data_prep.pretraining.stages import _deal
from data_prep.pretraining.work_folder import work_folder
from data_prep.processes.folder_lock import lock_folder
from tests.support.languages import LANGUAGES

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "pretraining_data"
DIGESTS = json.loads((GOLDEN / "digests.json").read_text())


def _options(arguments):
    values = flags.FlagValues()
    define_flags(values)
    values(["create_pretraining_data", *map(str, arguments)])
    return options_from_flags(values)[1], values


def _digest(path, features):
    digest, count = hashlib.sha256(), 0
    for example in read_examples(path, features):
        for name in sorted(example):
            digest.update(name.encode())
            digest.update(example[name].astype(example[name].dtype.newbyteorder("<")).tobytes())
        count += 1
    return {"records": count, "sha256": digest.hexdigest()}


def _check_golden(golden, names, folder, *more):
    files = [folder / f"{i}.tfrecord" for i in range(len(golden["files"]))]
    options, _ = _options(
        [
            golden["text"].format(**names),
            "--vocab_file=" + golden["vocab_file"].format(**names),
            "--output_file=" + ",".join(map(str, files)),
            "--compatible",
            *golden["flags"],
            *more,
        ]
    )
    create_pretraining_data(options, show_progress=False)
    assert [_digest(path, options.features) for path in options.output_files] == golden["files"]


@pytest.mark.parametrize("case", [name for name in DIGESTS if name.startswith("tiny")])
def test_compatible_records_equal_the_original_on_committed_text(case, tmp_path):
    _check_golden(DIGESTS[case], {"here": GOLDEN}, tmp_path)


def test_compatible_reads_and_writes_gzip(tmp_path):
    for name in ("tiny_1.txt", "tiny_2.txt", "tiny_vocab_uncased.txt"):
        (tmp_path / name).write_bytes((GOLDEN / name).read_bytes())
    (tmp_path / "tiny_1.txt.gz").write_bytes(gzip.compress((tmp_path / "tiny_1.txt").read_bytes()))
    golden = DIGESTS["tiny_uncased"]
    golden = {**golden, "text": golden["text"].replace("tiny_1.txt", "tiny_1.txt.gz")}
    _check_golden(golden, {"here": tmp_path}, tmp_path, "--gzip")
    written = sorted(path.name for path in tmp_path.glob("*tfrecord*"))
    assert written == ["0.tfrecord.gz", "1.tfrecord.gz"]
    assert all(compression_of(tmp_path / name) == "gzip" for name in written)


@pytest.fixture(scope="session")
def real_text(shared_data, tmp_path_factory):
    sys.path.insert(0, str(GOLDEN))
    try:
        from real_text import write_real_text
    finally:
        sys.path.remove(str(GOLDEN))
    path = tmp_path_factory.mktemp("real") / "real.txt"
    extract = shared_data / "corpus" / "wikipedia_en_extract.txt.gz"
    assert write_real_text(extract, path) >= 1_000_000
    return path


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(name, marks=[pytest.mark.thorough] * (name != "real_uncased"))
        for name in DIGESTS
        if name.startswith("real")
    ],
)
def test_compatible_records_equal_the_original_on_a_megabyte(
    case, shared_data, real_text, tmp_path
):
    _check_golden(DIGESTS[case], {"data": shared_data, "real": real_text}, tmp_path)


# === Default mode: the original's distribution ===


def _z_of_two_samples(first, second):
    """How far two samples of outcomes are from one distribution, as a z score of chi-squared."""
    keys = sorted(set(first) | set(second))
    a, b = (np.array([counts[key] for key in keys], float) for counts in (first, second))
    rare = a + b < 20  # pooled, so that the chi-squared distribution holds
    a, b = (np.append(x[~rare], x[rare].sum()) for x in (a, b))
    a, b = a[a + b > 0], b[a + b > 0]
    share = a.sum() / (a.sum() + b.sum())
    expected = np.stack([(a + b) * share, (a + b) * (1 - share)])
    chi_squared = ((np.stack([a, b]) - expected) ** 2 / expected).sum()
    freedom = len(a) - 1
    assert freedom > 3
    return (chi_squared - freedom) / np.sqrt(2 * freedom)


# Tokens of the sentences of each document; the stream's tokens are 10, 11, 12, ...
LENGTHS = ((3, 1, 7, 2), (5,), (2, 2, 11, 1, 1, 4), (1, 17))
FIRST_TOKEN = 10


def _corpus():
    documents, offsets, starts = [], [0], [0]
    for lengths in LENGTHS:
        documents.append([])
        for length in lengths:
            begin = FIRST_TOKEN + offsets[-1]
            documents[-1].append(list(range(begin, begin + length)))
            offsets.append(offsets[-1] + length)
        starts.append(starts[-1] + len(lengths))
    return documents, np.array(offsets), np.array(starts)


def _vocabulary(size, continuations=()):
    is_continuation = np.zeros(size, bool)
    is_continuation[list(continuations)] = True
    return instances.VocabularyTable(1, 2, 3, np.arange(size), is_continuation)


@pytest.mark.parametrize("only", [None, 1])  # 1: one document, so random next is the same
@pytest.mark.parametrize("max_seq_length", [5, 13, 17])
def test_pairs_have_the_distribution_of_the_original(max_seq_length, only):
    """Whole outcomes are compared: both ranges after truncation, and the label."""
    documents, offsets, starts = _corpus()
    if only:
        documents, offsets, starts = documents[:1], offsets[:5], starts[:2]
    rule = instances.PairRule(max_seq_length, short_seq_prob=0.3)
    duplicates = 4001
    drawn = collections.Counter()
    rng = np.random.default_rng(17)
    for pairs in instances.sample_pairs(
        offsets, starts, range(len(documents)), duplicates, rule, rng
    ):
        drawn.update(
            zip(*(pairs[name].tolist() for name in instances.PAIR_DTYPE.names), strict=True)
        )
    reference = collections.Counter()
    maker = original_order.InstanceMaker(
        documents,
        rule,
        instances.MaskRule(1, mask_prob=0, random_prob=0, keep_prob=1),
        _vocabulary(100),
        random.Random(5),
    )
    for _ in range(duplicates):
        for index in range(len(documents)):
            for instance in maker.from_document(index):
                ids = instance.ids.tolist()
                a, b = ids[1 : instance.a_end], ids[instance.a_end + 1 : -1]
                assert a == list(range(a[0], a[0] + len(a)))  # truncation leaves ranges
                assert b == list(range(b[0], b[0] + len(b)))
                key = (a[0] - FIRST_TOKEN, b[0] - FIRST_TOKEN, len(a), len(b))
                reference[(*key, int(instance.is_random_next))] += 1
    assert abs(_z_of_two_samples(drawn, reference)) < 4.5
    coarse = [collections.Counter(), collections.Counter()]  # fewer outcomes show smaller biases
    for counts, outcomes in zip(coarse, (drawn, reference), strict=True):
        for (_, _, a_length, _, label), count in outcomes.items():
            counts[label, a_length > 2, a_length > 4] += count
    if max_seq_length > 5:  # else A and B are one token each
        assert abs(_z_of_two_samples(*coarse)) < 4.5


# 4 and 6 continue words. Both begin in the middle of a word.
WORDS_A, WORDS_B = [6, 7, 4, 8, 4, 9], [4, 6, 5, 8, 7, 4]


def test_pairs_are_packed_alike_in_blocks_of_any_size(monkeypatch):
    tokens = np.arange(100, 601, dtype=np.uint16)
    rng = np.random.default_rng(7)
    pairs = np.zeros(101, instances.PAIR_DTYPE)
    pairs["a_length"], pairs["b_length"] = rng.integers(1, 11, (2, 101))
    for side in "ab":  # ranges at both ends of the tokens too
        pairs[f"{side}_start"] = rng.integers(0, 502 - pairs[f"{side}_length"])
        pairs[f"{side}_start"][:2] = 0, 501 - pairs[f"{side}_length"][1]
    expected = []
    for pair in pairs.tolist():
        a_start, b_start, a_length, b_length, _ = pair
        a = tokens[a_start : a_start + a_length].tolist()
        b = tokens[b_start : b_start + b_length].tolist()
        expected.append([1, *a, 2, *b, 2] + [0] * (20 - a_length - b_length))
    for cached_tokens in (1, 23 * 7, 1 << 15):
        monkeypatch.setattr(instances, "_CACHED_TOKENS", cached_tokens)
        packed = instances.pack_pairs(tokens, pairs, 23, _vocabulary(700))
        assert packed.input_ids.tolist() == expected
        assert packed.input_ids.dtype == np.uint16


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("probability", [0.15, 0.3, 0.43, 1.0])
def test_chosen_tokens_have_the_distribution_of_the_original(whole_words, probability):
    """Compare the sets of masked positions and what was put there."""
    rule = instances.MaskRule(6, probability, whole_words, 0.5, 0.2, 0.3)
    vocabulary = _vocabulary(11, continuations=(4, 6))
    rows = 6007
    tokens = np.array(WORDS_A + WORDS_B, np.uint16)
    pair = np.array([(0, len(WORDS_A), len(WORDS_A), len(WORDS_B), 1)], instances.PAIR_DTYPE)
    packed = instances.pack_pairs(tokens, np.repeat(pair, rows), 17, vocabulary)
    ids = [1, *WORDS_A, 2, *WORDS_B, 2, 0, 0]
    assert packed.input_ids.tolist() == [ids] * rows
    masks = instances.mask_pairs(packed, vocabulary, rule, np.random.default_rng(3))
    maker = original_order.InstanceMaker(
        [], instances.PairRule(17), rule, vocabulary, random.Random(4)
    )
    sets, changes = [], []
    drawn = zip(
        masks["masked_lm_positions"],
        masks["masked_lm_ids"],
        masks["masked_lm_weights"],
        packed.input_ids,
        strict=True,
    )
    sets.append(collections.Counter())
    changes.append(collections.Counter())
    for positions, labels, weights, masked in drawn:
        count = int(weights.sum())
        assert weights.tolist() == [1] * count + [0] * (6 - count)
        assert not positions[count:].any() and not labels[count:].any()
        chosen = positions[:count].tolist()
        assert labels[:count].tolist() == [ids[p] for p in chosen]
        unchanged = np.delete(masked, chosen).tolist()
        assert unchanged == np.delete(ids, chosen).tolist()
        sets[0][tuple(chosen)] += 1
        changes[0].update((p, int(masked[p])) for p in chosen)
    sets.append(collections.Counter())
    changes.append(collections.Counter())
    for _ in range(rows):
        instance = maker._masked(WORDS_A, WORDS_B, True)
        sets[1][tuple(instance.positions)] += 1
        changes[1].update((p, instance.ids[p]) for p in instance.positions)
    assert abs(_z_of_two_samples(*changes)) < 4.5
    if len(sets[0]) > 5:
        assert abs(_z_of_two_samples(*sets)) < 4.5
    else:
        assert set(sets[0]) == set(sets[1])
    for chosen in sets[0] if whole_words else ():
        assert (6 in chosen) == (8 in chosen) == (9 in chosen)  # B begins within A's last word


def test_replacements_are_80_10_10_over_the_whole_vocabulary():
    rows, length = 5003, 131
    vocabulary = _vocabulary(251)
    packed = instances.PackedPairs(
        np.full((rows, length), 7, np.uint16),
        np.full(rows, 61),
        np.full(rows, length),
        np.zeros(rows, bool),
    )
    masks = instances.mask_pairs(
        packed, vocabulary, instances.MaskRule(20), np.random.default_rng(1)
    )
    count = masks["masked_lm_weights"].sum()
    assert count == rows * 20  # round(131 * .15) = 20
    new = packed.input_ids[np.arange(rows)[:, None], masks["masked_lm_positions"]].ravel()
    for ids, probability in (
        (new == 3, 0.8 + 0.1 / 251),
        (new == 7, 0.1 + 0.1 / 251),
        ((new != 3) & (new != 7), 0.1 * 249 / 251),
    ):
        deviation = np.sqrt(probability * (1 - probability) / count)
        assert abs(ids.mean() - probability) < 4 * deviation
    others = np.bincount(new, minlength=251)[[i for i in range(251) if i not in (3, 7)]]
    expected = count * 0.1 / 251
    assert others.min() > 0 and ((others - expected) ** 2 / expected).mean() < 1.5
    # Every position is as likely, but for [CLS] and the two [SEP].
    positions = np.bincount(masks["masked_lm_positions"].ravel(), minlength=length)
    assert np.flatnonzero(positions == 0).tolist() == [0, 61, 130]
    share = positions[positions > 0] / rows
    assert abs(share - 20 / 128).max() < 5 * np.sqrt(20 / 128 / rows)


@pytest.mark.parametrize(("length", "wanted"), [(3, 1), (10, 2), (30, 4), (50, 8), (128, 19)])
def test_number_of_predictions_rounds_halves_to_even(length, wanted):
    assert instances.MaskRule(20).num_to_predict(length) == wanted  # 30 * .15 = 4.5, 50 * .15 = 7.5
    assert instances.MaskRule(3).num_to_predict(length) == min(wanted, 3)


def test_truncation_takes_from_the_longer():
    rng = random.Random(0)
    for _ in range(2003):
        a, b, limit = rng.randint(1, 30), rng.randint(1, 30), rng.randint(2, 40)
        left = [a, b]
        while sum(left) > limit:
            left[0 if left[0] > left[1] else 1] -= 1
        removed = instances.removed_by_truncation(np.array([a]), np.array([b]), limit)
        assert [a - int(removed[0][0]), b - int(removed[1][0])] == left


def _tiny_options(folder, **changes):
    return Options(
        **{
            "input_files": (str(GOLDEN / "tiny_1.txt"), str(GOLDEN / "tiny_2.txt")),
            "output_files": (str(folder / "tiny.tfrecord"),),
            "vocab_file": str(GOLDEN / "tiny_vocab_uncased.txt"),
            "max_seq_length": 47,
            "max_predictions_per_seq": 7,
            **changes,
        }
    )


@pytest.mark.parametrize("words", [False, True])
def test_default_mode_has_the_statistics_of_compatible_mode(tmp_path, words):
    """All passes together: labels, lengths, segments, numbers and places of predictions."""
    statistics = []
    for compatible in (False, True):
        options = _tiny_options(
            tmp_path / f"{compatible}",
            dupe_factor=101,
            short_seq_prob=0.2,
            do_whole_word_mask=words,
            compatible=compatible,
        )
        manifest = create_pretraining_data(options, 1, show_progress=False)
        arrays = collections.defaultdict(list)
        for example in read_examples(options.output_files[0], options.features):
            for name, values in example.items():
                arrays[name].append(values)
        arrays = {name: np.stack(values) for name, values in arrays.items()}
        weights = arrays["masked_lm_weights"] > 0
        length = arrays["input_mask"].sum(1)
        b_length = arrays["segment_ids"].sum(1)
        labels = arrays["next_sentence_labels"][:, 0]
        assert manifest["counts"]["instances"] == len(length)
        assert manifest["counts"]["random_next_fraction"] == labels.mean()
        assert manifest["counts"]["masked_tokens"] == weights.sum()
        assert manifest["counts"]["padding_fraction"] == pytest.approx(1 - length.mean() / 47)
        assert manifest["max_token_id"] == arrays["input_ids"].max()
        share = np.bincount(arrays["masked_lm_ids"][weights]) / weights.sum()
        entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
        assert manifest["unigram_entropy_nats"] == pytest.approx(entropy)
        counters = [
            collections.Counter(zip(labels.tolist(), length.tolist(), strict=True)),
            collections.Counter(zip(length.tolist(), b_length.tolist(), strict=True)),
            collections.Counter(zip(length.tolist(), weights.sum(1).tolist(), strict=True)),
            collections.Counter(arrays["masked_lm_positions"][weights].tolist()),
            collections.Counter(arrays["masked_lm_ids"][weights].tolist()),
            collections.Counter(arrays["input_ids"][arrays["input_mask"] > 0].tolist()),
        ]
        statistics.append((manifest["counts"], counters))
    (counts, ours), (counts_of_original, originals) = statistics
    for name in ("documents", "sentences", "tokens", "unknown_token_rate"):
        assert counts[name] == counts_of_original[name]
    # Tokens of one instance, and instances of one document, are not independent of each other, so
    # the z scores of the last three may be larger than a few.
    for number, (a, b) in enumerate(zip(ours, originals, strict=True)):
        assert _z_of_two_samples(a, b) < (4.5 if number < 3 else 12), number


# === Default mode: bytes ===


@pytest.fixture
def small_steps(monkeypatch):
    """Many pieces, blocks, files of pairs and chunks from little text."""
    monkeypatch.setattr(text_files, "PIECE_BYTES", 601)
    monkeypatch.setattr(units, "BLOCK_SENTENCES", 41)
    monkeypatch.setattr(units, "LOCKSTEP_DOCUMENTS", 31)
    monkeypatch.setattr(units, "SHUFFLED_PAIRS", 19)
    monkeypatch.setattr(units, "CHUNK_INSTANCES", 29)
    monkeypatch.setattr(units, "BATCH_TOKENS", 47 * 13)


def _bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _records_of(folder):
    return {name: data for name, data in _bytes(folder).items() if not name.endswith(".json")}


@pytest.mark.parametrize("changes", [{}, {"dynamic_masking": True}], ids=["masked", "unmasked"])
def test_tensorflow_parses_the_records(tmp_path, changes):
    import tensorflow as tf

    options = _tiny_options(tmp_path, **changes)
    manifest = create_pretraining_data(options, 1, show_progress=False)
    (batch,) = tf.data.TFRecordDataset(options.output_files[0]).batch(10_007)
    parsed = parse_example_fn(options.features)(batch)
    assert parsed["input_ids"].shape == (manifest["counts"]["instances"], 47)
    assert set(parsed) == {feature.name for feature in options.features}
    ids, mask = parsed["input_ids"].numpy(), parsed["input_mask"].numpy()
    segments = parsed["segment_ids"].numpy()
    vocab = load_vocab(options.vocab_file)
    assert (ids[:, 0] == vocab["[CLS]"]).all() and (np.diff(mask, axis=1) <= 0).all()
    last = mask.sum(1) - 1
    rows = np.arange(len(ids))
    assert (ids[rows, last] == vocab["[SEP]"]).all() and (segments[rows, last] == 1).all()
    middle = (mask - segments).sum(1) - 1
    assert (ids[rows, middle] == vocab["[SEP]"]).all() and (segments[rows, middle] == 0).all()
    assert not ids[mask == 0].any() and not segments[mask == 0].any()
    if changes:
        assert manifest["kind"] == "pretraining_unmasked"
        assert manifest["unigram_entropy_nats"] is None
        assert (ids == vocab["[MASK]"]).sum() == 0
        assert ((ids == vocab["[SEP]"]).sum(1) == 2).all()


def test_unmasked_pairs_are_those_of_the_masked_records(tmp_path):
    """The same pairs in the same order, so that only the masks differ."""
    made = []
    for dynamic in (False, True):
        options = _tiny_options(tmp_path / f"{dynamic}", dynamic_masking=dynamic, dupe_factor=3)
        create_pretraining_data(options, 1, show_progress=False)
        made.append(list(read_examples(options.output_files[0], options.features)))
    assert len(made[0]) == len(made[1])
    for masked, unmasked in zip(*made, strict=True):
        count = int(masked["masked_lm_weights"].sum())
        restored = masked["input_ids"].copy()
        restored[masked["masked_lm_positions"][:count]] = masked["masked_lm_ids"][:count]
        assert restored.tolist() == unmasked["input_ids"].tolist()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path, suffix):
    """Real processes, on text that makes several pieces, blocks and chunks."""
    text = tmp_path / "text.txt"
    text.write_bytes((GOLDEN / "tiny_1.txt").read_bytes() * 1201)
    made = []
    for num_workers in (1, 2, 3):
        folder = tmp_path / f"{num_workers}"
        options = _tiny_options(
            folder,
            input_files=(str(text),),
            output_files=tuple(str(folder / f"{i}.tfrecord{suffix}") for i in range(2)),
            dupe_factor=1,
        )
        create_pretraining_data(options, num_workers, show_progress=False)
        made.append(_records_of(folder))
    assert len(made[0]) == 2 and made[0] == made[1] == made[2]
    assert len(set(made[0].values())) == 2


def test_instances_are_spread_evenly_over_shards(tmp_path, small_steps):
    names = shard_names(str(tmp_path / "a.tfrecord"), 7)
    assert names[3] == str(tmp_path / "a-00003-of-00007.tfrecord")
    options = _tiny_options(tmp_path, output_files=names)
    manifest = create_pretraining_data(options, 1, show_progress=False)
    counts = [scan_records(name) for name in names]
    assert sum(counts) == manifest["counts"]["instances"] and max(counts) - min(counts) <= 1
    assert manifest["files"] == [f"a-{i:05d}-of-00007.tfrecord" for i in range(7)]
    assert json.loads((tmp_path / "a.manifest.json").read_text()) == manifest
    # Each part is a sample of the whole corpus, not a part of it.
    for name in names:
        labels = [
            int(example["next_sentence_labels"][0])
            for example in read_examples(name, options.features)
        ]
        assert 0.3 < np.mean(labels) < 0.9


def test_every_pair_is_dealt_out_once(tmp_path, small_steps, monkeypatch):
    """The same pairs come out, whatever the chunks and files; only their order differs."""
    made = []
    for number, (chunk, files) in enumerate(((10_007, 1), (67, 1), (5, 3))):
        monkeypatch.setattr(units, "CHUNK_INSTANCES", chunk)
        names = tuple(str(tmp_path / f"{number}-{i}") for i in range(files))
        options = _tiny_options(tmp_path, output_files=names, dynamic_masking=True, dupe_factor=3)
        create_pretraining_data(options, 1, show_progress=False)
        made.append([record for name in names for record in read_records(name)])
    assert sorted(made[0]) == sorted(made[1]) == sorted(made[2])
    assert made[0] != made[1] != made[2] and len(made[0]) > 80


@pytest.mark.parametrize("chunk", [67, 10_007])
def test_records_are_shuffled(tmp_path, small_steps, monkeypatch, chunk):
    """Documents of one letter each: the letters must not come in order."""
    monkeypatch.setattr(units, "CHUNK_INSTANCES", chunk)
    text = tmp_path / "text.txt"
    letters = "abcdefghijklmnopqrstuvwxyz"
    text.write_text("\n\n".join("\n".join([" ".join(c * 9)] * 53) for c in letters) + "\n")
    options = _tiny_options(tmp_path, input_files=(str(text),), dupe_factor=1, dynamic_masking=True)
    create_pretraining_data(options, 1, show_progress=False)
    first = np.array(
        [
            example["input_ids"][1]
            for example in read_examples(options.output_files[0], options.features)
        ]
    )
    assert len(set(first)) == 26 and len(first) > 300
    order = np.arange(len(first))
    for period in (1, 2, 3):  # also no order that repeats itself
        correlation = np.corrcoef(order % (len(first) / period), first)[0, 1]
        assert abs(correlation) < 4 / np.sqrt(len(first))
    neighbours = np.corrcoef(first[1:], first[:-1])[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(len(first))


class _Stop(BaseException):
    """A kill at one moment."""


@pytest.mark.parametrize("call", ["replace", "unlink"])
def test_a_run_stopped_at_any_step_is_continued(tmp_path, small_steps, monkeypatch, call):
    """Stop before and after every renaming and every removal of a file."""
    outputs = 3

    def options(folder):
        files = tuple(str(folder / f"{i}.tfrecord") for i in range(outputs))
        return _tiny_options(folder, output_files=files, dupe_factor=1, max_seq_length=23)

    create_pretraining_data(options(tmp_path / "whole"), 1, show_progress=False)
    whole = _records_of(tmp_path / "whole")
    assert len(whole) == outputs
    original = getattr(os, call)
    total = 0

    def counting(*arguments, **keywords):
        nonlocal total
        total += 1
        if total == stop_at and not after:
            raise _Stop
        original(*arguments, **keywords)
        if total == stop_at and after:
            raise _Stop

    monkeypatch.setattr(os, call, counting)
    for after in (False, True):
        stop_at, stopped = 1, True
        while stopped:
            folder = tmp_path / f"{stop_at}-{after}"
            total, stopped = 0, False
            try:
                create_pretraining_data(options(folder), 1, show_progress=False)
            except _Stop:
                stopped = True
            first_run = total
            stop_now, stop_at = stop_at, -1
            create_pretraining_data(options(folder), 1, show_progress=False)
            assert _records_of(folder) == whole, (call, stop_now, after)
            assert not list(folder.glob("*.work-*"))
            shutil.rmtree(folder)
            stop_at = stop_now + 1
        assert first_run > 10


def test_a_run_stopped_while_a_chunk_is_appended_is_continued(tmp_path, small_steps, monkeypatch):
    create_pretraining_data(_tiny_options(tmp_path / "whole"), 1, show_progress=False)

    def half(source, target, _):
        data = source.read()
        target.write(data[: len(data) // 2])
        target.flush()
        raise _Stop

    options = _tiny_options(tmp_path / "stopped")
    with monkeypatch.context() as patch, pytest.raises(_Stop):
        patch.setattr(shutil, "copyfileobj", half)
        create_pretraining_data(options, 1, show_progress=False)
    create_pretraining_data(options, 1, show_progress=False)
    assert _records_of(tmp_path / "stopped") == _records_of(tmp_path / "whole")


@pytest.fixture(scope="module")
def killed_text(tmp_path_factory):
    """Text for some seconds of work, the flags of a run on it, and the records of a whole run."""
    folder = tmp_path_factory.mktemp("killed")
    text = folder / "text.txt"
    text.write_bytes((GOLDEN / "tiny_1.txt").read_bytes() * 901)
    arguments = [
        f"--input_file={text}",
        f"--vocab_file={GOLDEN / 'tiny_vocab_uncased.txt'}",
        "--num_workers=2",
        "--dupe_factor=2",
    ]
    options, _ = _options([*arguments, f"--output_file={folder / 'x.tfrecord'}"])
    create_pretraining_data(options, 1, show_progress=False)
    return arguments, (folder / "x.tfrecord").read_bytes()


@pytest.mark.parametrize("stage", ["piece-*.npz", "block-*.json", "chunk-*.npz", "output-*"])
def test_a_killed_process_is_continued(tmp_path, killed_text, stage):
    arguments, whole = killed_text
    command = [
        sys.executable,
        "data_prep/create_pretraining_data.py",
        f"--output_file={tmp_path}/x.tfrecord",
        *arguments,
    ]
    root = pathlib.Path(__file__).parents[2]
    process = subprocess.Popen(command, cwd=root)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob(f"x.work-*/{stage}")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "x.tfrecord").exists()
    subprocess.run(command, cwd=root, check=True)
    assert (tmp_path / "x.tfrecord").read_bytes() == whole
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["x.manifest.json", "x.tfrecord"]


def test_work_on_other_input_is_not_continued(tmp_path, small_steps, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_bytes((GOLDEN / "tiny_1.txt").read_bytes())
    options = _tiny_options(tmp_path / "a", input_files=(str(text),), dupe_factor=2)
    original = local_runner._plan

    def stop(*_):
        raise _Stop

    monkeypatch.setattr(local_runner, "_plan", stop)
    with pytest.raises(_Stop):
        create_pretraining_data(options, 1, show_progress=False)
    monkeypatch.setattr(local_runner, "_plan", original)
    assert len(list((tmp_path / "a").glob("tiny.work-*"))) == 1
    text.write_bytes((GOLDEN / "tiny_2.txt").read_bytes())
    create_pretraining_data(options, 1, show_progress=False)
    fresh = dataclasses.replace(options, output_files=(str(tmp_path / "b" / "tiny.tfrecord"),))
    create_pretraining_data(fresh, 1, show_progress=False)
    assert _records_of(tmp_path / "a") == _records_of(tmp_path / "b")
    assert not list(tmp_path.glob("*/*.work-*"))


def test_seeds_and_flags_change_the_records(tmp_path):
    made = set()
    for number, changes in enumerate(
        ({}, {"random_seed": -1}, {"random_seed": 0}, {"dupe_factor": 9}, {"mask_prob": 0.7})
    ):
        if "mask_prob" in changes:
            changes["keep_prob"] = 0.2
        folder = tmp_path / f"{number}"
        create_pretraining_data(_tiny_options(folder, **changes), 1, show_progress=False)
        made.update(_records_of(folder).values())
    assert len(made) == 5


def test_large_counts_are_dealt_out_without_bias():
    rng = np.random.default_rng(7)
    left = np.array([400_000_000, 600_000_000, 0, 11])
    share = _deal(rng, left, 100_003)
    assert share.sum() == 100_003 and share[2] == 0 and (share <= left).all()
    assert abs(share[0] - 40_000) < 800
    small = _deal(rng, np.array([5, 0, 7]), 12)
    assert small.tolist() == [5, 0, 7]


# === Text ===


TEXTS = [
    b"",
    b"\n",
    b"one\ntwo\n\nthree",
    b"\n\n\none\r\n\r\ntwo\rand\n\n\n",
    "\u3000\nä\n\u200b\nöü\n\n\ufeffx".encode(),
    b"a" * 97 + b"\n" + b"b" * 31 + b"\n\n",
]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_hold_every_line_once(tmp_path, text, compressed):
    path = tmp_path / ("x.txt.gz" if compressed else "x.txt")
    path.write_bytes(gzip.compress(text) if compressed else text)
    expected = text.decode().replace("\r", "").split("\n")
    if not expected[-1]:
        expected.pop()
    for piece_bytes in range(1, 40):
        pieces = list(text_files.text_pieces([str(path)], piece_bytes))
        lines = [line for piece in pieces for line in text_files.piece_lines(piece)[0]]
        assert lines == expected
        assert sum(piece.file_bytes for piece in pieces) == (path.stat().st_size if text else 0)


@pytest.mark.parametrize("piece_bytes", [1, 7, 1 << 20])
@pytest.mark.parametrize("texts", list(itertools.permutations(TEXTS[1:], 2)))
def test_documents_are_those_of_the_original(tmp_path, texts, piece_bytes):
    """Against the original's rule, line by line; a file continues the last one's document."""
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "a", "##a"]))
    tokenizer = FullTokenizer(vocab)
    documents, paths = [[]], []
    for number, text in enumerate(texts):
        paths.append(str(tmp_path / f"{number}.txt"))
        pathlib.Path(paths[-1]).write_bytes(text)
        lines = text.decode().replace("\r", "").split("\n")
        for line in lines[:-1] if not lines[-1] else lines:
            line = line.strip()
            if not line:
                documents.append([])
            ids = tokenizer.encode(line)
            if ids:
                documents[-1].append(ids)
    documents = [document for document in documents if document]
    with token_store.StoreWriter(str(tmp_path)) as writer:
        for piece in text_files.text_pieces(paths, piece_bytes):
            writer.append(token_store.tokenize_piece(piece, tokenizer, False))
    store = token_store.TokenStore(str(tmp_path))
    stored = [
        [
            store.tokens[store.sentence_offsets[s] : store.sentence_offsets[s + 1]].tolist()
            for s in range(*store.document_offsets[d : d + 2])
        ]
        for d in range(store.counts["documents"])
    ]
    assert stored == documents
    assert store.counts["tokens"] == sum(len(s) for d in documents for s in d)
    assert store.counts["sentences"] == sum(map(len, documents))


# === Bad input ===


def _run_main(arguments):
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "data_prep/create_pretraining_data.py", *map(str, arguments)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def _refuse(tmp_path, message, text=b"one two\nthree\n\nfour\n", name="text.txt", **changes):
    path = tmp_path / name
    path.write_bytes(text)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        options = _tiny_options(tmp_path / "out", **{"input_files": (str(path),), **changes})
        create_pretraining_data(options, 1, show_progress=False)
    assert "\n" not in str(caught.value)
    left = list((tmp_path / "out").glob("*")) if (tmp_path / "out").is_dir() else []
    assert not left


@pytest.mark.parametrize("compatible", [False, True])
class TestBadText:
    def test_without_documents(self, tmp_path, compatible):
        message = "text.txt: no documents: no line has any text"
        _refuse(tmp_path, message, b"\n \n\xe2\x80\x8b\n", compatible=compatible)
        _refuse(tmp_path, message, b"", compatible=compatible)

    def test_of_other_encoding(self, tmp_path, compatible, monkeypatch):
        monkeypatch.setattr(text_files, "PIECE_BYTES", 5)
        text = b"one\n\ntwo\nthr\xe9e\nfour\n"
        message = r"text.txt, line 4: not UTF-8: .* \(byte 0xe9\)"
        _refuse(tmp_path, message, text, compatible=compatible)
        message = r"text.txt.gz, line 4: not UTF-8"
        _refuse(tmp_path, message, gzip.compress(text), "text.txt.gz", compatible=compatible)

    def test_that_is_broken_gzip(self, tmp_path, compatible):
        data = gzip.compress(bytes(range(97, 123)) * 1009)
        for broken in (data[:-20], b"plain text\n", data[:20] + b"\xff" + data[21:]):
            message = "x.gz: broken gzip file"
            _refuse(tmp_path, message, broken, "x.gz", compatible=compatible)


def test_cased_text_with_an_uncased_vocabulary(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(text_files, "PIECE_BYTES", 3)
    message = r"text.txt, line 3: cased text \('A b'\.\.\.\), .*uncased.txt has no upper-case"
    _refuse(tmp_path, message, b"one\ntwo\n A b\n", do_lower_case=False)
    monkeypatch.undo()
    options = _tiny_options(tmp_path / "lower", do_lower_case=False)
    text = tmp_path / "lower.txt"
    text.write_bytes(b"one\ntwo\n\nthree\nfour\n")
    options = dataclasses.replace(options, input_files=(str(text),))
    create_pretraining_data(options, 1, show_progress=False)
    assert "upper-case" not in capsys.readouterr().err
    options = _tiny_options(tmp_path / "same", do_lower_case=False, compatible=True)
    create_pretraining_data(options, 1, show_progress=False)  # as the original: [UNK] for each
    err = capsys.readouterr().err
    assert "every word with a capital becomes [UNK]" in err
    options = _tiny_options(tmp_path / "cased", vocab_file=str(GOLDEN / "tiny_vocab_cased.txt"))
    create_pretraining_data(options, 1, show_progress=False)
    assert "cased models need --do_lower_case=False" in capsys.readouterr().err


def test_vocabulary_without_special_tokens(tmp_path):
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("[PAD]\n[UNK]\n[CLS]\none\n")
    _refuse(tmp_path, r"vocab.txt has no \[SEP\] \[MASK\]", vocab_file=str(vocab))
    _refuse(tmp_path, "no such file: .*missing.txt", vocab_file=str(tmp_path / "missing.txt"))


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    blocked = str(tmp_path / "file" / "x.tfrecord")
    with pytest.raises(ValueError, match="output_file: cannot write to .*file/x.tfrecord: "):
        create_pretraining_data(_tiny_options(tmp_path, output_files=(blocked,)), 1, False)
    (tmp_path / "folder").mkdir()
    folder = str(tmp_path / "folder")
    with pytest.raises(ValueError, match="folder is a folder, expected a file's name"):
        create_pretraining_data(_tiny_options(tmp_path, output_files=(folder,)), 1, False)
    text = str(GOLDEN / "tiny_1.txt")
    with pytest.raises(ValueError, match="tiny_1.txt is also an input file"):
        _tiny_options(tmp_path, output_files=(text,))
    with pytest.raises(ValueError, match="output_file: names must differ"):
        _tiny_options(tmp_path, output_files=("a", "./a"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_seq_length": 4}, "max_seq_length must be at least 5 .*, got 4"),
        ({"max_predictions_per_seq": 0}, "max_predictions_per_seq must be at least 1, got 0"),
        ({"masked_lm_prob": 0.0}, r"masked_lm_prob must be within \(0, 1\], got 0.0"),
        ({"short_seq_prob": 1.5}, r"short_seq_prob must be within \[0, 1\], got 1.5"),
        ({"dupe_factor": 0}, "dupe_factor must be at least 1, got 0"),
        ({"mask_prob": 0.9}, "fractions that sum to 1, got 0.9, 0.1, 0.1"),
        ({"keep_prob": -0.1, "random_prob": 0.3}, "fractions that sum to 1"),
        ({"compatible": True, "dynamic_masking": True}, "the original has no dynamic_masking"),
    ],
)
def test_flags_out_of_range(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        _tiny_options(tmp_path, **changes)


def test_warnings_about_the_corpus_and_flags(tmp_path, capsys):
    text = tmp_path / "text.txt"

    def warned(data, **changes):
        text.write_bytes(data)
        options = _tiny_options(tmp_path, **{"input_files": (str(text),), **changes})
        create_pretraining_data(options, 1, show_progress=False)
        return capsys.readouterr().err

    good = b"a b c.\nd e f.\n\nthe a\nof to\n"
    assert warned(good) == ""
    assert "text.txt: one document only" in warned(good.replace(b"\n\n", b"\n"))
    assert "1.00 lines per document on average" in warned(b"a b\n\nc d\n\ne f\n")
    assert "of tokens are [UNK]; check that" in warned("жжж ж\nжж\n\nжжж\nж\n".encode())
    assert "cuts off predictions: max_seq_length * masked_lm_prob is 20.21" in warned(
        good, masked_lm_prob=0.43
    )
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("a\nb\n[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nc\n" + "\n".join("defghoft."))
    assert "[PAD] is not the first line" in warned(good, vocab_file=str(vocab))
    shards = tuple(str(tmp_path / f"{i}") for i in range(97))
    assert "97 output files: some files will have no record" in warned(good, output_files=shards)
    assert scan_records(shards[0]) == 1 and scan_records(shards[-1]) == 0


def test_two_runs_on_one_output_do_not_mix(tmp_path):
    options = _tiny_options(tmp_path)
    with work_folder(options):
        with pytest.raises(RuntimeError, match="another run is making the same output"):
            create_pretraining_data(options, 1, show_progress=False)


def test_the_lock_of_a_killed_process_blocks_nobody(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from data_prep.processes.folder_lock import lock_folder\n"
        "lock = lock_folder(sys.argv[1])\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = pathlib.Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root)
    assert killed.returncode == -signal.SIGKILL and (tmp_path / "lock").exists()
    lock = lock_folder(tmp_path)
    assert lock is not None and lock_folder(tmp_path) is None
    with lock:
        pass
    assert lock_folder(tmp_path) is not None


def test_script_ends_bad_input_with_one_line(tmp_path):
    vocab = f"--vocab_file={GOLDEN / 'tiny_vocab_uncased.txt'}"
    result = _run_main([vocab, f"--input_file={tmp_path}/*.txt", f"--output_file={tmp_path}/x"])
    assert result.returncode == 1 and "Traceback" not in result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line == f"create_pretraining_data: input_file: no file matches '{tmp_path}/*.txt'"
    (tmp_path / "a.txt").write_bytes(b"fine\n\nbad \xff\n")
    result = _run_main(
        [vocab, f"--input_file={tmp_path}/*.txt", f"--output_file={tmp_path}/x", "--num_workers=2"]
    )
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"create_pretraining_data: {tmp_path}/a.txt, line 3: not UTF-8")
    assert sorted(os.listdir(tmp_path)) == ["a.txt"]


def test_script_reports_progress_and_what_it_made(tmp_path):
    result = _run_main(
        [
            f"--vocab_file={GOLDEN / 'tiny_vocab_uncased.txt'}",
            f"--input_file={GOLDEN}/tiny_*[0-9].txt",
            f"--output_file={tmp_path}/x.tfrecord",
            "--num_shards=3",
            "--gzip",
            "--dynamic_masking",
            "--num_workers=1",
        ]
    )
    assert result.returncode == 0, result.stderr
    steps = [line for line in result.stderr.splitlines() if "/3 " in line]
    assert [line[:3] for line in steps] == ["1/3", "2/3", "3/3"] and "record/s]" in steps[-1]
    assert "first record (" in result.stdout and " next): [CLS] " in result.stdout
    assert "8 documents" in result.stdout and "x-00002-of-00003.tfrecord.gz" in result.stdout
    manifest = json.loads((tmp_path / "x.manifest.json").read_text())
    assert manifest["kind"] == "pretraining_unmasked" and manifest["flags"]["dupe_factor"] == 1
    assert len(manifest["files"]) == 3


def test_first_example_shows_what_was_masked(tmp_path):
    options = _tiny_options(tmp_path, keep_prob=0.0, random_prob=0.0, mask_prob=1.0)
    create_pretraining_data(options, 1, show_progress=False)
    shown = first_example(options).split(": ", 1)[1].split()
    assert shown[0] == "[CLS]" and shown[-1] == "[SEP]" and shown.count("[SEP]") == 2
    masked = [piece for piece in shown if piece.startswith("[MASK]")]
    assert masked and all(piece.endswith(">") for piece in masked)
    assert not any(piece.endswith(">") for piece in shown if not piece.startswith("[MASK]"))


def test_flags_have_the_defaults_of_the_original(tmp_path):
    options, values = _options(
        [
            f"--input_file={GOLDEN / 'tiny_1.txt'}",
            "--output_file=x.tfrecord",
            f"--vocab_file={GOLDEN / 'tiny_vocab_uncased.txt'}",
        ]
    )
    defaults = {
        "do_lower_case": True,
        "do_whole_word_mask": False,
        "max_seq_length": 128,
        "max_predictions_per_seq": 20,
        "random_seed": 12345,
        "dupe_factor": 10,
        "masked_lm_prob": 0.15,
        "short_seq_prob": 0.1,
    }
    assert {name: getattr(options, name) for name in defaults} == defaults
    assert set(defaults) <= set(values)


_MEMORY_SCRIPT = """
import resource, sys
import numpy as np
from bert_tf.files import read_json, write_json
from data_prep.pretraining import local_runner, options as settings, token_store, work_folder
work, vocab = sys.argv[1:]
rng = np.random.default_rng(0)
piece = token_store.TokenizedPiece(
    rng.integers(1000, 30000, 20_000_000).astype(np.uint16),
    np.full(1_000_000, 20, np.uint32), np.arange(0, 1_000_000, 25, dtype=np.uint32), 0)
with token_store.StoreWriter(work) as writer:
    for _ in range(40):
        writer.append(piece)
del piece
options = settings.Options((vocab,), (work + "/out",), vocab, dupe_factor=5)
worker = local_runner._Worker(options, work)
for block in range(3):
    worker.draw_pairs(block, block * 500_000, block * 500_000 + 20_000)
files = [(f"pairs-{b:06d}-0000", read_json(work_folder.block_path(work, b))[0])
         for b in range(3)]
write_json(work_folder.blocks_path(work), files)
for chunk in range(2):
    (chunks,) = local_runner._plan(options, work)
    worker.write_chunk(chunk, False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_a_store_too_large_to_map_gives_the_same_records(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        units,
        "LOCKSTEP_DOCUMENTS_OF_LARGE",
        units.LOCKSTEP_DOCUMENTS,
    )
    for limit in (token_store.MAX_RESIDENT_BYTES, 0):
        monkeypatch.setattr(token_store, "MAX_RESIDENT_BYTES", limit)
        create_pretraining_data(_tiny_options(tmp_path / f"{limit}"), 1, show_progress=False)
        made.append(_records_of(tmp_path / f"{limit}"))
    assert made[0] == made[1]


@pytest.mark.slow
def test_memory_stays_below_a_gigabyte(tmp_path, shared_data):
    """The store is 1.9 GB; pairs and records come from all over it."""
    vocab = shared_data / "vocab" / "bert-base-uncased-vocab.txt"
    result = subprocess.run(
        [sys.executable, "-c", _MEMORY_SCRIPT, str(tmp_path), str(vocab)],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 1.8 * 2**30
    assert int(result.stdout) < 2**30


def test_names_of_outputs_are_files_without_the_spaces_around_them(tmp_path):
    """A folder was refused once all the work was done."""
    text, vocab = tmp_path / "t.txt", tmp_path / "v.txt"
    text.write_text("a b.\n")
    vocab.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    common = [f"--input_file={text}", f"--vocab_file={vocab}"]
    values = flags.FlagValues()
    define_flags(values)
    values(["create", *common, "--output_file=a, b"])
    assert options_from_flags(values)[1].output_files == ("a", "b")
    values(["create", *common, "--output_file=new/"])
    with pytest.raises(ValueError, match="output_file: expected names of files, got 'new/'"):
        options_from_flags(values)


# === Text that is lost ===


@pytest.mark.parametrize("compatible", [False, True])
def test_characters_that_unknown_pieces_stand_for_are_counted(tmp_path, capsys, compatible):
    """Thai of 260 characters without a space is a single piece; a letter, too, counts as one."""
    thai = "".join(LANGUAGES["th"].sentences)
    line = (thai * 3)[:260]
    text = tmp_path / "text.txt"
    text.write_text(f"{line} the of\nthe to ж a\n\n{line}\nthe жж.\n", encoding="utf-8")
    options = _tiny_options(tmp_path, input_files=(str(text),), compatible=compatible)
    counts = create_pretraining_data(options, 1, show_progress=False)["counts"]
    characters = 2 * 260 + len("theofthetoжatheжж.")
    assert counts["characters"] == characters
    assert counts["long_word_character_rate"] == 520 / characters
    assert counts["unknown_character_rate"] == 523 / characters
    warned = capsys.readouterr().err
    assert f"{520 / characters:.1%} of the characters stand in runs of more than 200" in warned
    assert "--max_sentence_characters=200" in warned
    assert f"[UNK] stands for {523 / characters:.1%} of the characters" in warned


@pytest.mark.parametrize("samples", [1 << 18, 97])
@pytest.mark.parametrize("compatible", [False, True])
@pytest.mark.parametrize("words_per_line", [7, 61])
def test_tokens_that_no_record_holds_are_counted(
    tmp_path, monkeypatch, capsys, samples, compatible, words_per_line
):
    """Every word of the text is another one, so that the records' ids tell which they hold."""
    monkeypatch.setattr(manifest, "HELD_SAMPLES", samples)
    words = [f"w{number}" for number in range(61 * 7 * 3)]
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    lines = [words[i : i + words_per_line] for i in range(0, len(words), words_per_line)]
    text = tmp_path / "text.txt"
    text.write_text("".join(" ".join(line) + "\n" * (1 + i % 2) for i, line in enumerate(lines)))
    options = _tiny_options(
        tmp_path,
        input_files=(str(text),),
        vocab_file=str(vocab),
        compatible=compatible,
        max_seq_length=29,
        dupe_factor=1,
        mask_prob=0.0,
        random_prob=0.0,
        keep_prob=1.0,
    )
    unused = create_pretraining_data(options, 1, False)["counts"]["unused_token_rate"]
    held = {
        int(i)
        for path in options.output_files
        for example in read_examples(path, options.features)
        for i in example["input_ids"]
    }
    looked_for = range(5, 5 + len(words), -(-len(words) // samples))
    assert unused == pytest.approx(1 - sum(i in held for i in looked_for) / len(looked_for))
    assert unused > 0.4 if words_per_line == 61 else unused < 0.25
    warned = "tokens are in no record: what exceeds max_seq_length 29" in capsys.readouterr().err
    assert warned == (unused > 0.15)


def test_the_highest_id_may_be_that_of_a_label_alone(tmp_path):
    """It is masked wherever it occurs, so no sequence holds it; padding does not count."""
    arrays = {
        "input_ids": np.array([[2, 4, 5, 3], [2, 4, 6, 3]]),
        "next_sentence_labels": np.array([[0], [1]]),
        "masked_lm_ids": np.array([[96, 0], [7, 99]]),
        "masked_lm_weights": np.array([[1.0, 0.0], [1.0, 0.0]], np.float32),
    }
    statistics, other = manifest.Statistics(), manifest.Statistics()
    statistics.add(arrays, np.array([4, 4]))
    assert statistics.max_token_id == 96
    other.merge(statistics)
    other.save(str(tmp_path / "x.npz"))
    assert (
        manifest.Statistics.load(str(tmp_path / "x.npz")).max_token_id == other.max_token_id == 96
    )
    # Without masks there are no labels.
    unmasked = manifest.Statistics()
    unmasked.add({name: arrays[name] for name in list(arrays)[:2]}, np.array([4, 4]))
    assert unmasked.max_token_id == 6


def test_accents_can_be_kept_in_lower_case(tmp_path, capsys):
    vocab, text = tmp_path / "vocab.txt", tmp_path / "text.txt"
    vocab.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nżół\nzoł\nid\n")
    text.write_text("Żół id\nId żół\n\nŻÓŁ\nid\n", encoding="utf-8")
    made = {}
    for strip_accents in (None, True, False):
        options = _tiny_options(
            tmp_path,
            input_files=(str(text),),
            vocab_file=str(vocab),
            strip_accents=strip_accents,
            masked_lm_prob=0.01,
            mask_prob=0.0,
            random_prob=0.0,
            keep_prob=1.0,
        )
        made[strip_accents] = create_pretraining_data(options, 1, False)
        ids = {
            int(i)
            for path in options.output_files
            for example in read_examples(path, options.features)
            for i in example["input_ids"]
        }
        assert ids == {0, 2, 3, 7, 6 if strip_accents is not False else 5}
        warned = "has pieces with accents" in capsys.readouterr().err
        assert warned == (strip_accents is not False)
        for described in (made[strip_accents], made[strip_accents]["flags"]):
            assert described.get("strip_accents") is strip_accents
            assert ("strip_accents" in described) == (strip_accents is not None)


# === The command ===


def _command(**changes):
    """Return what is read from flags, and the flags."""
    values = flags.FlagValues()
    define_flags(values)
    given = {"input_file": GOLDEN / "tiny_1.txt", "output_file": "a", "vocab_file": "v", **changes}
    values(["create", *(f"--{name}={value}" for name, value in given.items())])
    return options_from_flags(values)


def test_names_and_numbers_of_files():
    with pytest.raises(ValueError, match="num_shards: give one --output_file with it, or list"):
        _command(output_file="a,b", num_shards=2)
    assert _command(num_shards=2)[1].output_files == ("a-00000-of-00002", "a-00001-of-00002")
    assert shard_names("a.tfrecord", 1) == ("a.tfrecord",)
    for name in ("input_files", "output_files"):
        with pytest.raises(ValueError, match=f"{name}: expected at least one file"):
            _tiny_options(pathlib.Path(), **{name: ()})
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        create_pretraining_data(_tiny_options(pathlib.Path()), 0, False)


@pytest.mark.parametrize(
    ("runner", "module", "extra"),
    [("spark", "spark_runner", "spark"), ("FlinkRunner", "beam_runner", "beam")],
)
def test_a_cluster_is_told_what_the_flags_say(monkeypatch, capsys, runner, module, extra):
    command, options = _command(runner=runner, num_workers=3)
    name = f"data_prep.pretraining.{module}"
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, name, None)
        patched.delattr(f"data_prep.pretraining.{module}", raising=False)
        with pytest.raises(ValueError, match=rf"runner: {runner} needs .*'bert-tf\[{extra}\]'"):
            run._create(command, options, [])
    given = []
    stand_in = types.SimpleNamespace(create_pretraining_data=lambda *x: given.append(x) or {})
    monkeypatch.setitem(sys.modules, name, stand_in)
    monkeypatch.setattr("data_prep.pretraining." + module, stand_in, raising=False)
    level = logging.getLogger("apache_beam").level
    assert run._create(command, options, ["--x=y"]) == {}
    where = (command.spark_master, 3) if runner == "spark" else (runner, 3)
    assert given == [(options, *where, ["--x=y"])]
    assert logging.getLogger("apache_beam").level == level  # a cluster's notes tell where to look


def test_what_is_told_of_records_elsewhere_and_of_none(tmp_path, monkeypatch, capsys):
    options = _tiny_options(tmp_path)
    pathlib.Path(options.output_files[0]).write_bytes(b"")
    assert first_example(options) == ""
    counts = dict.fromkeys(("instances", "documents", "sentences", "tokens"), 1234)
    counts |= dict.fromkeys(("random_next_fraction", "unknown_token_rate"), 0.125)
    made = {"counts": {**counts, "padding_fraction": 0.5}, "file_bytes": [5678]}
    remote = _tiny_options(tmp_path, output_files=("memory://b/x",))
    for runner, told in (("spark", remote), ("local", options)):
        values = types.SimpleNamespace(FLAGS=types.SimpleNamespace(runner=runner))
        monkeypatch.setattr(run, "flags", values)
        run._report(told, made)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "1,234 instances from 1,234 documents, 1,234 sentences, 1,234 tokens"
        assert lines[1] == "random next 12.5%, unknown tokens 12.50%, padding 50.0%"
        # A record of a file that workers wrote elsewhere is not fetched to be shown.
        assert lines[2:] == [
            *[""] * (told is options),
            f"wrote {told.output_files[0]} (5,678 bytes)",
        ]


def test_counts_of_an_earlier_version_stay_without_what_it_did_not_count():
    statistics = manifest.Statistics()
    statistics._add_labels(np.array([0, 3, 0, 2]))
    statistics.held = None
    buffer = io.BytesIO()
    statistics.write(buffer)
    loaded = manifest.Statistics.load(io.BytesIO(buffer.getvalue()))
    assert loaded.held is None and loaded.unused_token_rate() is None
    assert loaded.labels.tolist() == [0, 3, 0, 2]
