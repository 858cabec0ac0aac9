"""Tensors in files: what a file is, reading it whole, and refusing what is damaged or hostile."""

import importlib.util
import json
import os
import pickle
import re
import zipfile

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from bert_tf.weights import tensor_files
from bert_tf.weights.tensor_bundle import write_tensors
from bert_tf.weights.tensor_files import CorruptCheckpointError, open_tensors, recognise

REFUSALS = (CorruptCheckpointError, ValueError)
TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}


def read_all(path):
    source = open_tensors(path)
    return dict(source.read(list(source.shapes)))


def entry(offsets, shape, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def raw(header, data=b""):
    """Return a safetensors file of a header that no library would write."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def small_file():
    arrays = {
        "a": np.arange(21, dtype=np.float32).reshape(3, 7),
        "b": np.arange(11, dtype=np.float32),
    }
    return arrays, safetensors.numpy.save(arrays)


# === safetensors ===


@pytest.mark.parametrize("name", TYPES)
def test_safetensors_of_every_float_type_are_read_as_they_were_written(name, tmp_path):
    torch = pytest.importorskip("torch")
    import safetensors.torch

    types = {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
    }
    values = {
        "matrix": torch.randn(7, 11, generator=torch.Generator().manual_seed(3)),
        "cube": torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(5)),
        "scalar": torch.tensor(-1.5),
        "none": torch.zeros(0, 13),
    }
    written = {key: value.to(types[name]) for key, value in values.items()}
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(written, path, metadata={"format": "pt"})
    found = read_all(path)
    theirs = safetensors.torch.load_file(path)
    assert found.keys() == written.keys()
    for key, array in found.items():
        assert array.dtype == TYPES[name] and array.shape == tuple(written[key].shape)
        assert np.array_equal(array.astype(np.float64), theirs[key].double().numpy())
        assert np.array_equal(array.astype(np.float64), written[key].double().numpy())


def test_what_is_written_is_read_back_by_the_library_and_by_us(tmp_path):
    arrays, _ = small_file()
    tensor_files.write_safetensors(tmp_path / "x.safetensors", arrays)
    assert os.listdir(tmp_path) == ["x.safetensors"]
    with safetensors.safe_open(tmp_path / "x.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert all(np.array_equal(file.get_tensor(name), arrays[name]) for name in arrays)
    found = read_all(tmp_path / "x.safetensors")
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


def test_tensors_come_in_the_order_that_is_asked_for(tmp_path):
    arrays, content = small_file()
    (tmp_path / "x.safetensors").write_bytes(content)
    source = open_tensors(tmp_path / "x.safetensors")
    assert dict(source.shapes) == {"a": (3, 7), "b": (11,)}
    assert [name for name, _ in source.read(["b", "a"])] == ["b", "a"]
    assert [name for name, _ in source.read([])] == []


DAMAGED = {
    "empty": b"",
    "within the length": raw({"a": entry((0, 8), (2,))}, bytes(8))[:5],
    "the length alone": raw({"a": entry((0, 8), (2,))}, bytes(8))[:8],
    "within the header": raw({"a": entry((0, 8), (2,))}, bytes(8))[:31],
    "the header alone": raw({"a": entry((0, 8), (2,))}),
    "within the data": raw({"a": entry((0, 8), (2,))}, bytes(7)),
    "bytes after the data": raw({"a": entry((0, 8), (2,))}, bytes(9)),
    "length enormous": (2**63).to_bytes(8, "little") + b'{"a": 1}',
    "length all ones": b"\xff" * 8 + b'{"a": 1}',
    "length past the end": (10**7).to_bytes(8, "little") + b'{"a": 1}',
    "not JSON": raw(b"{hello}"),
    "JSON cut off": raw(b'{"a": {"dtype": "F32"'),
    "not UTF-8": raw(b'{"\xff": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)),
    "a list": raw(b"[1, 2, 3]"),
    "no entry": raw({"a": 7}),
    "no shape": raw({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
    "deep": raw(b'{"a":' * 20011),
    "overlapping": raw({"a": entry((0, 8), (2,)), "b": entry((4, 12), (2,))}, bytes(12)),
    "the same bytes twice": raw({"a": entry((0, 8), (2,)), "b": entry((0, 8), (2,))}, bytes(8)),
    "a gap": raw({"a": entry((4, 12), (2,))}, bytes(12)),
    "backwards": raw({"a": entry((8, 0), (2,))}, bytes(8)),
    "past the end": raw({"a": entry((0, 40), (10,))}, bytes(8)),
    "shape not of the offsets": raw({"a": entry((0, 8), (3,))}, bytes(8)),
    "negative shape": raw({"a": entry((0, 8), (-2,))}, bytes(8)),
    "two negative": raw({"a": entry((0, 8), (-2, -1))}, bytes(8)),
    "huge shape": raw({"a": entry((0, 8), (2**61, 2**61))}, bytes(8)),
    "overflowing to the right size": raw({"a": entry((0, 0), (2**62, 4))}),
    "shape of fractions": raw({"a": entry((0, 8), (2.0,))}, bytes(8)),
    "negative offset": raw({"a": entry((-8, 0), (2,))}, bytes(8)),
    "unknown type": raw({"a": entry((0, 8), (2,), "F33")}, bytes(8)),
    "integers": raw({"a": entry((0, 8), (1,), "I64")}, bytes(8)),
    "booleans": raw({"a": entry((0, 8), (8,), "BOOL")}, bytes(8)),
    "eight bits": raw({"a": entry((0, 8), (8,), "F8_E4M3")}, bytes(8)),
    "metadata not text": raw({"__metadata__": {"a": 3}, "a": entry((0, 8), (2,))}, bytes(8)),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_or_hostile_safetensors_file_is_refused_by_name(what, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(DAMAGED[what])
    with pytest.raises(REFUSALS, match=re.escape(str(path))):
        read_all(path)


def test_every_truncation_is_found_on_opening(tmp_path):
    _, content = small_file()
    path = tmp_path / "model.safetensors"
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(CorruptCheckpointError, match=re.escape(str(path))):
            open_tensors(path)
    path.write_bytes(content)
    open_tensors(path)


def test_a_file_that_shrinks_after_it_was_opened_gives_no_tensor_of_garbage(tmp_path):
    _, content = small_file()
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    source = open_tensors(path)
    path.write_bytes(content[:-4])
    with pytest.raises(CorruptCheckpointError, match="ends within"):
        list(source.read(["a", "b"]))


def test_flipped_bytes_in_the_header_never_end_in_another_exception(tmp_path):
    _, content = small_file()
    header = 8 + int.from_bytes(content[:8], "little")
    random = np.random.default_rng(7)
    path = tmp_path / "model.safetensors"
    refused = 0
    for place in random.integers(0, header, 211):
        changed = bytearray(content)
        changed[place] ^= random.integers(1, 256)
        path.write_bytes(changed)
        try:
            read_all(path)
        except REFUSALS as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 100


def test_a_header_of_any_length_is_one_of_safetensors(tmp_path):
    # A pickle begins with 80 and its protocol, from 02 to 05; so does a header of 640 bytes.
    path = tmp_path / "model.safetensors"
    array = np.arange(3, dtype=np.float32)
    for length in (640, 896, 1152, 1408):
        text = json.dumps({"a": entry((0, 12), (3,))}).ljust(length).encode()
        path.write_bytes(raw(text, array.tobytes()))
        assert recognise(path) == "safetensors"
        assert np.array_equal(read_all(path)["a"], array)


@pytest.mark.parametrize("padding", [" ", "\n", "\t \r\n" * 101])
def test_a_header_may_begin_with_white_space(padding, tmp_path):
    path, array = tmp_path / "model.safetensors", np.arange(3, dtype=np.float32)
    text = padding + json.dumps({"a": entry((0, 12), (3,))})
    path.write_bytes(raw(text.encode(), array.tobytes()))
    assert recognise(path) == "safetensors"
    assert np.array_equal(read_all(path)["a"], array)
    for damaged in (raw(b"x" + text.encode(), array.tobytes()), raw(text.encode(), b"")):
        path.write_bytes(damaged)
        with pytest.raises(CorruptCheckpointError, match=re.escape(str(path))):
            open_tensors(path)


@pytest.mark.parametrize("bad", ["save", "rename"])
def test_a_write_that_fails_leaves_no_file_and_keeps_the_old_one(bad, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    arrays, content = small_file()
    path.write_bytes(content)

    def fail_half_way(tensors, name, metadata=None):
        with open(name, "wb") as file:
            file.write(b"half")
        raise safetensors.SafetensorError("disk full")

    def fail_to_rename(*_):
        raise OSError("disk full")

    if bad == "save":
        monkeypatch.setattr(safetensors.numpy, "save_file", fail_half_way)
    else:
        monkeypatch.setattr(tensor_files.os, "replace", fail_to_rename)
    with pytest.raises(OSError, match="disk full"):
        tensor_files.write_safetensors(path, arrays)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert path.read_bytes() == content


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_a_written_file_has_the_mode_of_any_other(tmp_path, mask):
    """The library makes files that their owner alone can read."""
    before = os.umask(mask)
    try:
        tensor_files.write_safetensors(tmp_path / "model.safetensors", small_file()[0])
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    arrays, _ = small_file()
    tensor_files.write_safetensors(tmp_path / "absent" / "x.safetensors", arrays)  # made
    assert (
        safetensors.numpy.load_file(tmp_path / "absent" / "x.safetensors").keys() == arrays.keys()
    )
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        tensor_files.write_safetensors(tmp_path / "file" / "x.safetensors", arrays)


# === Several files and their index ===


@pytest.fixture
def shards(tmp_path):
    """Two files and their index, and the index' content to be changed."""
    arrays, _ = small_file()
    for number, name in enumerate(arrays, 1):
        safetensors.numpy.save_file(
            {name: arrays[name]}, tmp_path / f"model-0000{number}-of-00002.safetensors"
        )
    index = tmp_path / "model.safetensors.index.json"
    values = {
        "metadata": {"total_size": 128},
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        },
    }
    index.write_text(json.dumps(values))
    return index, values, arrays


