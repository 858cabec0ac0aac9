"""Tests of the record schema: bytes against protobuf and TensorFlow, and damaged files."""

import concurrent.futures
import gc
import gzip
import os

import numpy as np
import pytest

from bert_tf.records import encoding
from bert_tf.records.decoding import decode_example, parse_example_fn, read_examples
from bert_tf.records.encoding import encode_examples, encode_framed_examples, frame_record
from bert_tf.records.files import (
    RecordFile,
    RecordWriter,
    compression_of,
    gzip_stream,
    manifest_path,
    read_records,
    scan_records,
)
from bert_tf.records.schema import (
    FeatureSpec,
    classification_features,
    multi_label_features,
    multiple_choice_features,
    pretraining_features,
    regression_features,
    span_features,
    token_classification_features,
    unmasked_pretraining_features,
)

FEATURES = (
    FeatureSpec("b", "int64", 7),
    FeatureSpec("a", "float32", 3),
    FeatureSpec("wide", "int64", 331),
    FeatureSpec("one", "int64", 1),
)


def _arrays(rows, rng):
    return {
        "b": rng.integers(-(2**63), 2**63 - 1, (rows, 7)),
        "a": rng.normal(size=(rows, 3)).astype(np.float32),
        "wide": (2 ** rng.uniform(0, 63, (rows, 331))).astype(np.int64),
        "one": rng.integers(0, 2, (rows, 1)).astype(bool),
    }


@pytest.mark.parametrize("seed", range(3))
def test_bytes_are_those_of_protobuf(seed):
    import tensorflow as tf

    arrays = _arrays(11, np.random.default_rng(seed))
    encoded = encode_examples(FEATURES, arrays)
    assert len(encoded) == 11
    for row, data in enumerate(encoded):
        feature = {
            name: tf.train.Feature(float_list=tf.train.FloatList(value=values[row]))
            if name == "a"
            else tf.train.Feature(int64_list=tf.train.Int64List(value=values[row].astype(int)))
            for name, values in arrays.items()
        }
        example = tf.train.Example(features=tf.train.Features(feature=feature))
        assert data == example.SerializeToString(deterministic=True)
        for name, values in decode_example(data, FEATURES).items():
            np.testing.assert_array_equal(values, arrays[name][row])
            assert values.dtype == (np.float32 if name == "a" else np.int64)


@pytest.mark.parametrize("bits", range(64))
def test_varints_of_every_size(bits):
    """One value on each side of every power of two, alone in its batch and beside small ones."""
    import tensorflow as tf

    feature = (FeatureSpec("x", "int64", 3),)
    top = np.uint64(1) << np.uint64(bits)
    values = np.array([[top - np.uint64(1), top, 5]], np.uint64)
    if top < 2**63:
        for dtype in (np.int64, np.uint64):
            (data,) = encode_examples(feature, {"x": values.astype(dtype)})
            parsed = tf.train.Example.FromString(data).features.feature["x"].int64_list.value
            assert list(parsed) == values[0].tolist()


@pytest.mark.parametrize("length", [1, 2, 119, 120, 121, 127, 128, 16377, 16384, 2097153])
def test_lengths_around_the_sizes_of_length_prefixes(length):
    feature = (FeatureSpec("x", "int64", length), FeatureSpec("n", "int64", 1))
    rng = np.random.default_rng(length)
    arrays = {"x": rng.integers(0, 300, (3, length)), "n": np.array([[1], [200], [70000]])}
    for row, data in enumerate(encode_examples(feature, arrays)):
        decoded = decode_example(data, feature)
        np.testing.assert_array_equal(decoded["x"], arrays["x"][row])
        assert decoded["n"].tolist() == arrays["n"][row].tolist()


