import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf
from keras import ops

from bert_tf.config import ACTIVATIONS, BertConfig
from bert_tf.models import bert_pretrainer, layers
from bert_tf.models.dropout import dropout, dropout_keys, hash_uint32
from bert_tf.models.functional import (
    ACTIVATION_FUNCTIONS,
    attention_adder,
    attention_probabilities,
    gelu_erf,
    gelu_tanh,
    layer_norm,
)

CONFIG = BertConfig(
    vocab_size=37,
    hidden_size=14,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=19,
    max_position_embeddings=13,
    type_vocab_size=5,
)
KEY = np.array([123456789, 987654321], np.uint32)


def keys(*seed, count=1):
    return dropout_keys(np.array(seed), count)


# === Mathematics ===


def test_activations_by_their_definitions():
    x = np.linspace(-7, 7, 1009)
    tanh_form = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    expected = {
        "gelu_tanh": tanh_form,
        "gelu_erf": x * scipy.stats.norm.cdf(x),
        "relu": np.maximum(x, 0),
        "tanh": np.tanh(x),
        "linear": x,
    }
    assert set(ACTIVATION_FUNCTIONS) == set(ACTIVATIONS) == set(expected)
    for name, values in expected.items():
        result = ACTIVATION_FUNCTIONS[name](tf.constant(x, tf.float32))
        np.testing.assert_allclose(result, values, atol=1e-6, err_msg=name)
    difference = abs(expected["gelu_tanh"] - expected["gelu_erf"]).max()
    assert 1e-4 < difference < 5e-4  # They can be told apart.


def test_gelu_keeps_low_precision():
    for function in (gelu_tanh, gelu_erf):
        assert function(tf.constant([1.0], tf.bfloat16)).dtype == tf.bfloat16


def test_layer_norm_is_float32_with_a_tiny_epsilon():
    rng = np.random.default_rng(5)
    x = rng.normal(3, 1e-3, (7, 17)).astype(np.float16)
    gamma, beta = rng.normal(1, 0.3, (2, 17)).astype(np.float32)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True) * gamma + beta
    result = layer_norm(tf.constant(x), gamma, beta, 1e-12)
    assert result.dtype == tf.float32
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    # In float16 the epsilon is 0, and a constant row gives NaN instead of beta.
    constant = layer_norm(tf.ones((1, 17), tf.float16), gamma, beta, 1e-12)
    np.testing.assert_allclose(constant[0], beta)


def test_attention_adder():
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    adder = attention_adder(mask)
    assert adder.shape == (2, 1, 1, 3)
    np.testing.assert_array_equal(adder[:, 0, 0], [[0, 0, -10000], [0, -10000, -10000]])
    causal = attention_adder(mask, 3, left_to_right=True)
    assert causal.shape == (2, 1, 3, 3)
    expected = np.where(np.tril(np.ones((3, 3))) * [1, 1, 0], 0, -10000)
    np.testing.assert_array_equal(causal[0, 0], expected)


def test_attention_adder_of_several_sequences_a_row():
    mask, ids = np.array([[1, 1, 1, 1, 0]]), np.array([[1, 1, 2, 2, 0]])
    blocks = np.zeros((5, 5))
    blocks[:2, :2] = blocks[2:4, 2:4] = 1
    adder = attention_adder(mask, sequence_ids=ids)
    assert adder.shape == (1, 1, 5, 5)
    np.testing.assert_array_equal(adder[0, 0], np.where(blocks, 0, -10000))
    causal = attention_adder(mask, 5, left_to_right=True, sequence_ids=ids)
    np.testing.assert_array_equal(causal[0, 0], np.where(np.tril(blocks), 0, -10000))


