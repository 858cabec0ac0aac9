"""Small files that declare huge sizes: refused before memory or disk is taken for them."""

import gzip
import json
import time
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest

from bert_tf.config import BertConfig
from bert_tf.files import check_declared, parse_json
from bert_tf.models.encoder import bert_encoder
from bert_tf.records.decoding import decode_example
from bert_tf.records.encoding import frame_header
from bert_tf.records.files import read_records
from bert_tf.records.schema import FeatureSpec
from bert_tf.tasks.squad_metrics import read_references
from bert_tf.tasks.trained_task import TrainedTask, read_trained_task
from bert_tf.weights.hdf5 import Hdf5File
from bert_tf.weights.keras_archives import load_keras
from bert_tf.weights.locate import read_json
from bert_tf.weights.tensor_files import CorruptCheckpointError, open_tensors

DEEP = "[" * 200_000
SMALL = {"vocab_size": 97, "hidden_size": 6, "num_attention_heads": 2, "intermediate_size": 11}


@pytest.fixture
def memory():
    """Return a function that tells the most bytes that were taken since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.parametrize("length", [10**9, 2**40, 2**62, 2**63 + 5, 2**64 - 1])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_record_of_a_huge_length_is_damage_and_takes_no_memory(
    length, compress, tmp_path, memory
):
    path = tmp_path / "t.tfrecord"
    path.write_bytes(compress(frame_header(length) + b"abc"))
    with pytest.raises(ValueError, match=r"t\.tfrecord: record 0: .*(declares|truncated)"):
        list(read_records(path))
    told = []
    assert list(read_records(path, told.append)) == [] and len(told) == 1
    assert memory() < 5_000_000


def test_a_record_that_unpacks_to_far_more_than_its_file_is_damage(tmp_path, memory):
    size = 70 << 20
    path = tmp_path / "t.tfrecord"
    with gzip.GzipFile(path, "wb") as stream:
        stream.write(frame_header(size))
        for _ in range(70):
            stream.write(bytes(1 << 20))
    with pytest.raises(ValueError, match="record 0: its length declares 73,400,320 bytes"):
        list(read_records(path))
    assert memory() < 30_000_000


def field(number, data):
    size, varint = len(data), b""
    while size >= 128:
        varint += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + varint + bytes([size]) + data


def example(values):
    entry = field(1, b"a") + field(2, field(3, values))
    return field(1, field(1, entry))


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 400_000 + b"\x01", example(field(1, b"\xff" * 400_000 + b"\x01"))],
    ids=["key", "packed"],
)
def test_an_endless_varint_is_no_example(data):
    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"not a serialized tf\.train\.Example"):
        decode_example(data, [FeatureSpec("a", "int64", 1)])
    assert time.monotonic() - begin < 1


def test_an_unpacked_varint_of_more_than_64_bits_is_cut_as_protobuf_cuts_it():
    import tensorflow as tf

    data = example(b"\x08" + b"\xff" * 9 + b"\x7f")
    expected = tf.train.Example.FromString(data).features.feature["a"].int64_list.value
    assert decode_example(data, [FeatureSpec("a", "int64", 1)])["a"].tolist() == list(expected)


def test_json_that_is_nested_too_deeply_is_one_error_in_every_reader(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(DEEP)
    (tmp_path / "bert_task.json").write_text(DEEP)
    (tmp_path / "x.index.json").write_text('{"weight_map": ' + DEEP)
    for read in (BertConfig.from_json_file, read_json, read_references):
        with pytest.raises(ValueError, match=r"x\.json: .*nested too deeply"):
            read(path)
    with pytest.raises(ValueError, match=r"bert_task\.json: .*nested too deeply"):
        read_trained_task(tmp_path)
    with pytest.raises(CorruptCheckpointError, match=r"x\.index\.json: .*nested too deeply"):
        open_tensors(tmp_path / "x.index.json")
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(DEEP)


@pytest.mark.parametrize(
    "name", ["hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings"]
)
def test_a_configuration_of_a_size_that_no_model_has_is_refused_before_one_is_made(name):
    with pytest.raises(ValueError, match=f"parameters; expected at most .*{name}"):
        bert_encoder(BertConfig.from_dict({**SMALL, name: 2 * 10**12}))
    with pytest.raises(ValueError, match="num_hidden_layers must be at most 10,000"):
        bert_encoder(BertConfig.from_dict({**SMALL, "num_hidden_layers": 10**9}))
    # The largest encoder that was ever published has a tenth of the limit.
    BertConfig(250_880, 4096, 48, 32, 16_384).check_size()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_seq_length", -5),
        ("max_seq_length", 0),
        ("max_seq_length", 2**20 + 1),
        ("max_query_length", 0),
        ("max_answer_length", 0),
        ("max_seq_length", 1e308),
        ("max_seq_length", 10**12),
        ("doc_stride", 0),
        ("max_query_length", True),
        ("max_answer_length", None),
        ("n_best_size", 0),
        ("has_pairs", 1),
        ("version_2_with_negative", "yes"),
        ("null_score_diff_threshold", float("nan")),
        ("null_score_diff_threshold", "0"),
    ],
)
def test_a_task_file_of_values_that_none_has_is_refused_by_name(name, value, tmp_path):
    (tmp_path / "bert_task.json").write_text(json.dumps({"kind": "span", name: value}))
    with pytest.raises(ValueError, match=rf"bert_task\.json: .*{name} must be"):
        read_trained_task(tmp_path)
    for number in (1, 2**20):
        task = TrainedTask("span", number, False, number, number, number, number)
        task.write(tmp_path)
        assert read_trained_task(tmp_path) == task


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5"])
def test_a_keras_archive_that_unpacks_to_far_more_than_its_size_is_refused(name, tmp_path, memory):
    path = tmp_path / "x.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for other in {"config.json", "model.weights.h5", "metadata.json"} - {name}:
            archive.writestr(other, "{}")
        with archive.open(name, "w") as member:
            for _ in range(70):
                member.write(b" " * (1 << 20))
    with pytest.raises(CorruptCheckpointError, match=r"x\.keras: the archive declares 73,\d+,"):
        load_keras(str(path))
    assert memory() < 5_000_000


def test_a_torch_file_that_unpacks_or_repeats_far_more_than_its_size_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    plain, packed = tmp_path / "plain.bin", tmp_path / "packed.bin"
    torch.save({"a": torch.zeros(18 << 20)}, plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(CorruptCheckpointError, match=r"packed\.bin: the archive declares 75,"):
        open_tensors(packed)
    torch.save({"a": torch.zeros(1).expand(10**9)}, plain)
    with pytest.raises(CorruptCheckpointError, match=r"plain\.bin: a has shape \(1000000000,\)"):
        open_tensors(plain)


def test_compressed_weights_of_far_more_than_their_file_are_refused(tmp_path):
    path = tmp_path / "x.weights.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset(
            "layers/dense/vars/0", (18 << 20,), "f4", compression="gzip", chunks=(1 << 20,)
        )
        for begin in range(0, 18 << 20, 1 << 20):
            dataset[begin : begin + (1 << 20)] = 0
    with pytest.raises(CorruptCheckpointError, match=r"compressed data declares 75,497,472 bytes"):
        Hdf5File(path)


def test_a_bundle_whose_index_claims_more_than_its_data_is_refused(tmp_path):
    from bert_tf.weights.tensor_bundle import TensorBundle, write_tensors

    prefix = tmp_path / "x"
    write_tensors(prefix, {"a": np.zeros((7, 11), np.float32)})
    assert TensorBundle(prefix).shapes == {"a": (7, 11)}
    with open(f"{prefix}.data-00000-of-00001", "r+b") as file:
        file.truncate(100)
    with pytest.raises(CorruptCheckpointError, match=r"'a': it has shape \(7, 11\).* 100 bytes"):
        TensorBundle(prefix)


def test_what_a_file_may_declare_is_sixteen_times_its_size_and_64_mib_in_any_case():
    check_declared(1 << 26, 3, "x")
    check_declared(16 * (1 << 30), 1 << 30, "x")
    for declared, size in (((1 << 26) + 1, 3), (16 * (1 << 30) + 1, 1 << 30)):
        with pytest.raises(ValueError, match=f"x declares {declared:,} bytes; expected at most"):
            check_declared(declared, size, "x")