@pytest.mark.parametrize("most", [2**14, 2**28 - 1, 2**35])
@pytest.mark.parametrize("length", [3, 62, 131])
def test_records_of_a_batch_are_those_of_each_alone(length, most, monkeypatch):
    """Their sizes take one byte or two, in any order, and some varints stand at ends of blocks."""
    monkeypatch.setattr(encoding, "_CACHED_VALUES", 401)
    features = (
        FeatureSpec("x", "int64", length),
        FeatureSpec("w", "float32", 2),
        FeatureSpec("z", "int64", 5),
    )
    rng = np.random.default_rng(length)
    rows = 113
    small = rng.random((rows, 1)) < 0.5  # rows of one-byte values alone
    arrays = {
        "x": np.where(small, 7, rng.integers(0, most + 1, (rows, length))),
        "w": rng.normal(size=(rows, 2)).astype(np.float32),
        "z": np.where(small, rng.integers(0, most + 1, (rows, 5)), 127),
    }
    alone = [
        encode_examples(features, {name: x[row : row + 1] for name, x in arrays.items()})[0]
        for row in range(rows)
    ]
    assert encode_examples(features, arrays) == alone
    assert encode_framed_examples(features, arrays) == b"".join(map(frame_record, alone))
    for row, record in enumerate(alone):
        decoded = decode_example(record, features)
        for name, values in decoded.items():
            np.testing.assert_array_equal(values, arrays[name][row])
    assert encoding._assigns_in_order()
    monkeypatch.setattr(encoding, "_assigns_in_order", lambda: False)
    assert encode_examples(features, arrays) == alone


@pytest.mark.parametrize("name_length", [1, 7, 127, 128, 300])
def test_every_length_at_which_a_length_takes_another_byte_is_that_of_protobuf(name_length):
    """Each of the messages around values has 128 bytes, and 16384, at some of these lengths."""
    import tensorflow as tf

    name = "x" * name_length
    for length in [*range(90, 133), *range(16_360, 16_386)]:
        features = [FeatureSpec(name, "int64", length)]
        encoded = encode_examples(features, {name: np.ones((2, length), int)})
        example = tf.train.Example()
        example.features.feature[name].int64_list.value.extend([1] * length)
        assert encoded == [example.SerializeToString(deterministic=True)] * 2
        framed = encode_framed_examples(features, {name: np.ones((2, length), int)})
        assert framed == frame_record(encoded[0]) * 2


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_tensorflow_reads_the_files(tmp_path, compression):
    import tensorflow as tf

    arrays = _arrays(13, np.random.default_rng(5))
    path = tmp_path / "x.tfrecord"
    encoded = encode_examples(FEATURES, arrays)
    with RecordWriter(path, compression) as writer:
        writer.write(encoded[0])
        writer.write_framed(encode_framed_examples(FEATURES, arrays))
        assert not path.exists()
    assert os.listdir(tmp_path) == ["x.tfrecord"]
    assert scan_records(path) == 14
    assert compression_of(path) == compression
    dataset = tf.data.TFRecordDataset(
        str(path), compression_type="GZIP" if compression else ""
    ).batch(14)
    (batch,) = dataset
    assert batch.numpy().tolist() == [encoded[0], *encoded]
    # int64 values beyond int32 are no ids; the parser is for ids.
    parsed = parse_example_fn([FEATURES[1], FEATURES[3]])(batch)
    assert parsed["one"].dtype == tf.int32 and parsed["a"].dtype == tf.float32
    np.testing.assert_array_equal(parsed["a"][1:], arrays["a"])
    np.testing.assert_array_equal(parsed["one"][1:], arrays["one"])
    examples = list(read_examples(path, FEATURES))
    np.testing.assert_array_equal([e["b"] for e in examples[1:]], arrays["b"])


def test_reader_takes_what_other_writers_write(tmp_path):
    import tensorflow as tf

    example = tf.train.Example()
    example.features.feature["x"].int64_list.value.extend([3, -1, 2**40])
    example.features.feature["other"].bytes_list.value.append(b"text")
    with tf.io.TFRecordWriter(str(tmp_path / "x")) as writer:
        writer.write(example.SerializeToString())
    (decoded,) = read_examples(tmp_path / "x", [FeatureSpec("x", "int64", 3)])
    assert decoded["x"].tolist() == [3, -1, 2**40]
    unpacked = b"\n\x0d\n\x0b\n\x01x\x12\x06\x1a\x04\x08\x07\x08\x09"  # fields 1: 7 and 1: 9
    decoded = decode_example(unpacked, [FeatureSpec("x", "int64", 2)])
    assert decoded["x"].tolist() == [7, 9]


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_bytes_do_not_depend_on_the_time(tmp_path, compression, monkeypatch):
    written = []
    for now in (1, 2_000_000):
        monkeypatch.setattr("time.time", lambda now=now: now)
        with RecordWriter(tmp_path / f"{now}", compression) as writer:
            writer.write(b"record")
        written.append((tmp_path / f"{now}").read_bytes())
    assert written[0] == written[1]


