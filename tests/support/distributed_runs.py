"""Short training runs on one device, several or several hosts, also as a program of its own.

    python -m tests.support.distributed_runs '{"strategy": "mirrored", "replicas": 2, ...}'

TensorFlow divides its CPU, and joins a cluster, only before anything else has run, so the tests of
these need fresh processes.
"""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BATCH = 20  # 2 replicas x 2 accumulation steps x 5
STEPS = 5


@dataclasses.dataclass(frozen=True)
class Case:
    """One run."""

    precision: str = "float32"
    accumulation: int = 1
    jit_compile: bool = False
    normalization: str = "global"
    dropout: float = 0.0
    steps: int = STEPS
    save_steps: int | None = None
    poison: bool = False  # large gradients of the last row of the second batch alone
    initial_scale: float = 2.0**10
    ema_momentum: float | None = None
    is_scale_seen: bool = False  # neither clipping nor Adam hides the scale of the gradients
    evaluate: bool = True
    length_bins: int = 0
    sequences_per_row: int | None = None
    batch_tokens: int | None = None  # of batches of a multiple of four rows
    fit: bool = False  # Keras' own loop, with this package's losses and optimizer

    @property
    def name(self) -> str:
        changed = [
            f"{f.name}-{getattr(self, f.name)}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        ]
        return "_".join(changed) or "plain"


def make_trainer(case: Case, folder: pathlib.Path, strategy=None):
    import contextlib

    import keras

    from bert_tf.models.task_models import bert_pretrainer
    from bert_tf.training.objectives import PretrainingObjective
    from bert_tf.training.optimizers import create_optimizer
    from bert_tf.training.options import TrainerOptions
    from bert_tf.training.trainer import Trainer
    from tests.support import synthetic_records as synthetic

    keras.utils.set_random_seed(3)
    config = synthetic.small_config(
        num_hidden_layers=1,
        hidden_dropout_prob=case.dropout,
        attention_probs_dropout_prob=case.dropout,
    )
    averaged = {} if case.ema_momentum is None else {"use_ema": True}
    if averaged:
        averaged["ema_momentum"] = case.ema_momentum
    with strategy.scope() if strategy else contextlib.nullcontext():
        packed = case.sequences_per_row is not None
        model = bert_pretrainer(config, packed=packed, dtype=case.precision)
        # A norm below that of the gradients, so that clipping before their sum would show.
        optimizer = create_optimizer(1e-3, 11, 3, clip_norm=0.5, **averaged)
        if case.is_scale_seen:
            optimizer = create_optimizer(1.0, 11, 3, clip_norm=None, epsilon=1.0)
        if case.precision == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(
                optimizer, initial_scale=case.initial_scale
            )
    return Trainer(
        model,
        optimizer,
        PretrainingObjective(),
        folder,
        TrainerOptions(
            jit_compile=case.jit_compile,
            log_steps=1,
            save_checkpoints_steps=case.save_steps,
            tensorboard=False,
            verbose=False,
            gradient_accumulation_steps=case.accumulation,
            loss_normalization=case.normalization,
        ),
        strategy=strategy,
    )


def dataset_of(case: Case, records: str, step: int = 0, is_training: bool = True):
    import tensorflow as tf

    from bert_tf.input_pipeline.pretraining import pretraining_dataset
    from tests.support.synthetic_records import LENGTH, PREDICTIONS

    dataset = pretraining_dataset(
        records,
        batch_size=None if case.batch_tokens and is_training else BATCH,
        batch_tokens=case.batch_tokens if is_training else None,
        batch_multiple=4,
        max_seq_length=LENGTH,
        max_predictions_per_seq=PREDICTIONS,
        is_training=is_training,
        fill_last_batch=True,
        seed=7,
        start_step=step,
        length_bins=case.length_bins if is_training else 0,
        sequences_per_row=case.sequences_per_row and (case.sequences_per_row if is_training else 1),
    )
    if not case.poison:
        return dataset
    last = np.zeros([BATCH, 1], np.float32)
    last[-1] = 1e3  # its gradient is so much larger than those of the other rows

    def poison(number, element):
        inputs, labels, weights = element
        extra = tf.where(tf.equal(number, 1), last, 0.0)
        name = "masked_lm_logits"
        return inputs, labels, {**weights, name: weights[name] * (1 + extra)}

    return dataset.enumerate(step).map(lambda number, *element: poison(number, element[0]))


def run(case: Case, records: str, folder: pathlib.Path, strategy=None):
    """Train from the newest checkpoint of the folder, if any; return the trainer."""
    trainer = make_trainer(case, folder, strategy)
    trainer.restore()
    rows = 0 if case.batch_tokens else BATCH
    trainer.train(
        lambda step: dataset_of(case, records, step),
        case.steps,
        sequences_per_batch=1.37 * BATCH if case.sequences_per_row else BATCH,
        rows_per_batch=rows if case.sequences_per_row or case.batch_tokens else None,
    )
    return trainer


def fit(case: Case, records: str, folder: pathlib.Path, strategy):
    """As `run`, with `keras.Model.fit`; returns the weights."""
    from bert_tf.training.objectives import pretraining_compile_arguments
    from tests.support import synthetic_records as synthetic

    trainer = make_trainer(case, folder, strategy)
    model, optimizer = trainer.model, trainer.optimizer
    optimizer.gradients_are_reduced = False  # as the Trainer found it
    with strategy.scope():
        arguments = pretraining_compile_arguments(synthetic.small_config())
        model.compile(optimizer, **arguments, jit_compile=False)
    data = dataset_of(case, records)
    model.fit(data, steps_per_epoch=case.steps, epochs=1, shuffle=False, verbose=0)
    return {f"weight/{v.path}": v.numpy() for v in model.weights}


def result_of(trainer, case: Case, records: str) -> dict[str, np.ndarray]:
    """Log of the steps, weights of the model and figures of an evaluation."""
    from bert_tf.training.log import METRICS_NAME, read_metrics

    found = {f"weight/{v.path}": v.numpy() for v in trainer.model.weights}
    figures = {}
    if case.evaluate:
        figures = trainer.evaluate(dataset_of(case, records, is_training=False))
    if trainer.is_chief:
        lines = read_metrics(trainer.output_dir / METRICS_NAME)
        for name in ("loss", "mlm_loss", "mlm_accuracy", "nsp_loss", "learning_rate"):
            found[f"log/{name}"] = np.array([line[name] for line in lines])
        found["skipped"] = np.array(trainer.skipped_steps)
    return found | {f"evaluation/{name}": np.array(value) for name, value in figures.items()}


def main(settings: dict) -> None:
    import tensorflow as tf

    from bert_tf.training import distribution

    replicas = settings["replicas"] if settings["strategy"] == "mirrored" else None
    strategy = distribution.create_strategy(
        settings["strategy"],
        num_replicas=replicas,
        all_reduce_alg=settings.get("all_reduce_alg"),
    )
    assert distribution.num_replicas_of(strategy) == settings["replicas"]
    folder = pathlib.Path(settings["folder"])
    for values in settings["cases"]:
        case = Case(**values)
        if case.fit:
            found = fit(case, settings["records"], folder / case.name, strategy)
            np.savez(folder / f"{case.name}.npz", **found)
            continue
        trainer = run(case, settings["records"], folder / case.name, strategy)
        found = result_of(trainer, case, settings["records"])
        # Copies of a weight must not drift apart.
        for variable in trainer.model.variables if strategy else ():
            values = [x.numpy() for x in strategy.experimental_local_results(variable.value)]
            for value in values[1:]:
                np.testing.assert_array_equal(value, values[0], err_msg=variable.path)
        if distribution.is_chief(strategy):
            np.savez(folder / f"{case.name}.npz", **found)
        tf.print("finished", case.name, output_stream=sys.stdout)
    print("all finished")


def start(strategy, records, folder: pathlib.Path, cases, *, replicas=2, hosts=None, **more):
    """Start the program; a process for each worker of multi_worker_mirrored.

    `hosts` gives each worker's address and the command that enters its host; None for this one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "strategy": strategy,
        "replicas": replicas,
        "records": str(records),
        "folder": str(folder),
        "cases": [dataclasses.asdict(case) for case in cases],
        **more,
    }
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    environment.pop("TF_CONFIG", None)
    count = replicas if strategy == "multi_worker_mirrored" else 1
    prefixes = [command for _, command in hosts] if hosts else [()] * count
    configs = [None]
    if strategy == "multi_worker_mirrored":
        configs = tf_configs([address for address, _ in hosts] if hosts else free_addresses(count))
    return [
        subprocess.Popen(  # noqa: S603
            [*prefix, sys.executable, "-m", "tests.support.distributed_runs", json.dumps(settings)],
            cwd=REPOSITORY,
            env=environment | ({"TF_CONFIG": config} if config else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for config, prefix in zip(configs, prefixes, strict=True)
    ]


def free_addresses(count: int) -> list[str]:
    """Addresses on this machine, at ports that are free."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    return addresses


def tf_configs(addresses) -> list[str]:
    """TF_CONFIG of each of some workers."""
    return [
        json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}})
        for i in range(len(addresses))
    ]


def finish(processes, timeout: float = 600) -> list[str]:
    """Wait; return what each printed, and fail with it where one failed."""
    outputs = []
    for process in processes:
        try:
            outputs.append(process.communicate(timeout=timeout)[0])
        finally:
            if process.poll() is None:
                for other in processes:
                    other.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-6000:]
    return outputs


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
