"""Make lamb.npz: run TF Model Garden's LAMB on the problem of make_golden.py.

    pip install --no-deps tf_keras
    python tests/golden/optimization/make_lamb_golden.py \
        --lamb=<checkout of tensorflow/models>/official/modeling/optimization/lamb.py

Gradients are made dense and clipped by `tf.clip_by_global_norm` first, as its training does.
"""

import argparse
import importlib.util
import pathlib

import make_golden
import numpy as np
import tensorflow as tf


def load_lamb(path):
    """Import the file."""
    spec = importlib.util.spec_from_file_location("lamb", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LAMB


def rate_of(step):
    """Return the learning rate of a step, from 0: the original's, with INIT_LR as the peak."""
    if step < make_golden.NUM_WARMUP_STEPS:
        return make_golden.INIT_LR * step / make_golden.NUM_WARMUP_STEPS
    done = min(step, make_golden.NUM_TRAIN_STEPS) / make_golden.NUM_TRAIN_STEPS
    return make_golden.INIT_LR * (1 - done)


def run(lamb):
    """Return {"<step>:<variable name or slot>": value} for KEPT_STEPS."""
    weights, steps = make_golden.make_problem()
    variables = {name: tf.Variable(value, name=name) for name, value in weights.items()}
    optimizer = lamb(
        learning_rate=0.0,
        epsilon=1e-6,
        weight_decay_rate=0.01,
        exclude_from_weight_decay=["LayerNorm", "layer_norm", "bias"],
    )
    kept = {}
    for step, (coefficients, ids, rows) in enumerate(steps):
        gradients = {name: value.copy() for name, value in coefficients.items()}
        np.add.at(gradients[make_golden.EMBEDDING], ids, rows)
        clipped, _ = tf.clip_by_global_norm([tf.constant(g) for g in gradients.values()], 1.0)
        optimizer.learning_rate = rate_of(step)
        optimizer.apply_gradients(zip(clipped, variables.values(), strict=True))
        if step + 1 in make_golden.KEPT_STEPS:
            for name, variable in variables.items():
                kept[f"{step + 1}:{name}"] = variable.numpy()
                kept[f"{step + 1}:{name}/lamb_m"] = optimizer.get_slot(variable, "m").numpy()
                kept[f"{step + 1}:{name}/lamb_v"] = optimizer.get_slot(variable, "v").numpy()
    return kept


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lamb", required=True, help="lamb.py of TF Model Garden")
    path = pathlib.Path(__file__).with_name("lamb.npz")
    np.savez_compressed(path, **run(load_lamb(parser.parse_args().lamb)))
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