def test_attention_probabilities_by_definition():
    rng = np.random.default_rng(6)
    query = rng.normal(size=(2, 3, 5, 7)).astype(np.float32)  # B F N H
    key = rng.normal(size=(2, 11, 5, 7)).astype(np.float32)
    mask = np.ones((2, 11), np.int32)
    mask[1, 4:] = 0
    expected = np.zeros((2, 5, 3, 11))
    for b, n, f in np.ndindex(2, 5, 3):
        scores = key[b, :, n] @ query[b, f, n] / np.sqrt(7)
        expected[b, n, f] = scipy.special.softmax(np.where(mask[b], scores, -np.inf))
    result = attention_probabilities(tf.constant(query), tf.constant(key), attention_adder(mask))
    np.testing.assert_allclose(result, expected, atol=1e-6)
    assert (result.numpy()[1, :, :, 4:] == 0).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_softmax_of_low_precision_is_computed_in_float32(dtype):
    """Probabilities of 1009 equal keys sum to 1; in bfloat16 each would be off by up to 0.4%."""
    ones = tf.ones((1, 1, 1, 4), dtype)
    result = attention_probabilities(
        ones, tf.ones((1, 1009, 1, 4), dtype), attention_adder(np.ones((1, 1009), np.int32))
    )
    assert result.dtype == tf.float32
    np.testing.assert_allclose(result, np.full((1, 1, 1, 1009), 1 / 1009), rtol=1e-6)
    # Scores whose distance is below the steps that the type has beside the adder of masked keys.
    key = tf.cast(tf.reshape([0.0, 1.0], (1, 2, 1, 1)), dtype)
    result = attention_probabilities(
        tf.ones((1, 1, 1, 1), dtype), key, attention_adder(np.zeros((1, 2), np.int32))
    )
    np.testing.assert_allclose(result[0, 0, 0], scipy.special.softmax([0, 1.0]), atol=1e-3)


def test_rows_whose_keys_are_all_masked_still_attend_by_score():
    """The original adds -10000, not minus infinity: the softmax of such a row is not uniform."""
    query = tf.constant(np.ones((1, 1, 1, 4), np.float32))
    key = tf.constant(np.array([[0.0, 1.0]], np.float32)[:, :, None, None] * np.ones((1, 1, 1, 4)))
    result = attention_probabilities(
        query, tf.cast(key, tf.float32), attention_adder(np.zeros((1, 2)))
    )
    expected = scipy.special.softmax([0, 2.0])
    # Coarse: near -10000 float32 steps are 0.001.
    np.testing.assert_allclose(result[0, 0, 0], expected, atol=1e-3)


# === Dropout ===


def reference_hash(x, key):
    """Return the hash in NumPy's own uint32 arithmetic."""
    x = np.asarray(x, np.uint32) ^ key[0]
    x = x ^ (x >> np.uint32(17))
    x = x * np.uint32(0xED5AD4BB)
    x = x ^ key[1]
    x = x ^ (x >> np.uint32(11))
    x = x * np.uint32(0xAC4C1B51)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x31848BAB)
    return x ^ (x >> np.uint32(14))


@pytest.mark.parametrize("jit_compile", [None, False, True])
def test_hash_is_the_same_eagerly_in_graphs_and_compiled(jit_compile):
    x = np.random.default_rng(0).integers(0, 2**32, 1009).astype(np.uint32)

    def function():
        return hash_uint32(tf.constant(x), tf.constant(KEY))

    if jit_compile is not None:
        function = tf.function(function, jit_compile=jit_compile)
    np.testing.assert_array_equal(function(), reference_hash(x, KEY))


def test_hash_has_avalanche():
    """Each bit of the counter and of the key flips each bit of the result half the time."""
    rng = np.random.default_rng(1)
    x = rng.integers(0, 2**32, 40009).astype(np.uint32)
    base = reference_hash(x, KEY)
    for source in range(3):
        for bit in range(32):
            flip = np.uint32(1 << bit)
            changed_key = KEY.copy()
            if source:
                changed_key[source - 1] ^= flip
            changed = reference_hash(x if source else x ^ flip, changed_key)
            difference = base ^ changed
            flipped = [(difference >> np.uint32(b) & 1).mean() for b in range(32)]
            # The second word of the key sees two rounds out of three. Keys are hashes themselves,
            # and never differ in one bit alone.
            tolerance = 0.06 if source == 2 else 0.02
            assert np.abs(np.array(flipped) - 0.5).max() < tolerance, (source, bit)


def test_dropout_keeps_mean_and_rate():
    x = tf.ones((499, 1009))
    for rate in (0.1, 0.5):
        y = dropout(x, rate, keys(1, 2)[0]).numpy()
        count = y.size
        assert set(np.unique(y)) == {0, np.float32(1 / (1 - rate))}
        deviation = np.sqrt(rate * (1 - rate) / count)
        assert abs((y == 0).mean() - rate) < 4 * deviation
        assert abs(y.mean() - 1) < 4 * deviation / (1 - rate)