def test_writer_leaves_nothing_after_an_error(tmp_path):
    with pytest.raises(KeyError), RecordWriter(tmp_path / "x") as writer:
        writer.write(b"record")
        raise KeyError
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="compression must be None or 'gzip', got 'zip'"):
        RecordWriter(tmp_path / "x", "zip")


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_every_cut_and_every_flipped_byte_is_found(tmp_path, compression):
    path = tmp_path / "x"
    with RecordWriter(path, compression) as writer:
        for size in (0, 5, 23):
            writer.write(bytes(range(size)))
    whole = path.read_bytes()
    assert scan_records(path) == 3
    frames = [0, 16, 16 + 21, len(whole)]
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:cut])
        if compression is None and cut in frames:
            assert scan_records(path) == frames.index(cut)
            continue
        with pytest.raises(ValueError, match=r"x: record \d: (file is truncated|corrupt)"):
            scan_records(path)
    for index in range(len(whole)):
        if compression and index < 10:
            continue  # gzip's own header: some of its bytes mean nothing
        damaged = bytearray(whole)
        damaged[index] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x: record \d: (file is truncated|corrupt)"):
            scan_records(path)


@pytest.mark.parametrize("beyond", range(-13, 14))
def test_the_record_after_long_damage_is_found(tmp_path, beyond):
    """It is searched for in blocks; its header lies within one, or across the end of one."""
    block = 1 << 16
    values = [b"first", bytes(block + beyond), b"third", b"fourth"]
    framed = [frame_record(value) for value in values]
    damaged = bytearray(b"".join(framed))
    begin = len(framed[0])
    damaged[begin] ^= 0x40  # of a length
    path, told = tmp_path / "x", []
    path.write_bytes(damaged)
    assert list(read_records(path, told.append)) == [b"first", b"third", b"fourth"]
    assert len(told) == 1 and "record 1: corrupt length" in told[0]
    # The number of what comes later counts the one whose length is lost.
    damaged[len(damaged) - 6] ^= 1
    path.write_bytes(damaged)
    told.clear()
    assert list(read_records(path, told.append)) == [b"first", b"third"]
    assert "record 1: corrupt length" in told[0] and "record 3: corrupt data" in told[1]
    # Nothing is found where nothing is left.
    path.write_bytes(damaged[: begin + len(framed[1]) - 2])
    assert list(read_records(path, told.append)) == [b"first"]


@pytest.mark.parametrize("beyond", [-4, -3, 0, 7, 1 << 20])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_records_longer_than_what_is_read_at_once(tmp_path, beyond, compression):
    values = [os.urandom((1 << 20) + beyond), b"next"]
    with RecordWriter(tmp_path / "x", compression) as writer:
        for value in values:
            writer.write(value)
    assert list(read_records(tmp_path / "x")) == values


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_file_has_its_name_only_once_it_is_whole(tmp_path, monkeypatch, compression):
    """Whatever happens after the file is renamed, as a kill, nothing of it is missing."""
    path, seen = tmp_path / "x", []

    def replace(source, target):
        seen.append(list(read_records(source)))
        rename(source, target)

    rename = os.replace
    monkeypatch.setattr(os, "replace", replace)
    values = [bytes([n]) * 999 for n in range(7)]
    with RecordWriter(path, compression) as writer:
        for value in values:
            writer.write(value)
        assert not path.exists()
    assert seen == [values] and list(read_records(path)) == values
    assert os.stat(path).st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_fields_of_other_kinds_and_lists_cut_short_are_no_surprise():
    """Fixed-width fields of a later version are passed over; a number cut short is no example."""
    spec = [FeatureSpec("x", "int64", 2)]
    data = b"\n\x0d\n\x0b\n\x01x\x12\x06\x1a\x04\x08\x07\x08\x09"
    for unknown in (b"\x11" + bytes(8), b"\x15" + bytes(4)):  # fields 2 of 8 and of 4 bytes
        assert decode_example(unknown + data + unknown, spec)["x"].tolist() == [7, 9]
        with pytest.raises(ValueError, match="not a serialized tf.train.Example"):
            decode_example(data + unknown[:-1], spec)
    with pytest.raises(ValueError, match="not a serialized tf.train.Example"):
        decode_example(b"\x13" + data, spec)  # a group, which proto3 does not have


