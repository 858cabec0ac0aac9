"""Indices of TensorFlow checkpoints that would end the process are refused before it reads them."""

import pathlib
import struct

import google_crc32c
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto

from bert_tf.weights import bundle_index
from bert_tf.weights.bundle_index import check_index
from bert_tf.weights.tensor_bundle import list_tensors, write_tensors
from bert_tf.weights.tensor_files import CorruptCheckpointError

HEADER = BundleHeaderProto(num_shards=1).SerializeToString()


def varint(number):
    """The number in bytes of which all but the last have their highest bit."""
    head = b""
    while number >= 128:
        head += bytes([number % 128 + 128])
        number //= 128
    return head + bytes([number])


def block(entries, kind=0, shared=0, restart=0, more=b""):
    """A block of keys and values and what else, with its type and checksum."""
    content = b"".join(
        varint(shared) + varint(len(key)) + varint(len(value)) + key + value
        for key, value in entries
    )
    content += more + struct.pack("<2I", restart, 1) + bytes([kind])
    crc = google_crc32c.value(content)
    masked = ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF
    return content + struct.pack("<I", masked)


def table(data, times=1):
    """A table of one block of data, that its block of blocks lists so often."""
    handle = varint(0) + varint(len(data) - 5)
    index = block([(b"z", handle)] * times)
    place = varint(len(data)) + varint(len(index) - 5)
    footer = (bytes(2) + place).ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")
    return data + index + footer


def entry(sizes=(7, 3), parts=(), **values):
    """A tensor's description; parts are its (start, length) in each dimension."""
    proto = BundleEntryProto(**{"dtype": 1, "size": 84, **values})
    for size in sizes:
        proto.shape.dim.add(size=size)
    for part in parts:
        extents = proto.slices.add().extent
        for start, length in part:
            extents.add(start=start, length=length)
    return proto.SerializeToString()


def index_of(*values, **kinds):
    return table(block([(b"", HEADER), *((b"a", value) for value in values)], **kinds))


def test_a_table_made_here_is_one_of_tensorflow(tmp_path):
    (tmp_path / "x.index").write_bytes(index_of(entry()))
    assert list_tensors(tmp_path / "x") == {"a": ((7, 3), "float32")}
    write_tensors(tmp_path / "y", {"a": [1.0, 2.0]})
    check_index(tmp_path / "y.index")


@pytest.mark.parametrize(
    ("content", "reason"),
    {
        "no message": (index_of(b"\xff"), "damaged at b'a'"),
        "negative": (index_of(entry((-5, 3))), r"no tensor has shape \[-5, 3\]"),
        "too many": (index_of(entry((1 << 40, 1 << 40))), "no tensor has shape"),
        "no rank": (index_of(entry(shape={"unknown_rank": True}, sizes=())), "no tensor has shape"),
        "no type": (index_of(entry(dtype=0)), "no tensor has type 0"),
        "a type to come": (index_of(entry(dtype=99)), "no tensor has type 99"),
        "file": (index_of(entry(shard_id=1)), "84 bytes at 0 of file 1 of 1"),
        "place": (index_of(entry(offset=-1)), "84 bytes at -1"),
        "same parts": (index_of(entry(parts=[[(0, 4), (0, 3)]] * 2)), "parts are none of shape"),
        "part beyond": (index_of(entry(parts=[[(4, 4), (0, 3)]])), "parts are none of shape"),
        "flat part": (index_of(entry(parts=[[(0, 4)]])), "parts are none of shape"),
        "no header": (table(block([(b"a", entry())])), "no header"),
        "header": (table(block([(b"", b"\xff")])), "no BundleHeaderProto"),
        "compressed": (index_of(entry(), kind=1), "compressed"),
        "key before": (index_of(entry(), shared=1), "reaches beyond its block"),
        "start of an entry": (index_of(entry(), restart=3), "a block of its index is damaged"),
        "twice": (table(block([(b"", HEADER)]), times=2), "overlap"),
        "checksum": (b"\1" + index_of(entry())[1:], "checksum"),
        "no end": (index_of(entry())[:-1], "no footer"),
        "end alone": (index_of(entry())[-48:], "cut off"),
        "endless": (b"\xff" * 40 + index_of()[-8:], "does not end"),
    }.values(),
)
def test_what_would_end_the_process_is_refused(tmp_path, content, reason):
    (tmp_path / "x.index").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        check_index(tmp_path / "x.index")
    with pytest.raises(CorruptCheckpointError, match=f"x: cannot read the checkpoint: .*{reason}"):
        list_tensors(tmp_path / "x")