def test_shards_are_read_as_one(shards):
    index, _, arrays = shards
    source = open_tensors(index)
    assert dict(source.shapes) == {"a": (3, 7), "b": (11,)}
    found = list(source.read(["b", "a"]))
    assert [name for name, _ in found] == ["b", "a"]
    assert all(np.array_equal(array, arrays[name]) for name, array in found)


@pytest.mark.parametrize("kind", ["up", "absolute", "backslash", "dot", "dots", "folder", "here"])
def test_a_shard_outside_the_folder_is_refused(shards, kind):
    index, values, _ = shards
    folder = index.parent
    inner = folder / "inner"
    inner.mkdir()
    shard = folder / "model-00002-of-00002.safetensors"
    (inner / shard.name).write_bytes(shard.read_bytes())
    name = {
        "up": f"../{folder.name}/{shard.name}",
        "absolute": str(shard),
        "backslash": f"inner\\{shard.name}",
        "dot": ".",
        "dots": "..",
        "folder": f"inner/{shard.name}",
        "here": f"./{shard.name}",
    }[kind]
    values["weight_map"]["b"] = name
    index.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="which is not a file of its folder") as error:
        open_tensors(index)
    assert str(index) in str(error.value)


def test_types_that_weights_do_not_have_are_named_with_their_shard(shards):
    index, values, arrays = shards
    name = values["weight_map"]["b"]
    safetensors.numpy.save_file({"b": np.arange(3)}, index.parent / name)
    source = open_tensors(index)
    source.check(["a"])
    with pytest.raises(ValueError, match=f"{name}: b has type I64; weights are one of F64"):
        source.check(["a", "b"])
    with pytest.raises(ValueError, match=f"{name}: b has type I64"):
        list(source.read(["a", "b"]))