def test_dropout_counts_vary_like_coins_between_keys():
    """Masks of different keys are not reorderings of one: their counts scatter as they should."""
    rate, size = 0.1, 2**14  # A power of two would show it.
    counts = [
        int((dropout(tf.ones(size), rate, key).numpy() == 0).sum()) for key in keys(3, 5, count=211)
    ]
    ratio = np.var(counts) / (size * rate * (1 - rate))
    assert 0.6 < ratio < 1.5
    assert abs(np.mean(counts) - size * rate) < 4 * np.sqrt(size * rate * (1 - rate) / 211)


def correlation(a, b):
    return abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) * np.sqrt(a.size)


def mask(key, shape=(257, 1024), rate=0.1):
    return (dropout(tf.ones(shape), rate, key).numpy() == 0).astype(np.float64)


def test_dropout_is_independent_between_positions():
    m = mask(keys(7, 11)[0])
    for shift in (1, 2, 3, 4, 16, 64, 128, 256, 512):
        assert correlation(m[:, shift:], m[:, :-shift]) < 4.5, shift
    for shift in (1, 2, 4, 128):
        assert correlation(m[shift:], m[:-shift]) < 4.5, shift
    # Rows and columns have the spread of independent coins.
    for axis in (0, 1):
        counts = m.sum(axis)
        assert 0.75 < np.var(counts) / (m.shape[axis] * 0.1 * 0.9) < 1.3


def test_dropout_is_independent_between_sites_calls_and_seeds():
    sites = keys(7, 11, count=5)
    base = mask(sites[0])
    others = [*(mask(key) for key in sites[1:])]
    for seed in [(7, 12), (7, 13), (8, 11), (7, 11 + 2**16), (7 + 2**20, 11), (11, 7)]:
        others.append(mask(keys(*seed)[0]))
    for other in others:
        assert 0 < correlation(base, other) < 4.5
        # Nor is one a shift of the other.
        assert correlation(base[:, 1:], other[:, :-1]) < 4.5


def test_dropout_keys_differ():
    """Neighbouring seeds and counters share no word of any key."""
    draw = tf.function(lambda seed: dropout_keys(seed, 13))
    seeds = [(seed, counter) for seed in range(29) for counter in range(31)]
    words = np.concatenate([draw(tf.constant(seed)).numpy().ravel() for seed in seeds])
    expected = 29 * 31 * 26
    # Words are 32 bits: a few coincide by chance (0.06 expected), whole keys never.
    assert len(np.unique(words)) >= expected - 2


def test_keys_and_masks_by_their_definition():
    """A run of yesterday continues to the same bits today: every number of the draw is fixed."""
    seed, count = np.array([7, 2**32 - 11], np.uint32), 5
    second = reference_hash(seed[1:], np.array([seed[0], 0x9E3779B9], np.uint32))
    first = reference_hash(seed[:1], np.array([second[0], 0x85EBCA6B], np.uint32))
    words = reference_hash(np.arange(2 * count), np.concatenate([first, second]))
    np.testing.assert_array_equal(dropout_keys(seed, count), words.reshape(count, 2))
    # An element is dropped where the hash of its number is below the rate, in 32 bits.
    bits = reference_hash(np.arange(7 * 11), words[:2]).reshape(7, 11)
    for threshold in (429496730, int(bits[3, 5]), int(bits[3, 5]) + 1):
        kept = (bits >= threshold).astype(np.float32)
        rate = threshold / 2**32
        expected = kept * np.float32(1 / (1 - rate))
        np.testing.assert_array_equal(dropout(tf.ones((7, 11)), rate, words[:2]), expected)


def test_dropout_gradient_is_the_mask():
    x = tf.ones((7, 11))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = dropout(x, 0.3, keys(1, 1)[0])
    np.testing.assert_array_equal(tape.gradient(y, x), y)


def test_no_dropout_without_key_or_rate():
    x = tf.ones((3,))
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, keys(1, 1)[0]) is x


# === Layers ===


def test_kernels_are_truncated_at_two_deviations():
    keras.utils.set_random_seed(1)
    layer = layers.Embeddings(BertConfig(vocab_size=1009, hidden_size=128, num_attention_heads=2))
    layer.build()
    for variable in layer.trainable_variables:
        values = variable.numpy()
        if variable.name in ("gamma", "beta"):
            assert (values == (variable.name == "gamma")).all()
            continue
        assert np.abs(values).max() <= 0.04 + 1e-7
        if values.size > 10000:
            # Of a normal with deviation 0.02, cut off at two of them.
            assert abs(values.std() - 0.0176) < 2e-4
            assert abs(values.mean()) < 3e-4