def message(number, *parts):
    """One field of a protocol buffer that holds others."""
    content = b"".join(parts)
    return bytes([number << 3 | 2, len(content)]) + content


SEVEN_AND_NINE = message(3, b"\x08\x07\x08\x09")
NAME = message(1, b"x")


def test_no_examples_are_no_bytes():
    assert (
        encode_framed_examples([FeatureSpec("x", "int64", 2)], {"x": np.ones((0, 2), int)}) == b""
    )


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (NAME + message(2, SEVEN_AND_NINE), [7, 9]),
        (NAME + message(2, message(3, b"\x0a\x0c" + b"\x80" * 10 + b"\x01\x09")), None),  # 11 bytes
        (NAME + message(2, message(3, b"\x0a\x00\x08\x07\x08\x09")), None),  # none packed, two not
        (NAME + message(2, message(3, b"\x0a\x01\x07\x0a\x01\x09")), None),  # packed twice
        (NAME + message(2, message(3, b"\x08\x07\x0a\x01\x09")), None),  # packed after another
        (NAME + message(2, message(3, b"\x08\x07\x08\x09\x12\x01\x05")), None),  # and field 2
        (NAME + message(2, message(3, b"\x12\x01\x05\x0a\x02\x07\x09")), None),  # before
        (NAME + message(2, message(3, b"\x0a\x00")), None),  # no values
        (NAME + message(2, message(3)), None),
        (NAME + message(2, message(3, b"\x0a\x03\x07\x09\x85")), None),  # ends within a number
        (NAME + message(2, message(3, b"\x08" + b"\x80" * 10 + b"\x01\x08\x09")), None),
        (NAME + message(2, message(3, b"\x0a\x02\x07\x09\x12\x01\x05")), [7, 9]),  # and field 2
        (NAME + message(2, message(3, b"\x08\x05"), SEVEN_AND_NINE), None),
        (NAME + message(2, message(3, b"\x08\x05")) + message(2, SEVEN_AND_NINE), None),
        (
            NAME + message(2, message(2, b"\x0a\x04", bytes(4)), SEVEN_AND_NINE),
            None,
        ),  # of two types
        (NAME + message(2, message(3, b"\x12\x02\x07\x09")), None),  # field 2 alone
        (NAME + message(2, message(3, b"\x0d7777\x0d9999")), None),  # each of four bytes
        (NAME + message(2, b"\x1d\x08\x07\x08\x09"), None),  # as the list
        (NAME + message(2, message(5, b"\x08\x07\x08\x09")), None),
        (NAME + b"\x02\x00" + message(2, SEVEN_AND_NINE), None),  # field 0
    ],
)
def test_examples_are_what_they_are_for_tensorflow(entry, expected):
    """Of a list in parts it takes none, and of fields that it does not know nothing."""
    import tensorflow as tf

    data, schema = message(1, message(1, entry)), [FeatureSpec("x", "int64", 2)]
    if expected is not None:
        assert decode_example(data, schema)["x"].tolist() == expected
        assert parse_example_fn(schema)(tf.constant([data]))["x"].numpy().tolist() == [expected]
        return
    with pytest.raises(ValueError, match="tf.train.Example|expected int64|expected 2 values"):
        decode_example(data, schema)
    with pytest.raises((tf.errors.InvalidArgumentError, UnicodeDecodeError)):
        parse_example_fn(schema)(tf.constant([data]))


