"""Features are the hidden states, in order, whatever the batches were; and the cache."""

import errno
import gc
import json
import os
import pathlib
import shutil
import weakref

import keras
import numpy as np
import pytest

import bert_tf
from bert_tf.models import feature_extraction
from bert_tf.models.encoder import layer_outputs
from bert_tf.models.feature_extraction import (
    TokenWindow,
    _feature_models,
    encoder_features,
    features_fingerprint,
    stored_features,
)
from bert_tf.models.functional import POOLINGS
from tests.support.synthetic_records import small_config

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "transformers" / "BertModel"
LAYERS = 3


def make_encoder(seed=5, **arguments):
    keras.utils.set_random_seed(seed)
    config = small_config(num_hidden_layers=LAYERS, initializer_range=0.5)
    return bert_tf.bert_encoder(config, **{"hidden_states": True, **arguments})


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


@pytest.fixture(scope="module")
def windows():
    random = np.random.default_rng(11)
    lengths = random.integers(1, 42, 53)
    return [
        TokenWindow(
            random.integers(0, 97, length).tolist(),
            random.integers(0, 2, length).tolist() if i % 3 else None,
        )
        for i, length in enumerate(lengths.tolist())
    ]


def alone(encoder, window):
    """All hidden states of one text without padding, [L + 1, F, D]."""
    ids = np.array([window.input_ids], np.int32)
    segments = np.zeros_like(ids) if window.segment_ids is None else np.array([window.segment_ids])
    inputs = {"input_ids": ids, "input_mask": np.ones_like(ids), "segment_ids": segments}
    states = layer_outputs(encoder(inputs, training=False), "hidden_states")
    return np.stack([keras.ops.convert_to_numpy(state)[0] for state in states])


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("batch_size", "chunk_batches"),
    [
        (7, 2),
        pytest.param(1, 64, marks=pytest.mark.slow),
        pytest.param(7, 64, marks=pytest.mark.slow),
        pytest.param(64, 1, marks=pytest.mark.slow),
    ],
)
def test_results_do_not_depend_on_batches(encoder, windows, batch_size, chunk_batches, monkeypatch):
    monkeypatch.setattr(feature_extraction, "_CHUNK_BATCHES", chunk_batches)
    found = list(encoder_features(encoder, windows, [-1, 0, 2], batch_size=batch_size))
    assert len(found) == len(windows)
    for values, window in zip(found, windows, strict=True):
        expected = alone(encoder, window)[[LAYERS, 0, 2]].transpose(1, 0, 2)
        assert values.shape == (len(window.input_ids), 3, 22) and values.dtype == np.float32
        np.testing.assert_allclose(values, expected, atol=1e-5)


def test_results_are_transformers_hidden_states():
    """Of a model that transformers made and ran, whose batch has padding and two segments."""
    encoder = bert_tf.load_bert(GOLDEN, hidden_states=True).encoder
    golden = np.load(GOLDEN / "outputs.npz")
    lengths = golden["attention_mask"].sum(axis=1)
    assert (golden["attention_mask"] == (np.arange(13) < lengths[:, None])).all()
    windows = [
        TokenWindow(ids[:length], segments[:length])
        for ids, segments, length in zip(
            golden["input_ids"], golden["token_type_ids"], lengths, strict=True
        )
    ]
    for row, values in enumerate(encoder_features(encoder, windows, [0, 1, 2])):
        expected = golden["hidden_states"][:, row, : lengths[row]].transpose(1, 0, 2)
        assert expected.std() > 0.1
        np.testing.assert_allclose(values, expected, atol=1e-5)


@pytest.mark.parametrize(
    "pooling",
    [pytest.param(name, marks=[] if name == "mean" else pytest.mark.slow) for name in POOLINGS],
)
def test_pooling(encoder, windows, pooling):
    found = list(encoder_features(encoder, windows, [1, -1], pooling=pooling, batch_size=7))
    for values, window in zip(found, windows, strict=True):
        states = alone(encoder, window)[[1, LAYERS]]  # [K, F, D]
        if pooling == "mean":
            expected = states.mean(axis=1)
        else:
            expected = states[:, 0] if pooling == "cls" else states.max(axis=1)
        np.testing.assert_allclose(values, expected, atol=1e-5)


def test_the_last_layer_needs_no_other_output(encoder, windows):
    bare = make_encoder(hidden_states=False)
    bare.set_weights(encoder.get_weights())
    pairs = zip(
        encoder_features(bare, windows), encoder_features(encoder, windows, [LAYERS]), strict=True
    )
    for one, other in pairs:
        np.testing.assert_allclose(one, other, atol=1e-6)
    with pytest.raises(ValueError, match="hidden_states=True"):
        encoder_features(bare, windows, [-2])