def test_a_missing_shard_is_named_with_its_index(shards):
    index, values, _ = shards
    (index.parent / values["weight_map"]["b"]).unlink()
    with pytest.raises(FileNotFoundError, match="00002-of-00002.*no such file.*index.json names"):
        open_tensors(index)
    values["weight_map"]["b"] = ""
    index.write_text(json.dumps(values))
    with pytest.raises((FileNotFoundError, ValueError), match=re.escape(str(index))):
        open_tensors(index)


def test_an_index_that_does_not_fit_its_shards_is_refused(shards):
    index, values, _ = shards
    values["weight_map"]["c"] = values["weight_map"]["b"]
    index.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="says that model-00002.* holds c, but it does not"):
        open_tensors(index)
    del values["weight_map"]["c"]
    shard = index.parent / values["weight_map"]["b"]
    safetensors.numpy.save_file({"b": np.zeros(11), "hidden": np.zeros(3)}, shard)
    index.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="does not list hidden"):
        open_tensors(index)


def test_a_damaged_shard_is_named(shards):
    index, values, _ = shards
    shard = index.parent / values["weight_map"]["b"]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CorruptCheckpointError, match=re.escape(str(shard))):
        open_tensors(index)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"weight_map": ',
        "[]",
        "7",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": []}',
        '{"weight_map": ["a"]}',
        '{"weight_map": null}',
        '{"weight_map": {"a": 7}}',
        '{"weight_map": {"a": null}}',
        '{"weight_map": {"a": ["x"]}}',
        '{"weight_map": {"a": "\xff"}}',
    ],
)
def test_an_index_that_is_none_is_refused(text, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptCheckpointError, match=re.escape(str(index))):
        open_tensors(index)