def test_errors_name_file_record_and_feature(tmp_path):
    path = tmp_path / "x.tfrecord"
    feature = (FeatureSpec("x", "int64", 2),)
    with RecordWriter(path) as writer:
        writer.write(encode_examples(feature, {"x": np.ones((1, 2), int)})[0])
        writer.write(b"no example \xff")
    with pytest.raises(ValueError, match="x.tfrecord: record 1: not a serialized tf.train.Example"):
        list(read_examples(path, feature))
    for wanted, message in (
        (FeatureSpec("y", "int64", 2), r"record 0: no feature 'y'; the record has \['x'\]"),
        (FeatureSpec("x", "int64", 3), "record 0: feature 'x': expected 3 values, got 2"),
        (FeatureSpec("x", "float32", 2), "record 0: feature 'x': expected float32, got int64"),
    ):
        with pytest.raises(ValueError, match=message):
            list(read_examples(path, [wanted]))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, r"missing \['x'\], not in it \[\]"),
        ({"x": np.ones((2, 3), int), "z": 1}, r"missing \[\], not in it \['z'\]"),
        ({"x": np.ones((2, 5), int)}, r"feature 'x': expected shape \[B, 3\], got \[2, 5\]"),
        ({"x": np.ones((2, 3))}, "feature 'x': expected integers, got float64"),
    ],
)
def test_arrays_must_match_the_schema(arrays, message):
    with pytest.raises(ValueError, match=message):
        encode_examples([FeatureSpec("x", "int64", 3)], arrays)


def test_features_have_as_many_rows_and_numbers_are_no_text():
    schema = [FeatureSpec("x", "int64", 3), FeatureSpec("y", "float32", 1)]
    integers = np.ones((2, 3), int)
    with pytest.raises(ValueError, match="feature 'y': expected 2 rows as in the first .*, got 5"):
        encode_examples(schema, {"x": integers, "y": np.ones((5, 1))})
    with pytest.raises(ValueError, match="feature 'y': expected numbers, got <U1"):
        encode_examples(schema, {"x": integers, "y": np.full((2, 1), "7")})


def test_features_must_be_sound():
    with pytest.raises(ValueError, match="dtype must be 'int64' or 'float32', got 'int32'"):
        FeatureSpec("x", "int32", 3)
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        FeatureSpec("x", "int64", 0)
    with pytest.raises(ValueError, match="feature names must be distinct"):
        encode_examples([FeatureSpec("x", "int64", 1)] * 2, {"x": np.ones((1, 1), int)})
    with pytest.raises(ValueError, match="a record needs at least one feature"):
        encode_examples([], {})
    assert encode_examples([FeatureSpec("x", "int64", 3)], {"x": np.ones((0, 3), int)}) == []


@pytest.mark.parametrize(
    ("name", "manifest"),
    [
        ("out/wiki.tfrecord", "out/wiki.manifest.json"),
        ("out/wiki-00003-of-00016.tfrecord.gz", "out/wiki.manifest.json"),
        ("/a.b/wiki.v2.tfrecords", "/a.b/wiki.v2.manifest.json"),
        ("plain", "plain.manifest.json"),
        ("x/.tfrecord", "x/.tfrecord.manifest.json"),
    ],
)
def test_manifest_lies_beside_its_shard_set(name, manifest):
    assert manifest_path(name) == manifest


def test_gzip_streams_can_be_appended(tmp_path):
    import tensorflow as tf

    path = tmp_path / "x.gz"
    for value in (b"one", b"two"):
        with open(path, "ab") as raw, gzip_stream(raw) as stream:
            stream.write(frame_record(value))
    assert list(read_records(path)) == [b"one", b"two"]
    dataset = tf.data.TFRecordDataset(str(path), compression_type="GZIP")
    assert [record.numpy() for record in dataset] == [b"one", b"two"]
    assert gzip.decompress(path.read_bytes()).count(b"o") == 2


INPUTS = ("input_ids", "input_mask", "segment_ids")