def test_an_encoder_is_compiled_once_and_let_go(windows):
    encoder = make_encoder()
    for _ in range(2):
        for pooling in (None, "mean"):
            list(encoder_features(encoder, windows[:3], pooling=pooling))
    assert len(_feature_models[encoder]) == 2
    # Weights that are changed meanwhile count.
    (before,) = encoder_features(encoder, windows[:1])
    encoder.set_weights([2 * weight for weight in encoder.get_weights()])
    (after,) = encoder_features(encoder, windows[:1])
    assert np.abs(before - after).max() > 0.1
    reference = weakref.ref(encoder)
    del encoder
    gc.collect()
    assert reference() is None


def test_texts_are_read_as_they_are_needed(encoder, windows, monkeypatch):
    """What waits is bounded by texts and by bytes of results."""
    read = []

    def reading():
        for i, window in enumerate(windows):
            read.append(i)
            yield window

    def read_at_first(**arguments):
        read.clear()
        next(encoder_features(encoder, reading(), batch_size=3, **arguments))
        return len(read)

    monkeypatch.setattr(feature_extraction, "_CHUNK_BATCHES", 5)
    assert read_at_first() == 5 * 3 + 1
    monkeypatch.setattr(feature_extraction, "_CHUNK_BYTES", 4 * 22 * 7)
    assert read_at_first() == 3 + 1  # a batch is never cut
    assert read_at_first(pooling="mean") == 7 + 1
    assert read_at_first(pooling="mean", layers=[-1, -2]) == 3 + 1


def test_float16(encoder, windows):
    for one, other in zip(
        encoder_features(encoder, windows, dtype="float16"),
        encoder_features(encoder, windows),
        strict=True,
    ):
        assert one.dtype == np.float16
        np.testing.assert_array_equal(one, other.astype(np.float16))
    large = make_encoder()
    norm = next(w for w in large.weights if w.path.endswith("layer_2/output/LayerNorm/gamma"))
    norm.assign(np.full(norm.shape, 1e5, np.float32))
    with pytest.raises(ValueError, match="text 0: .* does not fit float16; use float32"):
        list(encoder_features(large, windows[:1], dtype="float16"))


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (TokenWindow([]), "text 1: expected 1 to 41 tokens .*, got 0"),
        (TokenWindow([1] * 42), "text 1: expected 1 to 41 tokens .*, got 42"),
        (TokenWindow([1, 97]), "text 1: expected ids of 0 to 96 .*, got 1 to 97"),
        (TokenWindow([-1, 3]), "text 1: expected ids of 0 to 96 .*, got -1 to 3"),
        (TokenWindow([1, 2], [0]), "text 1: expected 2 segment ids, got 1"),
    ],
)
def test_bad_texts(encoder, window, message):
    with pytest.raises(ValueError, match=message):
        list(encoder_features(encoder, [TokenWindow([1]), window]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": []}, "layers: expected at least one"),
        ({"layers": [4]}, "layers: expected -4 to 3 .*, got 4"),
        ({"layers": [-5]}, "layers: expected -4 to 3 .*, got -5"),
        ({"pooling": "sum"}, "pooling: expected one of mean, cls, max, got 'sum'"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"dtype": "int8"}, "dtype: expected one of float32, float16, got 'int8'"),
    ],
)
def test_bad_arguments_are_refused_at_once(encoder, arguments, message):
    with pytest.raises(ValueError, match=message):
        encoder_features(encoder, [TokenWindow([1])], **arguments)


def test_another_model_is_refused():
    inputs = keras.Input((3,))
    with pytest.raises(ValueError, match="expected a model of bert_tf"):
        encoder_features(keras.Model(inputs, keras.layers.Dense(2)(inputs)), [TokenWindow([1])])


# The cache


def test_stored_features_are_computed_once(encoder, windows, tmp_path, monkeypatch):
    texts = []
    arguments = {"batch_size": 7, "on_text": lambda: texts.append(0)}
    first = stored_features(tmp_path / "c", encoder, windows, [0, -1], **arguments)
    assert first.computed and first.layers == (0, LAYERS)
    assert len(first) == len(texts) == len(windows)
    for i, values in enumerate(encoder_features(encoder, windows, [0, -1], dtype="float16")):
        assert first[i].dtype == np.float16 and isinstance(first[i], np.memmap)
        np.testing.assert_allclose(first[i], values, atol=2e-3)
    with pytest.raises(IndexError, match="text 53"):
        first[len(windows)]
    monkeypatch.setattr(feature_extraction, "encoder_features", None)
    again = stored_features(tmp_path / "c", encoder, windows, [0, LAYERS])
    assert not again.computed
    np.testing.assert_array_equal(again.values, first.values)
    (folder,) = (tmp_path / "c").iterdir()
    assert json.loads((folder / "features.json").read_text()) == {
        "layers": [0, LAYERS],
        "dtype": "float16",
        "texts": len(windows),
    }