def test_no_two_variables_start_alike():
    keras.utils.set_random_seed(1)
    layer = layers.SelfAttention(CONFIG)
    layer.build()
    assert not np.allclose(layer.query.kernel, layer.key.kernel)


def test_embeddings_by_definition():
    keras.utils.set_random_seed(2)
    layer = layers.Embeddings(CONFIG)
    layer.build()
    rng = np.random.default_rng(0)
    ids, segments = rng.integers(0, 37, (3, 7)), rng.integers(0, 5, (3, 7))
    words, segment_table, positions = (
        v.numpy()
        for v in (layer.word_embeddings, layer.token_type_embeddings, layer.position_embeddings)
    )
    total = words[ids] + segment_table[segments] + positions[:7]
    expected = (total - total.mean(-1, keepdims=True)) / total.std(-1, keepdims=True)
    result = layer(ids, segments)
    assert result.shape == (21, 14)
    np.testing.assert_allclose(ops.reshape(result, (3, 7, 14)), expected, atol=1e-4)


def test_too_long_sequences_are_refused():
    layer = layers.Embeddings(CONFIG)
    ids = np.zeros((2, 17), np.int32)
    with pytest.raises(ValueError, match="17 positions.*max_position_embeddings.*13"):
        layer(ids, ids)


def test_layers_want_a_config():
    with pytest.raises(ValueError, match="BertConfig, got dict"):
        layers.Encoder({"vocab_size": 3})
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got 1"):
        layers.Dropout(1)


@pytest.mark.parametrize(
    "layer_class",
    [
        layers.LayerNorm,
        layers.Embeddings,
        layers.SelfAttention,
        layers.ResidualOutput,
        layers.Attention,
        layers.Intermediate,
        layers.TransformerLayer,
        layers.Encoder,
        layers.Pooler,
    ],
)
def test_layers_are_serialisable(layer_class):
    layer = layer_class(CONFIG, name="x", dtype="mixed_bfloat16")
    copy = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(copy) is layer_class
    assert copy.config == CONFIG
    assert copy.name == "x"
    assert copy.dtype_policy.name == "mixed_bfloat16"


def test_attention_hides_padding_keys_but_not_padding_queries():
    keras.utils.set_random_seed(3)
    layer = layers.Attention(CONFIG)
    layer.build()
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2 * 5, 14)).astype(np.float32)
    mask_ = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    out, probabilities = layer(rows, attention_adder(mask_))
    changed = rows.copy()
    changed[8:] += rng.normal(size=(2, 14))  # The padding of the second sequence.
    out_changed, _ = layer(changed, attention_adder(mask_))
    np.testing.assert_array_equal(out[:8], out_changed[:8])
    assert (probabilities.numpy()[1, :, :, 3:] == 0).all()
    np.testing.assert_allclose(probabilities.numpy().sum(-1), 1, rtol=1e-6)
    assert (np.abs(out[8:] - out_changed[8:]) > 1e-3).any()


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_bias_has_the_gradient_of_all_rows(policy):
    """In bfloat16 TensorFlow's kernel for CPUs (BiasAddGrad) says 256 of these."""
    dense = keras.layers.Dense(3, dtype=policy)
    dense.build((None, 2))
    with tf.GradientTape() as tape:
        rows = layers.project(dense, tf.ones([4096, 2]))
        total = tf.reduce_sum(tf.cast(rows, tf.float32))
    assert rows.dtype == dense.compute_dtype
    np.testing.assert_array_equal(tape.gradient(total, dense.bias), [4096] * 3)


def test_no_bias_of_a_model_is_summed_in_bfloat16():
    model = bert_pretrainer(CONFIG, dtype="mixed_bfloat16")

    @tf.function
    def gradients(inputs):
        with tf.GradientTape() as tape:
            outputs = model(inputs, training=True)
            total = tf.add_n([tf.reduce_sum(tf.cast(x, tf.float32)) for x in outputs.values()])
        return tape.gradient(total, model.trainable_variables)

    inputs = {x.name: tf.ones([2, *(n or 5 for n in x.shape[1:])], x.dtype) for x in model.inputs}
    graph = gradients.get_concrete_function(inputs).graph.as_graph_def()
    names = {node.op for node in graph.node}
    names |= {node.op for function in graph.library.function for node in function.node_def}
    assert "MatMul" in names and "BiasAddGrad" not in names
