"""Five steps of `fit` on JAX, on one device or split over a mesh, also as one of two processes.

    python -m tests.support.jax_devices FOLDER CASE...
    python -m tests.support.jax_devices FOLDER CASE --processes=2 --process=0 --address=HOST:PORT
    python -m tests.support.jax_devices FOLDER CASE --orbax=3

Results go to FOLDER/CASE.npz; the initial values of all are those of the first run in FOLDER. With
--orbax a first run ends after so many steps, with a checkpoint in FOLDER/orbax; the next goes on
from there.
"""

import argparse
import os
import pathlib
import subprocess
import sys

import numpy as np

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
DEVICES = 8
ALL = slice(None)
STEPS, BATCH, LENGTH, PREDICTIONS = 5, 16, 11, 3
# Case -> shape of the mesh: ("data",) or ("data", "model").
CASES = {"one": (), "data": (8,), "model": (2, 4)}
SIZES = {
    "vocab_size": 37,
    "hidden_size": 4 * 7,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 4 * 19,
    "max_position_embeddings": 13,
    "initializer_range": 0.2,
}


def start(folder, cases, processes=1, process=0, address="", orbax=0):
    """Start a process of its own, which has its part of the devices; return it."""
    options = [f"--processes={processes}", f"--process={process}", f"--address={address}"]
    options += [f"--orbax={orbax}"]
    devices = f"--xla_force_host_platform_device_count={DEVICES // processes}"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.jax_devices", str(folder), *cases, *options],
        cwd=REPOSITORY,
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices},
    )


def distribution_of(case):
    """Return Keras' distribution of a case, None for one device."""
    import keras

    from bert_tf.config import BertConfig
    from bert_tf.models import layout_map

    shape = CASES[case]
    if not shape:
        return None
    devices = keras.distribution.list_devices()[: int(np.prod(shape))]
    mesh = keras.distribution.DeviceMesh(shape, ("data", "model")[: len(shape)], devices)
    if len(shape) == 1:
        return keras.distribution.DataParallel(mesh, auto_shard_dataset=False)
    layouts = layout_map(BertConfig(**SIZES), mesh)
    return keras.distribution.ModelParallel(layout_map=layouts, auto_shard_dataset=False)


def make_models():
    """Return the compiled pre-trainer, with dropout, and an encoder."""
    import keras

    from bert_tf.config import BertConfig
    from bert_tf.models.encoder import bert_encoder
    from bert_tf.models.task_models import bert_pretrainer
    from bert_tf.training.objectives import pretraining_compile_arguments
    from bert_tf.training.optimizers import create_optimizer

    keras.utils.set_random_seed(3)
    config = BertConfig(**SIZES)
    model = bert_pretrainer(config)
    model.compile(create_optimizer(1e-3, 17, 2), pretraining_compile_arguments(config)["loss"])
    return model, bert_encoder(config)


def make_batch(step, rows):
    """Return inputs, labels and weights: some rows of a batch."""
    rng = np.random.default_rng(step)
    inputs = {
        "input_ids": rng.integers(0, 37, (BATCH, LENGTH)),
        "input_mask": np.arange(LENGTH) < rng.integers(3, LENGTH + 1, (BATCH, 1)),
        "segment_ids": rng.integers(0, 2, (BATCH, LENGTH)),
        "masked_lm_positions": rng.integers(0, LENGTH, (BATCH, PREDICTIONS)),
    }
    labels = {
        "masked_lm_logits": rng.integers(0, 37, (BATCH, PREDICTIONS)),
        "next_sentence_logits": rng.integers(0, 2, (BATCH, 1)),
    }
    weights = {
        "masked_lm_logits": rng.integers(0, 2, (BATCH, PREDICTIONS)),
        "next_sentence_logits": np.ones((BATCH, 1)),
    }
    kinds = (np.int32, np.int32, np.float32)
    return tuple(
        {name: value[rows].astype(kind) for name, value in part.items()}
        for kind, part in zip(kinds, (inputs, labels, weights), strict=True)
    )


def whole(value):
    """Return an array of which each process has a part."""
    from jax.experimental import multihost_utils

    if value.is_fully_addressable:
        return np.asarray(value)
    return np.asarray(multihost_utils.process_allgather(value, tiled=True))


def initial_models(folder):
    """Return the pre-trainer and the encoder with the values that all cases begin with."""
    model, encoder = make_models()
    begin = folder / "initial.npz"
    if not begin.exists():
        np.savez(begin, **{v.path: np.asarray(v.value) for v in model.variables})
    with np.load(begin) as initial:
        for variable in (*model.variables, *encoder.variables):
            variable.assign(initial[variable.path])
    return model, encoder


def fit(model, steps, rows, callbacks=()):
    """Train; return losses, variables, and the share of each that a device holds."""
    import keras

    losses = []
    log = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: losses.append(logs))
    batches = (make_batch(step, rows) for step in steps)
    arguments = {"shuffle": False, "verbose": 0, "callbacks": [log, *callbacks]}
    model.fit(batches, steps_per_epoch=len(steps), **arguments)
    results = {"losses": np.array([float(line["loss"]) for line in losses])}
    for variable in (*model.variables, *model.optimizer.variables):
        value = variable.value
        held = np.prod(value.sharding.shard_shape(value.shape)) / max(1, np.prod(value.shape))
        results |= {variable.path: whole(value), f"held/{variable.path}": np.array(held)}
    return results


def run(folder, case, rows):
    """Train all steps; return what `fit` does, and an encoding."""
    import keras

    keras.distribution.set_distribution(distribution_of(case))
    model, encoder = initial_models(folder)
    results = {}
    if rows == ALL:  # of several processes none has all that the encoder gives
        encoded = encoder.predict_on_batch(
            {name: value for name, value in make_batch(0, rows)[0].items() if "masked" not in name}
        )
        results |= {f"encoder/{name}": np.asarray(value) for name, value in encoded.items()}
    return results | fit(model, range(STEPS), rows)


def run_with_orbax(folder, case, rows, steps):
    """Train the first steps and keep a checkpoint, or where there is one, the rest from it."""
    import keras

    keras.distribution.set_distribution(distribution_of(case))
    checkpoints = folder / "orbax"
    if checkpoints.exists():
        model = keras.saving.load_model(checkpoints)
        return fit(model, range(steps, STEPS), rows)
    model, _ = initial_models(folder)
    callback = keras.callbacks.OrbaxCheckpoint(str(checkpoints))
    return fit(model, range(steps), rows, [callback])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--address")
    parser.add_argument("--orbax", type=int, default=0)
    options = parser.parse_args()
    rows = ALL
    if options.processes > 1:
        import keras

        keras.distribution.initialize(options.address, options.processes, options.process)
        part = BATCH // options.processes
        rows = slice(options.process * part, (options.process + 1) * part)
    for case in options.cases:
        if options.orbax:
            results = run_with_orbax(options.folder, case, rows, options.orbax)
        else:
            results = run(options.folder, case, rows)
        if options.process == 0:
            np.savez(options.folder / f"{case}.npz", **results)


if __name__ == "__main__":
    main()
