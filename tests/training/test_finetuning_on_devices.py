"""Fine-tuning scripts on several replicas and workers: the same losses, model and scores."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from bert_tf.models.task_models import HEADS
from bert_tf.tokenization.vocabulary import load_vocab
from bert_tf.training.log import METRICS_NAME, read_metrics
from bert_tf.weights.save import save_model_directory
from bert_tf.weights.tensor_bundle import read_tensors
from tests.support import distributed_runs
from tests.support import synthetic_records as synthetic

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "squad"
FLAGS = {
    "train_file": GOLDEN / "v1.json",
    "predict_file": GOLDEN / "v1.json",
    "train_batch_size": 8,
    "eval_batch_size": 6,
    "max_seq_length": 67,
    "doc_stride": 23,
    "max_query_length": 17,
    "num_train_steps": 11,
    "log_steps": 1,
    "learning_rate": 1e-3,
    "save_checkpoints_steps": 5,
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """Return a model without dropout, whose masks each replica would draw for itself."""
    keras.utils.set_random_seed(5)
    config = synthetic.small_config(
        vocab_size=len(load_vocab(GOLDEN / "vocab_uncased.txt")),
        num_hidden_layers=1,
        max_position_embeddings=71,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    folder = tmp_path_factory.mktemp("model") / "m"
    encoder = HEADS["encoder"].make(config)
    save_model_directory(folder, encoder, GOLDEN / "vocab_uncased.txt")
    return folder


def start(model_dir, output, tf_config=None, **given):
    values = {"model_dir": model_dir, "output_dir": output, **FLAGS, **given}
    script = str(REPOSITORY / "experiments" / "run_squad.py")
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "CUDA_VISIBLE_DEVICES": "",
        **({} if tf_config is None else {"TF_CONFIG": tf_config}),
    }
    arguments = [f"--{name}={value}" for name, value in values.items()]
    return subprocess.Popen(  # noqa: S603
        [sys.executable, script, "--do_train", "--do_eval", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_replicas_and_workers_give_what_one_device_gives(model_dir, tmp_path):
    def results(name, *tf_configs, **given):
        """Losses, scores and weights of a run in as many processes as there are clusters' parts."""
        parts = tf_configs or (None,)
        folder = tmp_path / name
        processes = [start(model_dir, folder, tf_config, **given) for tf_config in parts]
        distributed_runs.finish(processes)
        losses = [line["loss"] for line in read_metrics(folder / METRICS_NAME)]
        figures = json.loads((folder / "eval_results.json").read_text())
        return losses, figures, read_tensors(folder / "bert_model.ckpt")

    expected = results("one")
    assert len(expected[0]) == FLAGS["num_train_steps"] and expected[0][-1] < expected[0][0]
    configs = distributed_runs.tf_configs(distributed_runs.free_addresses(2))
    for losses, figures, weights in (
        results("accumulated", gradient_accumulation_steps=4),
        results("mirrored", distribution_strategy="mirrored", num_replicas=2),
        results("workers", *configs, distribution_strategy="multi_worker_mirrored"),
    ):
        np.testing.assert_allclose(losses, expected[0], rtol=2e-6)
        assert figures == pytest.approx(expected[1], rel=1e-5)
        assert weights.keys() == expected[2].keys()
        for path, value in weights.items():
            np.testing.assert_allclose(value, expected[2][path], atol=5e-6, err_msg=path)