def test_an_index_that_names_itself_or_another_is_refused(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": index.name}}))
    with pytest.raises(REFUSALS, match=re.escape(str(tmp_path))):
        open_tensors(index)
    other = tmp_path / "other.index.json"
    other.write_text(json.dumps({"weight_map": {"a": index.name}}))
    index.write_text(json.dumps({"weight_map": {"a": other.name}}))
    with pytest.raises(REFUSALS, match=re.escape(str(tmp_path))):
        open_tensors(index)


# === torch ===


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("new", [True, False])
def test_torch_files_of_both_kinds_are_read(new, tmp_path):
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(7, 11, generator=generator)
    state = {
        "a": matrix,
        "transposed": matrix.T,
        "half": torch.randn(13, generator=generator).half(),
        "bf16": torch.randn(3, 5, generator=generator).bfloat16(),
        "scalar": torch.tensor(2.5),
    }
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=new)
    assert recognise(path) == "torch"
    source = open_tensors(path)
    assert source.shapes["transposed"] == (11, 7)
    for name, array in source.read(list(state)):
        assert array.dtype == np.float32
        assert np.array_equal(array, state[name].float().numpy())


@pytest.mark.parametrize("new", [True, False])
def test_a_parameter_is_a_tensor_and_an_integer_is_no_weight(new, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    state = {"p": torch.nn.Parameter(torch.ones(3)), "ids": torch.arange(7)}
    torch.save(state, path, _use_new_zipfile_serialization=new)
    source = open_tensors(path)
    assert dict(source.shapes) == {"p": (3,), "ids": (7,)}
    assert np.array_equal(dict(source.read(["p"]))["p"], np.ones(3))
    with pytest.raises(ValueError, match="ids has type torch.int64"):
        list(source.read(["ids"]))


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_in_a_pickle_is_refused_and_not_run(kind, tmp_path):
    torch = pytest.importorskip("torch")
    marker, path = tmp_path / "marker", tmp_path / "pytorch_model.bin"
    state = {"a": torch.ones(3), "b": Hostile(marker)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Hostile(marker), protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    assert recognise(path) == "torch"
    # A pickle that is no file of torch.save at all is as well called damaged.
    with pytest.raises(REFUSALS, match=re.escape(str(path))) as error:
        open_tensors(path)
    if kind != "pickle":
        assert not isinstance(error.value, CorruptCheckpointError)
        assert re.search(r"holds more than tensors \(.+\), and is not unpickled", str(error.value))
    assert not marker.exists()
    if kind == "pickle":  # the attack is one: what unpickles freely runs it
        pickle.loads(path.read_bytes())
        assert marker.exists()


@pytest.mark.parametrize("new", [True, False])
def test_a_truncated_torch_file_is_called_damaged(new, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(101)}, path, _use_new_zipfile_serialization=new)
    content = path.read_bytes()
    # The end of a pickle may look like the name of another thing than a tensor.
    expected = CorruptCheckpointError if new else REFUSALS
    for size in [0, 1, 2, 3, *range(7, len(content), 29), len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(expected, match=re.escape(str(path))):
            open_tensors(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("new", [True, False])
def test_flipped_bytes_in_a_torch_file_never_end_in_another_exception(new, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(7, 5)}, path, _use_new_zipfile_serialization=new)
    content = path.read_bytes()
    random = np.random.default_rng(11)
    refused = 0
    for place in random.integers(0, len(content), 307):
        changed = bytearray(content)
        changed[place] ^= 1 << int(random.integers(0, 8))
        path.write_bytes(changed)
        try:
            read_all(path)
        except REFUSALS as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("what", ["list", "tensor", "nested", "number", "keys"])
def test_a_torch_file_that_is_no_state_dict_is_refused(what, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    tensor = torch.ones(3)
    value = {
        "list": [tensor],
        "tensor": tensor,
        "nested": {"model": {"a": tensor}},
        "number": {"a": tensor, "step": 7},
        "keys": {3: tensor},
    }[what]
    torch.save(value, path)
    with pytest.raises(ValueError, match="expected names and tensors") as error:
        open_tensors(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "encoder"])
def test_weights_within_a_mapping_of_a_torch_file_are_named(key, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    inner = {"a": torch.ones(3)}
    torch.save({"optimizer": {"lr": 0.5}, "epoch": 7, key: inner}, path)
    with pytest.raises(ValueError, match=f"with the weights under '{key}'; save that") as error:
        open_tensors(path)
    assert str(path) in str(error.value)
    # What the message says to do helps.
    assert f"torch.save(torch.load(path, weights_only=True)[{key!r}], " in str(error.value)
    torch.save(torch.load(path, weights_only=True)[key], path)
    assert list(open_tensors(path).shapes) == ["a"]


def test_without_torch_the_message_says_how_to_convert(tmp_path, monkeypatch):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(pickle.dumps({"a": 1}, protocol=2))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="torch is not installed") as error:
        open_tensors(path)
    assert str(path) in str(error.value)
    assert "safetensors.torch.save_file(torch.load(path, weights_only=True)" in str(error.value)


# === What a file is ===


# Keras of itself reads its variables in a way that NumPy is about to give up.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_files_are_recognised_by_their_content(tmp_path):
    _, content = small_file()
    made = {
        "safetensors": content,
        "json": b'{"weight_map": {}}',
        "json with space": b'\n  {"a": 1}',
        "list": b"[1]",
        "empty": b"",
        "one byte": b"\x80",
        "text": b"[PAD]\n[UNK]\n",
        "legacy torch": pickle.dumps([1], protocol=2),
        "new pickle": pickle.dumps([1], protocol=4),
        "random": np.random.default_rng(0).bytes(1009),
        "start of a zip": b"PK\x03\x04" + bytes(101),
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n",
    }
    for name, data in made.items():
        (tmp_path / name).write_bytes(data)
    with h5py.File(tmp_path / "hdf5", "w") as file:
        file["a"] = np.zeros(3)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.save(tmp_path / "model.keras")
    for name, member in (("torch zip", "archive/data.pkl"), ("other zip", "word/document.xml")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(member, b"x")
    write_tensors(tmp_path / "bert_model.ckpt", {"a": np.zeros(3, np.float32)})
    expected = {
        "safetensors": "safetensors",
        "json": "json",
        "json with space": "json",
        "list": None,
        "empty": None,
        "one byte": None,
        "text": None,
        "legacy torch": "torch",
        "new pickle": "torch",
        "random": None,
        "start of a zip": None,
        "pointer": "git_lfs",
        "hdf5": "hdf5",
        "model.keras": "keras",
        "torch zip": "torch",
        "other zip": None,
        "bert_model.ckpt.index": "tf_index",
        "bert_model.ckpt.data-00000-of-00001": None,
    }
    assert {name: recognise(tmp_path / name) for name in expected} == expected
    for name in expected:
        if expected[name] == "git_lfs":
            with pytest.raises(CorruptCheckpointError, match="pointer: a pointer of git-lfs"):
                open_tensors(tmp_path / name)
        elif expected[name] not in ("safetensors", "torch"):
            with pytest.raises(CorruptCheckpointError, match="its content is neither"):
                open_tensors(tmp_path / name)


def test_random_bytes_and_damaged_archives_are_recognised_without_exceptions(tmp_path):
    random = np.random.default_rng(13)
    path = tmp_path / "x"
    starts = (
        b"",
        b"PK\x03\x04",
        b"\x80\x02",
        b"\x89HDF\r\n\x1a\n",
        b"{",
        b"\x40" + bytes(7) + b"{",
    )
    for start in starts:
        for size in (0, 1, 7, 8, 9, 16, 101):
            path.write_bytes(start + random.bytes(size))
            recognise(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, b"{}")
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 0x11
        path.write_bytes(changed)
        assert recognise(path) in ("keras", None)


def test_steps_of_a_folder_are_those_with_an_index(tmp_path):
    assert tensor_files.checkpoint_steps(tmp_path / "absent") == []
    assert tensor_files.checkpoint_steps(tmp_path) == []
    names = (
        "model.ckpt-101.index",
        "model.ckpt-7.index",
        "model.ckpt-11.index",
        "model.ckpt-11.data-00000-of-00001",
        "model.ckpt-13.data-00000-of-00001",
        "model.ckpt-17.index.damaged",
        "model.ckpt-19.index.tempstate1",
        "model.ckpt-.index",
        "model.ckpt-x.index",
        "bert_model.ckpt.index",
        "other.ckpt-23.index",
    )
    for name in names:
        (tmp_path / name).touch()
    assert tensor_files.checkpoint_steps(tmp_path) == [7, 11, 101]
    assert tensor_files.checkpoint_steps(tmp_path / "model.ckpt-7.index") == []
