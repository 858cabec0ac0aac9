"""The readers of what comes from elsewhere, as functions of bytes, with inputs to begin with.

A reader may refuse what it gets by the exceptions that it documents, and by no other; and it may
take no more memory than some times the input.
"""

import contextlib
import dataclasses
import importlib.util
import io
import json
import pathlib
import random
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator

import h5py
import keras
import ml_dtypes
import numpy as np
import tensorflow as tf

from bert_tf.config import BertConfig
from bert_tf.input_pipeline import record_checks
from bert_tf.input_pipeline.finetuning import TaskRecords
from bert_tf.models.encoder import bert_encoder
from bert_tf.records.decoding import decode_example, parse_example_fn
from bert_tf.records.encoding import (
    encode_examples,
    encode_framed_examples,
    frame_header,
    frame_record,
    masked_crc,
)
from bert_tf.records.files import RecordFile, read_records
from bert_tf.records.schema import classification_features, pretraining_features
from bert_tf.tasks.trained_task import TRAINED_TASK_NAME, TrainedTask, read_trained_task
from bert_tf.tokenization.vocabulary import check_special_tokens, load_vocab
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights.checkpoint import open_checkpoint
from bert_tf.weights.hdf5 import Hdf5File
from bert_tf.weights.locate import read_json
from bert_tf.weights.save import save_hf, save_keras
from bert_tf.weights.tensor_bundle import TensorBundle, write_tensors
from bert_tf.weights.tensor_files import CorruptCheckpointError, open_tensors
from tests.support import synthetic_records as synthetic