def in_two_parts(dtype=1, rows=3):
    """An index of a variable of 7 rows, of which the second part is so described."""
    parts = [(0, 4), (0, 3)], [(4, 3), (0, 3)]
    keys = (b"\0a\0\1\1\2" + bytes(n ^ 0x80 for pair in part for n in pair) for part in parts)
    first, second = entry((4, 3), size=48), entry((rows, 3), dtype=dtype, size=36)
    values = zip(keys, (first, second), strict=True)
    return table(block([(b"", HEADER), *values, (b"a", entry(parts=parts))]))


def test_parts_are_of_the_type_and_shape_that_their_variable_says(tmp_path):
    path = tmp_path / "x.index"
    path.write_bytes(in_two_parts())
    assert list_tensors(tmp_path / "x") == {"a": ((7, 3), "float32")}
    for changed in ({"dtype": 3}, {"rows": 2}, {"rows": 1 << 40}):
        path.write_bytes(in_two_parts(**changed))
        with pytest.raises(ValueError, match="a part of another type or shape than its variable"):
            check_index(path)


def test_keys_of_parts_are_those_of_tensorflow(tmp_path):
    """Numbers of one byte and of several, and names with the bytes that are escaped."""
    for number, (name, rows, first) in enumerate(
        [("a", 7, 4), ("b/c", 70, 63), ("d", 200, 64), ("e", 9000, 8191), ("f", 9000, 8192)]
    ):
        prefix = tmp_path / str(number)
        tf.raw_ops.SaveV2(
            prefix=str(prefix),
            tensor_names=[name, name],
            shape_and_slices=[f"{rows} 2 0,{first}:-", f"{rows} 2 {first},{rows - first}:-"],
            tensors=[np.zeros((first, 2), np.float32), np.ones((rows - first, 2), np.float32)],
        )
        check_index(f"{prefix}.index")
        index = pathlib.Path(f"{prefix}.index").read_bytes()
        entries = dict(bundle_index._entries(index))
        extents = map(
            bundle_index._extents, BundleEntryProto.FromString(entries[name.encode()]).slices
        )
        keys = {bundle_index._part_key(name.encode(), part) for part in extents}
        assert keys == {key for key in entries if key.startswith(b"\0")} and len(keys) == 2
    assert bundle_index._part_key(b"\0\xff", ()) == b"\0\0\xff\xff\0\0\1\0"


def test_names_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "x.index").write_bytes(table(block([(b"", HEADER), (b"\xff", entry())])))
    with pytest.raises(CorruptCheckpointError, match="x: cannot read .*: 'utf-8' codec"):
        list_tensors(tmp_path / "x")


def test_keys_that_repeat_more_than_their_file_holds_are_refused(tmp_path):
    long, value = bytes(1 << 20), entry()
    first = varint(0) + varint(len(long)) + varint(len(value)) + long + value
    again = varint(len(long)) + varint(0) + varint(len(value)) + value
    (tmp_path / "x.index").write_bytes(table(block([(b"", HEADER)], more=first + again * 70)))
    with pytest.raises(ValueError, match="its index declares 6"):
        check_index(tmp_path / "x.index")


def test_parts_whose_names_are_more_than_their_file_holds_are_refused(tmp_path):
    value = entry((70, 3), parts=[[(row, 1), (0, 3)] for row in range(70)])
    path = tmp_path / "x.index"
    path.write_bytes(table(block([(b"", HEADER), (b"a" * (1 << 20), value)])))
    with pytest.raises(ValueError, match="its index declares 6"):
        check_index(path)