@pytest.mark.parametrize(
    ("features", "input_length", "others"),
    [
        (
            classification_features(13),
            13,
            {("label_ids", "int64", 1), ("is_real_example", "int64", 1)},
        ),
        (
            regression_features(13),
            13,
            {("label_ids", "float32", 1), ("is_real_example", "int64", 1)},
        ),
        (
            multi_label_features(13, 5),
            13,
            {("label_ids", "float32", 5), ("is_real_example", "int64", 1)},
        ),
        (
            multiple_choice_features(13, 3),
            39,
            {("label_ids", "int64", 1), ("is_real_example", "int64", 1)},
        ),
        (
            token_classification_features(13),
            13,
            {("label_ids", "int64", 13), ("label_mask", "int64", 13)},
        ),
        (
            span_features(13),
            13,
            {
                (name, "int64", 1)
                for name in ("unique_ids", "start_positions", "end_positions", "is_impossible")
            },
        ),
    ],
)
def test_schemas_of_fine_tuning(features, input_length, others):
    expected = {(name, "int64", input_length) for name in INPUTS} | others
    assert {(f.name, f.dtype, f.length) for f in features} == expected
    assert len(features) == len(expected)


def test_schemas_of_pretraining():
    """As create_pretraining_data.py of the original has it; without masks, what is left of it."""
    plain = {*((name, "int64", 13) for name in INPUTS), ("next_sentence_labels", "int64", 1)}
    masked = {("masked_lm_positions", "int64", 5), ("masked_lm_ids", "int64", 5)}
    masked |= plain | {("masked_lm_weights", "float32", 5)}
    for features, expected in (
        (unmasked_pretraining_features(13), plain),
        (pretraining_features(13, 5), masked),
    ):
        assert {(f.name, f.dtype, f.length) for f in features} == expected
        assert len(features) == len(expected)


# === Records in any order ===


@pytest.fixture
def five_records(tmp_path):
    """Return a file of records of unequal sizes, one of them empty, and what it holds."""
    values = [bytes([65 + n]) * size for n, size in enumerate((7, 0, 331, 1, 40_009))]
    with RecordWriter(tmp_path / "x") as writer:
        for value in values:
            writer.write(value)
    return tmp_path / "x", values


def test_records_are_read_in_any_order(five_records):
    path, values = five_records
    file = RecordFile(path)
    assert len(file) == 5
    for number in (4, 0, 2, 2, 1, 3):
        assert file.read(number) == file.read(np.int64(number)) == values[number]
    for number in (-1, 5):
        with pytest.raises(IndexError):
            file.read(number)
    with concurrent.futures.ThreadPoolExecutor(7) as threads:
        order = np.random.default_rng(0).integers(0, 5, 2003).tolist()
        assert list(threads.map(file.read, order)) == [values[number] for number in order]


def test_a_file_without_records_has_none(tmp_path):
    (tmp_path / "x").touch()
    assert len(RecordFile(tmp_path / "x")) == 0


def test_every_cut_and_flipped_byte_is_found_in_any_order(five_records):
    path, values = five_records
    values = values[:4]
    data = path.read_bytes()[: sum(len(v) + 16 for v in values)]
    ends = np.cumsum([0, *(len(v) + 16 for v in values)])
    for size in range(1, len(data)):
        path.write_bytes(data[:size])
        if size in ends:
            assert len(RecordFile(path)) == list(ends).index(size)
            continue
        number = int(np.searchsorted(ends, size)) - 1
        with pytest.raises(ValueError, match=f"x: record {number}: file is truncated"):
            RecordFile(path)
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 32
        path.write_bytes(flipped)
        number = int(np.searchsorted(ends, place, side="right")) - 1
        message = "corrupt length" if place - ends[number] < 12 else "corrupt data"
        with pytest.raises(ValueError, match=rf"x: record {number}: {message} \(checksum differs"):
            file = RecordFile(path)
            for other in range(number):
                assert file.read(other) == values[other]
            file.read(number)


def test_files_that_cannot_be_read_in_any_order(five_records, tmp_path):
    path, _ = five_records
    packed = tmp_path / "y"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match="y: is compressed"):
        RecordFile(packed)
    with pytest.raises(FileNotFoundError):
        RecordFile(tmp_path / "z")
    file = RecordFile(path)
    os.truncate(path, 100)  # by another process, say
    assert file.read(0)
    with pytest.raises(ValueError, match="x: record 2: corrupt data"):
        file.read(2)


def test_a_file_is_closed_when_nothing_refers_to_it(five_records):
    file = RecordFile(five_records[0])
    descriptor = file._descriptor
    os.fstat(descriptor)
    del file
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
