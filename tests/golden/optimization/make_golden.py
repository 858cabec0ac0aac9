"""Make original.npz: run the original optimizer for 50 steps and keep what became of the weights.

    python tests/golden/optimization/make_golden.py --bert=<checkout of google-research/bert>

The problem (`make_problem`) is a loss that is linear in the weights, with fed coefficients, so that
any implementation gets the same gradients without sharing a model. Shapes are distinct primes; some
steps have gradients below the clipping norm and some above; word ids repeat within a step.
"""

import argparse
import importlib.util
import pathlib
import sys

import numpy as np

NUM_STEPS, NUM_TRAIN_STEPS, NUM_WARMUP_STEPS, INIT_LR = 50, 47, 13, 0.01
KEPT_STEPS = (1, 2, 3, 13, 14, 29, 50)  # Counted from 1; after the 14th the rate has jumped.
EMBEDDING = "bert/embeddings/word_embeddings"
SHAPES = {
    EMBEDDING: (11, 5),
    "bert/embeddings/LayerNorm/gamma": (5,),
    "bert/encoder/layer_0/attention/self/query/kernel": (5, 7),
    "bert/encoder/layer_0/attention/self/query/bias": (7,),
    "cls/predictions/output_bias": (11,),
    "cls/seq_relationship/output_weights": (2, 5),
}
NUM_IDS = 17


def make_problem():
    """Return (initial weights by name, a list of steps of (coefficients by name, ids, rows)).

    The loss of a step is the sum over names of sum(weights * coefficients), plus the sum of
    `rows` * the embeddings looked up at `ids`.
    """
    rng = np.random.default_rng(2018)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    steps = []
    for step in range(NUM_STEPS):
        scale = 0.02 if step % 3 == 1 else 1.0
        coefficients = {
            name: (scale * rng.normal(size=shape)).astype(np.float32)
            for name, shape in SHAPES.items()
        }
        ids = rng.integers(0, SHAPES[EMBEDDING][0], NUM_IDS).astype(np.int32)
        rows = (scale * rng.normal(size=(NUM_IDS, SHAPES[EMBEDDING][1]))).astype(np.float32)
        steps.append((coefficients, ids, rows))
    return weights, steps


def load_original(checkout):
    """Import `optimization.py` of the checkout, with TensorFlow's version 1 as its `tensorflow`."""
    import tensorflow.compat.v1 as tf

    tf.disable_eager_execution()
    spec = importlib.util.spec_from_file_location(
        "original_optimization", pathlib.Path(checkout) / "optimization.py"
    )
    module = importlib.util.module_from_spec(spec)
    real = sys.modules["tensorflow"]
    sys.modules["tensorflow"] = tf
    try:
        spec.loader.exec_module(module)
    finally:
        sys.modules["tensorflow"] = real
    return tf, module


def run_original(checkout):
    """Return {step: {variable name, with its slots: value}} for KEPT_STEPS."""
    tf, original = load_original(checkout)
    weights, steps = make_problem()
    variables, fed = {}, {}
    for name, value in weights.items():
        variables[name] = tf.get_variable(name, initializer=value, use_resource=False)
        fed[name] = tf.placeholder(tf.float32, value.shape)
    ids = tf.placeholder(tf.int32, (NUM_IDS,))
    rows = tf.placeholder(tf.float32, (NUM_IDS, SHAPES[EMBEDDING][1]))
    looked_up = tf.matmul(tf.one_hot(ids, SHAPES[EMBEDDING][0]), variables[EMBEDDING])
    loss = tf.reduce_sum(looked_up * rows)
    for name, variable in variables.items():
        loss += tf.reduce_sum(variable * fed[name])
    train_op = original.create_optimizer(loss, INIT_LR, NUM_TRAIN_STEPS, NUM_WARMUP_STEPS, False)
    kept = {}
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        everything = {v.name.removesuffix(":0"): v for v in tf.global_variables()}
        del everything["global_step"]
        for step, (coefficients, ids_value, rows_value) in enumerate(steps, start=1):
            feed = {fed[name]: value for name, value in coefficients.items()}
            session.run(train_op, {**feed, ids: ids_value, rows: rows_value})
            if step in KEPT_STEPS:
                kept[step] = session.run(everything)
    return kept


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bert", required=True, help="checkout of google-research/bert")
    kept = run_original(parser.parse_args().bert)
    arrays = {
        f"{step}:{name}": value for step, values in kept.items() for name, value in values.items()
    }
    path = pathlib.Path(__file__).with_name("original.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