def test_the_fingerprint_is_of_everything_that_counts(encoder, windows):
    windows = windows[:5]

    def of(encoder=encoder, windows=windows, layers=(-1,), dtype="float16"):
        return features_fingerprint(encoder, windows, layers, dtype)

    ids, segments = list(windows[1].input_ids), list(windows[1].segment_ids)
    other_ids, other_segments = [ids[0] ^ 1, *ids[1:]], [1 - segments[0], *segments[1:]]
    joined = [TokenWindow([*windows[0].input_ids, *windows[3].input_ids])]
    parted = [TokenWindow(windows[0].input_ids), TokenWindow(windows[3].input_ids)]
    changed = make_encoder()
    changed.set_weights(encoder.get_weights())
    assert of(changed) == of()  # of contents alone
    weight = next(w for w in changed.weights if w.path.endswith("layer_1/output/dense/bias"))
    weight.assign(weight + 1e-3)
    relu = small_config(num_hidden_layers=LAYERS, hidden_act="relu")
    relu = bert_tf.bert_encoder(relu, hidden_states=True)
    relu.set_weights(encoder.get_weights())
    assert of(layers=(LAYERS,)) == of()
    assert of(windows=[TokenWindow([5, 7])]) == of(windows=[TokenWindow((5, 7), np.array([0, 0]))])
    all_of_them = [
        of(),
        of(changed),
        of(relu),
        of(layers=(-2,)),
        of(layers=(-1, -2)),
        of(layers=(-2, -1)),
        of(dtype="float32"),
        of(windows=windows[:4]),
        of(windows=windows[::-1]),
        of(windows=[windows[0], TokenWindow(other_ids, segments), *windows[2:]]),
        of(windows=[windows[0], TokenWindow(ids, other_segments), *windows[2:]]),
        of(windows=joined),
        of(windows=parted),
    ]
    assert len(set(all_of_them)) == len(all_of_them)


def test_what_is_half_written_is_not_seen(encoder, windows, tmp_path):
    class Stop(Exception):
        pass

    done = []

    def stop():
        done.append(0)
        if len(done) == 11:
            names = [p.name for p in tmp_path.iterdir()]
            assert len(names) == 1 and names[0].startswith(".tmp-")
            raise Stop

    with pytest.raises(Stop):
        stored_features(tmp_path, encoder, windows, [-1], on_text=stop)
    assert not list(tmp_path.iterdir())
    assert stored_features(tmp_path, encoder, windows, [-1]).computed


@pytest.mark.parametrize("size", [0, 90, 4096])
def test_what_was_cut_off_is_computed_again(encoder, windows, tmp_path, size):
    whole = np.array(stored_features(tmp_path, encoder, windows, [-1]).values)
    (folder,) = tmp_path.iterdir()
    os.truncate(folder / "values.npy", size)
    again = stored_features(tmp_path, encoder, windows, [-1])
    assert again.computed
    np.testing.assert_array_equal(again.values, whole)


def test_another_process_may_be_faster(encoder, windows, tmp_path):
    done = []

    def meanwhile():
        if not done:
            done.append(0)
            assert stored_features(tmp_path, encoder, windows, [-1]).computed

    assert len(stored_features(tmp_path, encoder, windows, [-1], on_text=meanwhile)) == 53
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("what", ["the same", "nothing that can be read"])
def test_another_process_may_be_faster_in_the_last_moment(
    encoder, windows, tmp_path, monkeypatch, what
):
    def rename(source, target):
        os.mkdir(target)
        (pathlib.Path(target) / "features.json").touch()
        if what == "the same":
            shutil.copy(source / "values.npy", target)
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(os, "rename", rename)
    if what == "the same":
        assert len(stored_features(tmp_path, encoder, windows, [-1])) == 53
    else:
        with pytest.raises(OSError, match="what was just written there cannot be read"):
            stored_features(tmp_path, encoder, windows, [-1])
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_get_its_name_is_an_error_and_nothing_is_left(
    encoder, windows, tmp_path, monkeypatch
):
    def rename(source, target):
        raise PermissionError(errno.EACCES, "Permission denied", target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(PermissionError, match="Permission denied"):
        stored_features(tmp_path, encoder, windows, [-1])
    assert not list(tmp_path.iterdir())


def test_no_texts(encoder, tmp_path):
    assert list(encoder_features(encoder, [])) == []
    with pytest.raises(ValueError, match="windows: expected at least one text"):
        stored_features(tmp_path, encoder, [], [-1])