_MOST_TIMES = 4  # of the input's size, in memory
FEATURES = pretraining_features(synthetic.LENGTH, synthetic.PREDICTIONS)
DAMAGE = (CorruptCheckpointError, ValueError)


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        read: (bytes, folder to write them to) -> None.
        seeds: folder to write to -> inputs to begin with.
        refusals: the exceptions that the reader documents.
        most_extra_bytes: of memory, beside that for the input.
        most_bytes: of an input that fuzzing makes; the fewer, the more of them a second.
    """

    read: Callable[[bytes, pathlib.Path], object]
    seeds: Callable[[pathlib.Path], list[bytes]]
    refusals: tuple[type[Exception], ...] = (ValueError,)
    most_extra_bytes: int = 1 << 23
    most_bytes: int = 1 << 12

    def refuses(self, data: bytes, folder: pathlib.Path) -> bool:
        """Read an input; return whether it was refused.

        Raises:
            Exception: what the reader does not document.
        """
        try:
            self.read(data, folder)
        except self.refusals as error:
            # One of Unicode's, which is a ValueError, says nothing of what was read.
            if len(str(error).splitlines()) != 1 or isinstance(error, UnicodeError):
                raise AssertionError(f"a refusal without a line of its own: {error!r}") from error
            return True
        return False

    def run(self, data: bytes, folder: pathlib.Path) -> bool:
        """Do as `refuses` does, and look at the memory that it takes.

        Raises:
            MemoryError: it takes more memory than it may.
        """
        tracemalloc.start(1)
        try:
            refused = self.refuses(data, folder)
        finally:
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        if most > _MOST_TIMES * len(data) + self.most_extra_bytes:
            raise MemoryError(f"{most:,} bytes of memory for an input of {len(data):,}")
        return refused


def small_model() -> keras.Model:
    """Return an encoder of a few kilobytes."""
    return bert_encoder(BertConfig(11, 6, 1, 2, 7, max_position_embeddings=13))


def put(folder: pathlib.Path, name: str, data: bytes) -> pathlib.Path:
    """Write an input under a name."""
    path = folder / name
    path.write_bytes(data)
    return path


# === Weights ===


def read_safetensors(data: bytes, folder: pathlib.Path) -> None:
    source = open_tensors(put(folder, "model.safetensors", data))
    source.check(list(source.shapes))
    for _ in source.read(list(source.shapes)):
        pass


def safetensors_seeds(folder: pathlib.Path) -> list[bytes]:
    save_hf(folder, small_model(), None)
    data = (folder / "model.safetensors").read_bytes()
    header = json.dumps({"a": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}).encode()
    pickled = b"\x80\x02}q\x00."  # an empty state, as torch wrote before it used zip
    return [data, struct.pack("<Q", len(header)) + header + bytes(6), pickled]


def read_index(data: bytes, folder: pathlib.Path) -> None:
    if not (folder / "a.safetensors").exists():
        put(folder, "a.safetensors", safetensors_seeds(folder)[1])
    source = open_tensors(put(folder, "model.safetensors.index.json", data))
    for _ in source.read(list(source.shapes)):
        pass


def index_seeds(_: pathlib.Path) -> list[bytes]:
    return [json.dumps({"weight_map": {"a": name}}).encode() for name in ("a.safetensors", "../a")]


_BUNDLE_PARTS = {b"i": "index", b"c": "index", b"d": "data-00000-of-00001"}


def bundle_seeds(folder: pathlib.Path) -> list[bytes]:
    write_tensors(folder / "whole", {"a": np.zeros((7, 3), np.float32), "b/c": np.arange(5)})
    tf.raw_ops.SaveV2(  # a variable in two parts
        prefix=str(folder / "parts"),
        tensor_names=["a", "a"],
        shape_and_slices=["7 3 0,4:0,3", "7 3 4,3:0,3"],
        tensors=[np.zeros((4, 3), np.float32), np.zeros((3, 3), np.float32)],
    )
    parts = _BUNDLE_PARTS.items()
    seeds = [first + (folder / f"whole.{part}").read_bytes() for first, part in parts]
    return [*seeds, b"c" + (folder / "parts.index").read_bytes()]


def read_bundle(data: bytes, folder: pathlib.Path) -> None:
    """Read an input of which the first byte says what it is.

    That is the index, one whose checksums are made right first, or the data.
    """
    if not (folder / "whole.index").exists():
        bundle_seeds(folder)
    for part in ("index", "data-00000-of-00001"):
        shutil.copyfile(folder / f"whole.{part}", folder / f"x.{part}")
    content = with_block_checksums(data[1:]) if data[:1] == b"c" else data[1:]
    put(folder, f"x.{_BUNDLE_PARTS.get(data[:1], 'index')}", content)
    source, floats = TensorBundle(folder / "x"), []
    for name in source.shapes:
        with contextlib.suppress(ValueError):
            source.check([name])
            floats.append(name)
    for _ in source.read(floats):
        pass


def with_block_checksums(table: bytes) -> bytes:
    """Return a table file of one block of data with the checksums that its blocks have."""
    data, numbers = bytearray(table), []
    value = shift = 0
    for byte in table[-48:-8]:  # its footer names two more blocks, each by place and size
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value)
            value = shift = 0
    begin = numbers[0] if numbers else 0
    for place, size in ((0, begin - 5), *zip(numbers[0:4:2], numbers[1:4:2], strict=False)):
        end = place + size + 1
        if place < end <= len(data) - 4:
            data[end : end + 4] = struct.pack("<I", masked_crc(bytes(data[place:end])))
    return bytes(data)


def read_hdf5(data: bytes, folder: pathlib.Path) -> None:
    source = Hdf5File(put(folder, "model.weights.h5", data))
    for _ in source.read(list(source.shapes)):
        pass


def hdf5_seeds(folder: pathlib.Path) -> list[bytes]:
    seeds = []
    for kinds in ({}, {"compression": 9}):  # which a whole model would make slow to read
        with h5py.File(folder / "seed.weights.h5", "w", libver="latest") as file:
            weights = file.create_group("layers/a/vars")
            weights.create_dataset("0", data=np.ones((7, 3), np.float32), **kinds)
            weights.create_dataset("1", data=np.ones(5, ml_dtypes.bfloat16), **kinds)
            weights["1"].attrs["dtype"] = "bfloat16"
        seeds.append((folder / "seed.weights.h5").read_bytes())
    return seeds


def compact(path: pathlib.Path) -> bytes:
    """Return an HDF5 file of Keras in a third of its bytes, in the layout of newer libraries."""
    small = path.with_suffix(".small")
    with h5py.File(path) as source, h5py.File(small, "w", libver="latest") as target:

        def copy(name: str, node: object) -> None:
            if isinstance(node, h5py.Dataset):
                target.create_dataset(name, data=node[()])
            else:
                target.require_group(name)
            target[name].attrs.update(node.attrs)

        source.visititems(copy)
    return small.read_bytes()


def read_keras(data: bytes, folder: pathlib.Path) -> None:
    """Read an input of which the first byte says what it is: an archive, or a part of one."""
    parts = {b"c": "config.json", b"w": "model.weights.h5"}
    if (name := parts.get(data[:1])) is None:
        open_checkpoint(put(folder, "model.keras", data))
        return
    if not (folder / "whole.keras").exists():
        save_keras(folder / "whole.keras", small_model(), None)
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(folder / "whole.keras") as whole,
        zipfile.ZipFile(stream, "w") as archive,
    ):
        for entry in whole.namelist():
            archive.writestr(entry, data[1:] if entry == name else whole.read(entry))
    open_checkpoint(put(folder, "model.keras", stream.getvalue()))


def keras_seeds(folder: pathlib.Path) -> list[bytes]:
    path = folder / "whole.keras"
    save_keras(path, small_model(), None)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["model.weights.h5"] = compact(put(folder, "whole.h5", parts["model.weights.h5"]))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return [path.read_bytes(), b"c" + parts["config.json"], b"w" + parts["model.weights.h5"]]


# === Records ===


def read_tfrecords(data: bytes, folder: pathlib.Path) -> None:
    """Read a file, or where it begins with "c" the rest with the checksums made right."""
    path = put(folder, "x.tfrecord", with_checksums(data[1:]) if data[:1] == b"c" else data)
    told: list[str] = []
    found = list(read_records(path, told.append))
    try:
        file = RecordFile(path)
        for number in range(len(file)):
            file.read(number)
    finally:
        # What is read without an error is all there is.
        assert list(read_records(path)) == found or told


def tfrecord_seeds(folder: pathlib.Path) -> list[bytes]:
    plain = frame_record(b"one") + frame_record(b"") + frame_record(bytes(300))
    packed = synthetic.write(folder / "seed.tfrecord.gz", 3, 1)
    return [plain, b"c" + plain, pathlib.Path(packed).read_bytes()]


def with_checksums(data: bytes) -> bytes:
    """Return what the lengths in a TFRecord file say, with the checksums that it would have."""
    framed = b""
    while len(data) >= 16:
        size = int.from_bytes(data[:8], "little")
        record = data[12 : 12 + size]
        framed += frame_header(size) + record + struct.pack("<I", masked_crc(record))
        data = data[16 + size :]
    return framed + data


def read_example(data: bytes, folder: pathlib.Path) -> None:
    """Read a record alone and in a file; protobuf and TensorFlow take it for what we do."""
    found = decode_example(data, FEATURES)
    for name, value in parse_example_fn(FEATURES, as_stored=True)(tf.constant([data])).items():
        np.testing.assert_array_equal(value[0], found[name])
    lists = tf.train.Example.FromString(data).features.feature
    for feature in FEATURES:
        kind = "int64_list" if feature.dtype == "int64" else "float_list"
        np.testing.assert_array_equal(getattr(lists[feature.name], kind).value, found[feature.name])
    path = put(folder, "e.tfrecord", frame_record(data))
    record_checks.check_records([str(path)], vocab_size=synthetic.VOCAB_SIZE)


def example_seeds(_: pathlib.Path) -> list[bytes]:
    return encode_examples(FEATURES, synthetic.make_arrays(3, 1))


def read_manifest(data: bytes, folder: pathlib.Path) -> None:
    record = folder / "m.tfrecord"
    if not record.exists():
        synthetic.write(record, 3, 1)
    put(folder, "m.manifest.json", data)
    record_checks.without_empty_shards([str(record)])
    record_checks.check_manifests([str(record)])
    record_checks.check_records([str(record)], vocab_size=synthetic.VOCAB_SIZE)


def manifest_seeds(folder: pathlib.Path) -> list[bytes]:
    size = pathlib.Path(synthetic.write(folder / "m.tfrecord", 3, 1)).stat().st_size
    manifest = {
        "files": ["m.tfrecord"],
        "file_instances": [3],
        "file_bytes": [size],
        "vocab_sha256": "x",
        "max_token_id": 96,
        "do_lower_case": True,
    }
    return [json.dumps(manifest).encode(), b'{"files": []}']


# === Configurations and vocabularies ===


def read_config(data: bytes, folder: pathlib.Path) -> None:
    path = put(folder, "bert_config.json", data)
    BertConfig.from_json_file(path).check_size()
    read_json(path)


def config_seeds(_: pathlib.Path) -> list[bytes]:
    config = BertConfig(11, 6, 1, 2, 7)
    theirs = {"model_type": "bert", "architectures": ["BertModel"], "hidden_act": "gelu"}
    return [json.dumps(values).encode() for values in (config.to_dict(), config.to_dict() | theirs)]


def read_task_records(data: bytes, folder: pathlib.Path) -> None:
    """Read an input of which the first byte says whether it is the manifest or the lengths."""
    if not (folder / "t.tfrecord").exists():
        task_record_seeds(folder)
    put(folder, "t.manifest.json", _TASK_MANIFEST)
    put(folder, "t.lengths.npy", _LENGTHS)
    put(folder, "t.lengths.npy" if data[:1] == b"l" else "t.manifest.json", data[1:])
    TaskRecords.open(folder / "t.tfrecord")


_TASK_MANIFEST = json.dumps(
    {
        "kind": "classification",
        "num_choices": None,
        "labels": ["a", "b"],
        "max_seq_length": 11,
        "vocab_size": 97,
        "lengths_file": "t.lengths.npy",
    }
).encode()
_LENGTHS = b"\x93NUMPY\x01\x00v\x00" + (
    b"{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }".ljust(117) + b"\n"
)
_LENGTHS += struct.pack("<2i", 5, 11)


def task_record_seeds(folder: pathlib.Path) -> list[bytes]:
    features = classification_features(11)
    arrays = {f.name: np.ones((2, f.length), int) for f in features}
    (folder / "t.tfrecord").write_bytes(encode_framed_examples(features, arrays))
    return [b"m" + _TASK_MANIFEST, b"l" + _LENGTHS]


def read_task(data: bytes, folder: pathlib.Path) -> None:
    put(folder, TRAINED_TASK_NAME, data)
    read_trained_task(folder)


def task_seeds(_: pathlib.Path) -> list[bytes]:
    return [json.dumps(dataclasses.asdict(TrainedTask("span"))).encode()]


def read_vocabulary(data: bytes, folder: pathlib.Path) -> None:
    path = put(folder, "vocab.txt", data)
    check_special_tokens(load_vocab(path), path)
    tokenizer = FullTokenizer(path)
    tokenizer.convert_ids_to_tokens(tokenizer.encode("w1 unknown w2w3 \ufffd [MASK]"))


def vocabulary_seeds(_: pathlib.Path) -> list[bytes]:
    return ["\n".join([*list(synthetic.VOCAB)[:9], "é", "##1", "一"]).encode() + b"\n"]


TARGETS = {
    "safetensors": Target(read_safetensors, safetensors_seeds, DAMAGE, most_bytes=1 << 13),
    "index": Target(read_index, index_seeds, (*DAMAGE, FileNotFoundError)),
    "tensor_bundle": Target(read_bundle, bundle_seeds, DAMAGE),
    "hdf5": Target(read_hdf5, hdf5_seeds, DAMAGE, most_bytes=1 << 13),
    "keras": Target(read_keras, keras_seeds, DAMAGE, most_extra_bytes=1 << 26, most_bytes=1 << 15),
    "tfrecords": Target(read_tfrecords, tfrecord_seeds),
    "examples": Target(read_example, example_seeds),
    "manifests": Target(read_manifest, manifest_seeds, (ValueError, FileNotFoundError)),
    "configurations": Target(read_config, config_seeds),
    "tasks": Target(read_task, task_seeds),
    "task_records": Target(read_task_records, task_record_seeds, (ValueError, FileNotFoundError)),
    "vocabularies": Target(read_vocabulary, vocabulary_seeds),
}

if importlib.util.find_spec("tensorflow_serving"):
    from tensorflow.core.protobuf.meta_graph_pb2 import TensorInfo

    from experiments.model_server import rest
    from experiments.model_server.status import ServingError

    SIGNATURES = [
        {"text": TensorInfo(dtype=7)},
        {"text": TensorInfo(dtype=7), "ids": TensorInfo(dtype=3), "x": TensorInfo(dtype=1)},
    ]

    def read_rest_body(data: bytes, _: pathlib.Path) -> None:
        body, refusals = rest.parse_body(data), []
        for signature in SIGNATURES:
            try:
                rest.predict_inputs(body, signature)
            except ServingError as error:
                refusals.append(error)
        for read in (rest.signature_name, rest.example_input):
            try:
                read(body)
            except ServingError as error:
                refusals.append(error)
        if refusals:
            raise refusals[0]

    def rest_seeds(_: pathlib.Path) -> list[bytes]:
        bodies = [
            {"instances": [{"text": {"b64": "aGk="}, "ids": [1, 2], "x": 1.5}], "y": None},
            {"inputs": {"text": ["é"], "ids": [[1], [2]], "x": [-1e9]}, "signature_name": "s"},
            {"context": {"a": 1}, "examples": [{"text": "a", "n": [1, 2], "b": {"b64": ""}}]},
        ]
        return [json.dumps(body).encode() for body in bodies]

    TARGETS["rest"] = Target(read_rest_body, rest_seeds, (ServingError,))


def mutations(seeds: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Yield inputs made of others: bytes changed, put in, left out and taken from elsewhere."""
    rng = random.Random(seed)
    odd = [b"\0", b"\xff", b"\x80", b"-1", b"9" * 40, b"null", b"[", b'"', b"1e999", bytes(8)]
    odd += [struct.pack("<Q", 2**n) for n in (31, 32, 62, 63)]
    for _ in range(count):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 2, 5))):
            place, size = rng.randrange(len(data) + 1), rng.randrange(1, 17)
            match rng.randrange(5):
                case 0 if place < len(data):
                    data[place] ^= 1 << rng.randrange(8)
                case 1:
                    data[place:place] = rng.choice(odd)
                case 2:
                    del data[place : place + size]
                case 3:
                    begin = rng.randrange(len(data) + 1)
                    data[place : place + size] = data[begin : begin + size]
                case _:
                    data[place : place + len(odd[-1])] = rng.choice(odd)
        yield bytes(data)
