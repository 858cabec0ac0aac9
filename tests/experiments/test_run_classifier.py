"""The classification runner and what the fine-tuning scripts share, on tiny models and tables."""

import csv
import json
import pathlib
import re
import shutil
import types
from typing import ClassVar

import filelock
import keras
import numpy as np
import pytest
import scipy.special
import sklearn.metrics as metrics_of_sklearn
import tensorflow as tf
from absl import flags

from bert_tf.config import BertConfig
from bert_tf.models.task_models import HEADS
from bert_tf.options import define
from bert_tf.serving.load import load_served_model
from bert_tf.serving.predictor import Predictor
from bert_tf.serving.saved_model import export_saved_model
from bert_tf.tasks import metrics
from bert_tf.tasks.calibration import mean_loss, reliability_of
from bert_tf.tasks.table import get_task
from bert_tf.tasks.thresholds import best_thresholds
from bert_tf.tasks.trained_task import TrainedTask, read_trained_task
from bert_tf.training.finetuning import make_model
from bert_tf.weights.adapters import load_adapters
from bert_tf.weights.load import load_bert, load_checkpoint, load_model
from bert_tf.weights.save import save_model_directory
from experiments.command_line.exit_status import InputError, exit_on_error
from experiments.command_line.memory import OUT_OF_MEMORY_STATUS
from experiments.finetuning import classification, flow, runs
from experiments.finetuning.decisions import (
    choose_decision,
    report_calibration,
    report_classes,
)
from experiments.finetuning.options import ClassifierOptions, FineTuningOptions
from experiments.finetuning.results import FineTuningRun, report_combinations, summary_over_seeds
from experiments.finetuning.runs import best_run
from experiments.finetuning.seed_training import Job, SeedTraining
from experiments.finetuning.splits import Evaluator
from tests.support import command_options, warm_commands

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
GOOD, BAD = ("good", "fine", "lovely"), ("bad", "awful", "sad")
WORDS = (*GOOD, *BAD, "the", "film", "was", "book")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
CONFIG = BertConfig(
    vocab_size=len(VOCABULARY),
    hidden_size=22,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=37,
    max_position_embeddings=31,
    type_vocab_size=2,
    initializer_range=0.5,  # random weights that already tell words apart
)
# Fast to learn: what is tested is the runner.
QUICK = {"learning_rate": 3e-3, "max_seq_length": 13, "num_train_epochs": 4, "train_batch_size": 7}


DO = {"do_train": True, "do_eval": True}


def sentences(count, seed):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label = int(rng.integers(2))
        word = (BAD, GOOD)[label][rng.integers(3)]
        rows.append((f"the {rng.choice(['film', 'book'])} was {word}", label))
    return rows


def write_table(path, rows, header=("text", "label")):
    with open(path, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "words.txt").write_text("".join(f"{piece}\n" for piece in VOCABULARY))
    keras.utils.set_random_seed(1)
    encoder = HEADS["encoder"].make(CONFIG)
    save_model_directory(folder, encoder, folder / "words.txt")
    return folder


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    names = ("no", "yes")
    for split, count, seed in (("train", 97, 1), ("dev", 41, 2), ("test", 23, 3)):
        rows = [(text, names[label]) for text, label in sentences(count, seed)]
        write_table(folder / f"{split}.csv", rows)
    return folder


def command(given):
    return command_options.of(ClassifierOptions, **given)


def run(model_dir, output, **given):
    classification.run(command({"model_dir": model_dir, "output_dir": output, **QUICK, **given}))


def own(tables, **more):
    return {
        "train_file": tables / "train.csv",
        "dev_file": tables / "dev.csv",
        "test_file": tables / "test.csv",
        "text_column": "text",
        "label_column": "label",
        **more,
    }


def read_table(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(model_dir, tables, tmp_path_factory):
    """Return a run that trained, evaluated and predicted."""
    output = tmp_path_factory.mktemp("run")
    given = {"do_train": True, "do_eval": True, "do_predict": True, "report": True}
    run(model_dir, output, **own(tables), **given)
    return output


def test_a_table_of_ones_own_is_learnt_and_all_files_are_there(finished, tables):
    results = read_json(finished / "eval_results.json")
    assert results["eval_accuracy"] > 0.95 and results["eval_f1"] > 0.95
    stored = read_json(finished / "run.json")["run"]
    assert stored["steps"] == int(97 / 7 * 4)
    assert results["global_step"] == stored["best_step"] <= stored["steps"]
    text = (finished / "eval_results.txt").read_text()
    assert f"eval_accuracy = {results['eval_accuracy']}\n" in text
    files = "confusion_matrix.png curves.png metrics.jsonl run.json vocab.txt report.html"
    for name in files.split():
        assert (finished / name).stat().st_size > 0, name
    assert not list(finished.glob("model.ckpt-*")) and not (finished / "best").exists()
    assert (finished / "labels.txt").read_text() == "no\nyes\n"


def test_what_is_predicted_is_what_the_saved_model_says(finished, tables):
    loaded = load_model(finished)
    assert loaded.kind == "classification" and loaded.labels == ("no", "yes")
    with open(finished / "predictions.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    truth = [("no", "yes")[label] for _, label in sentences(23, 3)]
    assert len(rows) == 23
    assert (
        np.mean([row["prediction"] == label for row, label in zip(rows, truth, strict=True)]) > 0.9
    )
    probabilities = np.loadtxt(finished / "test_results.tsv")
    assert probabilities.shape == (23, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    text, _ = sentences(23, 3)[5]
    ids = np.array([[2, *loaded.tokenizer.encode(text), 3]])
    logits = np.asarray(
        loaded.model(
            {"input_ids": ids, "input_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids)}
        )
    )[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(probabilities[5], expected, atol=1e-5)
    assert float(rows[5]["probability of yes"]) == pytest.approx(expected[1], abs=1e-5)


def test_a_finished_run_is_not_trained_again_and_another_is_not_mixed_in(
    finished, model_dir, tables, capsys
):
    before = (finished / "bert_model.ckpt.data-00000-of-00001").read_bytes()
    run(model_dir, finished, **own(tables), do_train=True, do_eval=True)
    assert "is finished" in capsys.readouterr().out
    assert (finished / "bert_model.ckpt.data-00000-of-00001").read_bytes() == before
    with pytest.raises(InputError, match="holds a run with learning_rate 0.003.*0.007"):
        run(model_dir, finished, **own(tables), do_train=True, **{**QUICK, "learning_rate": 7e-3})


def test_evaluation_alone_needs_only_the_output_folder(finished, tables, tmp_path):
    given = {**own(tables), "output_dir": finished, "do_eval": True, "max_seq_length": 13}
    expected = read_json(finished / "eval_results.json")
    classification.run(command(given))
    results = read_json(finished / "eval_results.json")
    assert results["global_step"] == expected["global_step"] > 0
    assert results["eval_accuracy"] == expected["eval_accuracy"]
    assert results["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-6)
    # Without grouping, and padded to the full length, nothing changes.
    classification.run(command({**given, "group_by_length": False, "pad_to_max_seq_length": True}))
    assert read_json(finished / "eval_results.json")["eval_loss"] == pytest.approx(
        expected["eval_loss"], abs=1e-6
    )


@pytest.mark.parametrize(
    "more",
    [{}, pytest.param({"lora_rank": 2, "optimizer": "lamb"}, marks=pytest.mark.slow)],
    ids=["all", "lora"],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    finished, model_dir, tables, tmp_path, monkeypatch, more
):
    given = {**own(tables), "do_train": True, "do_eval": True, "save_checkpoints_steps": 11, **more}
    whole = finished
    if more:
        whole = tmp_path / "whole"
        run(model_dir, whole, **given)

    class StoppedError(BaseException):
        pass

    from bert_tf.training.trainer import Trainer

    save = Trainer.save

    def stop(self):
        path = save(self)
        if self.step == 33:
            raise StoppedError
        return path

    # To overwrite is to train anew what is finished, not what was stopped.
    given["overwrite"] = True
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(Trainer, "save", stop)
        run(model_dir, tmp_path / "parts", **given)
    assert list((tmp_path / "parts").glob("model.ckpt-33.*"))
    saved = []
    monkeypatch.setattr(Trainer, "save", lambda self: saved.append(self.step) or save(self))
    run(model_dir, tmp_path / "parts", **given)
    assert saved[0] > 33
    name = "bert_model.ckpt.data-00000-of-00001"
    parts = (whole, tmp_path / "parts")
    assert (parts[1] / name).read_bytes() == (parts[0] / name).read_bytes()
    lines = [
        [json.loads(line) for line in (part / "metrics.jsonl").read_text().splitlines()]
        for part in parts
    ]
    steps = [[(line["kind"], line["step"]) for line in part] for part in lines]
    assert steps[0] == steps[1]


def test_low_rank_adapters(model_dir, tables, tmp_path, capsys):
    """A run of them leaves a model like any other, and the adapters beside it."""
    output = tmp_path / "run"
    lora_flags = {"lora_rank": 2, "lora_alpha": 5, "lora_targets": "value"}
    given = {**own(tables), "do_train": True, "do_eval": True, "num_train_steps": 13}
    run(model_dir, output, **given, **lora_flags, recompute_layers="all")
    learning = 2 * (22 + 22) + 2 * 22 + 2
    assert f"trainable parameters: {learning:,} of " in capsys.readouterr().out
    assert {path.name for path in (output / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    merged = load_model(output).model
    adapted = make_model("classification", CONFIG, 2)
    load_checkpoint(adapted, model_dir, heads=False)
    before = {weight.path: weight.numpy() for weight in adapted.weights}
    load_adapters(output / "adapter", adapted)
    inputs = {name: np.full((3, 5), 1, np.int32) for name in merged.input}
    np.testing.assert_allclose(merged(inputs), adapted(inputs), rtol=0, atol=1e-6)
    changed = {w.path for w in merged.weights if (w.numpy() != before[w.path]).any()}
    assert {path for path in changed if "/encoder/" in path} == {
        "bert/encoder/layer_0/attention/self/value/kernel"
    }
    # What --do_eval says of the folder is what training said.
    expected = read_json(output / "eval_results.json")
    again = {**own(tables), "model_dir": output, "output_dir": tmp_path / "eval", "do_eval": True}
    classification.run(command({**again, "max_seq_length": 13}))
    found = read_json(tmp_path / "eval" / "eval_results.json")
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-6)
    with pytest.raises(InputError, match="lora_rank 2, and now it is 3"):
        run(model_dir, output, **given, **{**lora_flags, "lora_rank": 3}, recompute_layers="all")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lora_rank": -1}, "lora_rank: expected at least 0"),
        ({"lora_rank": 1, "lora_targets": "query,q"}, "lora_targets: expected some of query"),
        ({"lora_rank": 1, "lora_alpha": -1}, "lora_alpha: expected a positive number"),
        ({"recompute_layers": "1"}, "recompute: expected none, all, every_K or numbers"),
    ],
)
def test_wrong_adapters_and_layers_are_refused(model_dir, tables, tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        run(model_dir, tmp_path, **own(tables), do_train=True, **given)


@pytest.mark.thorough
def test_seeds_give_a_table_and_the_best_model(model_dir, tables, tmp_path, capsys):
    given = {**own(tables), "do_train": True, "do_eval": True, "num_train_epochs": 1}
    run(model_dir, tmp_path, **{**given, "seeds": "5,11,3"})
    summary = read_json(tmp_path / "seeds.json")
    runs = summary["runs"]
    assert [run["seed"] for run in runs] == [5, 11, 3]
    scores = [run["figures"]["accuracy"] for run in runs]
    row = summary["figures"]["accuracy"]
    assert row["mean"] == pytest.approx(np.mean(scores))
    assert row["std"] == pytest.approx(np.std(scores, ddof=1))
    assert row["median"] == np.median(scores) and row["max"] == max(scores)
    best = runs[int(np.argmax(scores))]["folder"]
    name = "bert_model.ckpt.data-00000-of-00001"
    assert (tmp_path / name).read_bytes() == (pathlib.Path(best) / name).read_bytes()
    assert read_trained_task(tmp_path) == TrainedTask("classification", 13)
    assert read_json(tmp_path / "eval_results.json")["eval_accuracy"] == pytest.approx(max(scores))
    assert "over 3 seeds" in capsys.readouterr().out


class StandIn:
    """A run that writes a model and learns nothing: its accuracy follows from its options."""

    ran: ClassVar[list] = []
    accuracy: ClassVar[dict] = {}  # (learning rate, batch size) -> accuracy

    def __init__(self, job, start, options, folder, seed):
        self.options, self.folder, self.seed = options, folder, seed

    def run(self):
        pair = (self.options.learning_rate, self.options.train_batch_size)
        self.ran.append((*pair, self.seed))
        score = self.accuracy[pair] + self.seed / 1000
        if score > 1:
            raise KeyboardInterrupt
        keras.utils.set_random_seed(self.seed + int(1e4 * abs(score)))
        model, labels = make_model("classification", CONFIG, 2), ("no", "yes")
        save_model_directory(self.folder, model, labels=labels)
        figures = {"accuracy": score} if score > 0 else {}
        return FineTuningRun(
            *(self.seed, str(self.folder), 1, figures, 1, 0.0, 0.0),
            diverged=None if score > 0 else "it broke",
            learning_rate=pair[0],
            train_batch_size=pair[1],
        )


def test_rates_and_batch_sizes_are_tried_and_the_best_is_kept(
    model_dir, tables, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(runs, "SeedTraining", StandIn)
    monkeypatch.setattr(StandIn, "ran", [])
    given = {**own(tables), "do_train": True, "do_eval": True, "seeds": "1,2"}
    given |= {"learning_rates": "3e-3,1e-3", "train_batch_sizes": "7,13"}
    figures = {(3e-3, 7): 0.5, (3e-3, 13): 0.7, (1e-3, 7): 1.0, (1e-3, 13): -1.0}
    monkeypatch.setattr(StandIn, "accuracy", figures)
    with pytest.raises(KeyboardInterrupt):  # killed in the fifth run
        run(model_dir, tmp_path, **given)
    assert StandIn.ran == [(3e-3, b, s) for b in (7, 13) for s in (1, 2)] + [(1e-3, 7, 1)]
    figures[1e-3, 7] = 0.6
    StandIn.ran.clear()
    run(model_dir, tmp_path, **given)
    assert StandIn.ran == [(1e-3, b, s) for b in (7, 13) for s in (1, 2)]
    report = read_json(tmp_path / "combinations.json")
    best = tmp_path / "learning_rate-0.003-batch_size-13" / "seed-2"
    assert report["best"]["folder"] == str(best) and report["selection_metric"] == "accuracy"
    assert [(c["learning_rate"], c["train_batch_size"]) for c in report["combinations"]] == [
        *((3e-3, 7), (3e-3, 13), (1e-3, 7), (1e-3, 13))
    ]
    assert report["combinations"][1]["figures"]["accuracy"]["mean"] == pytest.approx(0.7015)
    assert report["combinations"][3]["failed"] == {"1": "it broke", "2": "it broke"}
    name = "bert_model.ckpt.data-00000-of-00001"
    assert (tmp_path / name).read_bytes() == (best / name).read_bytes()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["0.003", "13", "2", "0", "0.7015", "0.7020", "kept"] in rows
    assert ["0.001", "13", "2", "2", "none", "none"] in rows
    settings = read_json(best / "run.json")["settings"]
    assert (settings["learning_rate"], settings["train_batch_size"]) == (3e-3, 13)
    # What is finished is not run again, and a rate more is compared with it.
    asked = []

    def with_precision(options, folder, *, one_shape):
        asked.append(folder)
        return options

    monkeypatch.setattr(flow, "with_precision", with_precision)
    figures[2e-3, 7], figures[2e-3, 13] = 0.9, 0.2
    StandIn.ran.clear()
    run(model_dir, tmp_path, **given | {"learning_rates": "2e-3,3e-3,1e-3"})
    # All have the precision that the first of those already begun has.
    assert asked == [tmp_path / "learning_rate-0.003-batch_size-7" / "seed-1"]
    assert StandIn.ran == [(2e-3, b, s) for b in (7, 13) for s in (1, 2)]
    best = tmp_path / "learning_rate-0.002-batch_size-7" / "seed-2"
    assert (tmp_path / name).read_bytes() == (best / name).read_bytes()


def test_a_rate_and_a_seed_more_are_trained_alone(model_dir, tables, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SeedTraining", StandIn)
    monkeypatch.setattr(StandIn, "ran", [])
    monkeypatch.setattr(StandIn, "accuracy", {(3e-3, 7): 0.5, (1e-3, 7): 0.6})
    given = {**own(tables), **DO, "seeds": 1, "learning_rates": "3e-3"}
    run(model_dir, tmp_path, **given)
    run(model_dir, tmp_path, **given | {"learning_rates": "3e-3,1e-3"})
    run(model_dir, tmp_path, **given | {"learning_rates": "3e-3,1e-3", "seeds": "1,2"})
    assert StandIn.ran == [(3e-3, 7, 1), (1e-3, 7, 1), (3e-3, 7, 2), (1e-3, 7, 2)]
    folder = tmp_path / "learning_rate-0.001-batch_size-7"
    assert read_trained_task(folder / "seed-2") == TrainedTask("classification", 13)
    assert not (folder / "run.json").exists()
    # The summary is that of the runs of which the model is.
    run(model_dir, tmp_path, **{**own(tables), "do_train": True, "seeds": "1,2"})
    assert not (tmp_path / "combinations.json").exists()
    run(model_dir, tmp_path, **given)
    assert not (tmp_path / "seeds.json").exists() and (tmp_path / "combinations.json").exists()
    (tmp_path / "folds.json").write_text("{}")
    run(model_dir, tmp_path, **given)
    assert not (tmp_path / "folds.json").exists()


class OfFold(StandIn):
    """The same; its accuracy follows from the part that is held out too."""

    more: ClassVar[dict] = {"fold-1": 0.0, "fold-2": 0.2, "fold-3": 0.1, "all": 0.0}
    stops_at: ClassVar[str] = ""

    def run(self):
        part = next((name for name in self.folder.parts if name.startswith("fold-")), "all")
        if part == self.stops_at:
            raise KeyboardInterrupt
        done = super().run()
        self.ran[-1] = (part, self.options.learning_rate, self.options.keep_best)
        done.figures = {"accuracy": done.figures["accuracy"] + self.more[part]}
        return done


def test_folds_give_mean_and_deviation_and_a_model_of_all_examples(
    model_dir, tables, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(runs, "SeedTraining", OfFold)
    monkeypatch.setattr(StandIn, "ran", [])
    monkeypatch.setattr(StandIn, "accuracy", {(3e-3, 7): 0.5, (1e-3, 7): 0.6})
    given = {**own(tables, dev_file=None), **DO, "seed": 2, "learning_rates": "3e-3,1e-3"}
    given |= {"folds": 3, "do_predict": True}
    monkeypatch.setattr(OfFold, "stops_at", "fold-3")
    with pytest.raises(KeyboardInterrupt):
        run(model_dir, tmp_path, **given)
    monkeypatch.setattr(OfFold, "stops_at", "")
    run(model_dir, tmp_path, **given)  # goes on
    assert StandIn.ran == [
        *((f"fold-{part}", rate, False) for part in (1, 2, 3) for rate in (3e-3, 1e-3)),
        ("all", 1e-3, True),
    ]
    out = capsys.readouterr().out
    report = read_json(tmp_path / "folds.json")
    assert report["best"] == {"learning_rate": 1e-3, "train_batch_size": 7}
    row = report["combinations"][1]["figures"]["accuracy"]
    assert row["mean"] == pytest.approx(0.702) and row["std"] == pytest.approx(0.1)
    assert (row["min"], row["max"]) == pytest.approx((0.602, 0.802))
    assert [one["fold"] for one in report["combinations"][0]["runs"]] == [1, 2, 3]
    assert re.search(r"0.001 +7 +3 +0 +0.7020 +0.1000 +0.6020 +best", out)
    # Each part is a third of the different notes, and what is predicted is by the last model.
    train = read_table(tables / "train.csv")
    held_out = [int(n) for n in re.findall(r"dev: (\d+) examples", out)]
    assert sum(held_out[-3:]) == len(train) and "all examples:\ntrain: 97 examples" in out
    assert len(read_table(tmp_path / "predictions.csv")) == 23
    assert not (tmp_path / "combinations.json").exists()
    assert not (tmp_path / "eval_results.json").exists()
    # The same again trains nothing.
    run(model_dir, tmp_path, **given)
    assert len(StandIn.ran) == 7


def test_a_combination_that_diverged_on_a_fold_is_not_the_best(
    model_dir, tables, tmp_path, monkeypatch, capsys
):
    class Diverging(OfFold):
        def run(self):
            done = super().run()
            rate, part = self.options.learning_rate, self.ran[-1][0]
            done.diverged = "it broke" if (part, rate) in broken else None
            return done

    monkeypatch.setattr(runs, "SeedTraining", Diverging)
    monkeypatch.setattr(StandIn, "ran", [])
    monkeypatch.setattr(StandIn, "accuracy", {(3e-3, 7): 0.4, (1e-3, 7): 0.6})
    given = {**own(tables, dev_file=None), **DO, "learning_rates": "3e-3,1e-3", "folds": 2}
    broken = {("fold-2", 1e-3)}
    run(model_dir, tmp_path / "a", **given, seed=1)
    report = read_json(tmp_path / "a" / "folds.json")
    assert report["best"]["learning_rate"] == 3e-3
    assert report["combinations"][1]["failed"] == {"fold 2, seed 1": "it broke"}
    # The better of two that are no better than a constant is told to have failed.
    assert (
        "failed: fold 1, seed 1: accuracy 0.4010 is not above that of a" in capsys.readouterr().out
    )
    # Where all have diverged somewhere, the one that did so least; its figures are of the rest.
    broken |= {("fold-1", 3e-3), ("fold-2", 3e-3)}
    run(model_dir, tmp_path / "c", **given, seed=1)
    report = read_json(tmp_path / "c" / "folds.json")
    assert report["best"]["learning_rate"] == 1e-3
    assert report["combinations"][0]["figures"] == {}
    assert report["combinations"][1]["figures"]["accuracy"]["mean"] == pytest.approx(0.601)
    broken |= {(f"fold-{part}", rate) for part in (1, 2) for rate in (3e-3, 1e-3)}
    with pytest.raises(InputError, match="fold 1: it broke; fold 1: it broke; fold 2: it broke"):
        run(model_dir, tmp_path / "b", **given, seed=1)


def test_folds_of_several_seeds_go_on_and_take_no_folder_of_other_runs(
    model_dir, tables, tmp_path, monkeypatch
):
    monkeypatch.setattr(runs, "SeedTraining", OfFold)
    monkeypatch.setattr(StandIn, "ran", [])
    monkeypatch.setattr(StandIn, "accuracy", {(1e-3, 7): 0.6})
    given = {**own(tables), **DO, "learning_rate": 1e-3, "seeds": "1,2"}
    folds = {**given, "dev_file": None, "folds": 2}
    for _ in range(2):  # the last model lies in the output folder itself
        run(model_dir, tmp_path / "folds", **folds)
    assert [part for part, *_ in StandIn.ran] == ["fold-1", "fold-1", "fold-2", "fold-2", "all"]
    run(model_dir, tmp_path / "plain", **given)
    with pytest.raises(InputError, match="plain holds runs without --folds, whose model would be"):
        run(model_dir, tmp_path / "plain", **folds)
    assert len(StandIn.ran) == 7 and not (tmp_path / "plain" / "fold-1").exists()


def test_what_was_chosen_stays_with_the_weights_it_was_chosen_for(
    model_dir, tables, tmp_path, monkeypatch
):
    monkeypatch.setattr(runs, "SeedTraining", StandIn)
    monkeypatch.setattr(StandIn, "ran", [])
    monkeypatch.setattr(StandIn, "accuracy", {(3e-3, 7): 0.5})
    given = {**own(tables), "do_train": True}
    plain = TrainedTask("classification", 13)
    chosen = TrainedTask("classification", 13, temperature=1.75)

    def task_after(seeds, calibrated=False):
        run(model_dir, tmp_path, **given, seeds=seeds)
        task = read_trained_task(tmp_path)
        if calibrated:
            chosen.write(tmp_path)
        return task

    assert task_after("1,2,3", calibrated=True) == plain
    assert task_after("2,3") == chosen  # the best is the same one
    assert task_after("1,2") == plain  # another model
    assert task_after("1,2,3", calibrated=True) == plain
    # Stopped between the last run and the copy of the best.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs, "_keep_best", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        task_after("1,2,3,4")
    assert read_trained_task(tmp_path) == chosen
    assert task_after("1,2,3,4") == plain
    assert StandIn.ran == [(3e-3, 7, seed) for seed in (1, 2, 3, 4)]
    # What was chosen for a run by itself goes with it.
    chosen.write(tmp_path / "seed-2")
    assert task_after("1,2") == chosen
    # A run of an earlier version, which had fewer settings and no task of its own.
    path = tmp_path / "seed-1" / "run.json"
    stored = read_json(path)
    del stored["settings"]["label_smoothing"]
    del stored["run"]["learning_rate"], stored["run"]["train_batch_size"]
    path.write_text(json.dumps(stored))
    (tmp_path / "seed-1" / "bert_task.json").unlink()
    assert task_after("1,2") == chosen and len(StandIn.ran) == 4
    assert read_trained_task(tmp_path / "seed-1") == plain


def test_where_every_combination_diverged_each_is_named(model_dir, tables, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SeedTraining", StandIn)
    monkeypatch.setattr(StandIn, "accuracy", {(3e-3, 7): -1.0, (1e-3, 7): -1.0})
    given = {**own(tables), **DO, "learning_rates": "3e-3,1e-3", "seeds": 1}
    named = "learning rate 0.003, batch size 7, seed 1: it broke; learning rate 0.001, batch"
    with pytest.raises(InputError, match=named):
        run(model_dir, tmp_path, **given)


@pytest.mark.thorough(traced=True)
@pytest.mark.parametrize("seeds", ["5", pytest.param("5,11", marks=pytest.mark.slow)])
def test_a_model_of_other_origin_is_not_replaced(model_dir, tables, tmp_path, seeds):
    given = {**own(tables), "do_train": True, "num_train_steps": 1, "seeds": seeds}
    begins_with, original = tmp_path / "model", tmp_path / "original"
    shutil.copytree(model_dir, begins_with)
    original.mkdir()
    for name in ("checkpoint", "model.ckpt-343.index"):  # as google-research/bert leaves them
        (original / name).write_text("theirs")
    for folder in (begins_with, original):
        before = {path: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(InputError, match="is of another model"):
            run(begins_with, folder, **given)
        after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert after == before
    run(begins_with, begins_with, **{**given, "overwrite": True})
    assert load_model(begins_with).kind == "classification"


@pytest.mark.slow
def test_one_seed_and_several_do_not_share_a_folder(model_dir, tables, tmp_path):
    given = {**own(tables), "do_train": True, "num_train_steps": 1}
    run(model_dir, tmp_path / "one", **given)
    with pytest.raises(InputError, match="is of another model"):
        run(model_dir, tmp_path / "one", **{**given, "seeds": "5,11"})
    run(model_dir, tmp_path / "one", **{**given, "seeds": "5,11", "overwrite": True})
    with pytest.raises(InputError, match="is of another model"):
        run(model_dir, tmp_path / "one", **given)
    run(model_dir, tmp_path / "one", **{**given, "seeds": "5,11"})  # finds both finished


def test_a_figure_that_is_no_number_is_never_the_best():
    job = types.SimpleNamespace(selection_metric="f1")
    figures = [{"f1": float("nan")}, {}, {"f1": 0.25}, {"f1": 0.5}, {"f1": 0.5}, {"loss": 9.0}]
    runs = [types.SimpleNamespace(diverged=None, figures=values) for values in figures]
    assert best_run(job, runs) is runs[3]
    assert best_run(job, runs[:2]) is runs[0]
    lost = types.SimpleNamespace(diverged="lost", figures={"f1": 0.9}, seed=3, folder="x")
    assert best_run(job, [lost, *runs]) is runs[3]


def test_an_evaluation_that_is_no_number_does_not_stay_the_best(tmp_path, capsys):
    figures = iter([{"f1": float("nan")}, {"f1": 0.25}, {"f1": float("nan")}, {"f1": 0.5}])
    job = types.SimpleNamespace(
        selection_metric="f1", num_examples=10, evaluate=lambda model: next(figures)
    )
    options = command_options.of(
        FineTuningOptions,
        output_dir=tmp_path,
        train_batch_size=5,
        keep_best=True,
        early_stop_evals=1,
    )
    training = SeedTraining(job, None, options, tmp_path, 3)
    training.model, best = None, []
    training.trainer = types.SimpleNamespace(step=0, is_chief=False)
    for step in range(4):
        training.trainer.step = step
        training._evaluate()
        best.append((training.best.step, training._should_stop()))
    assert best == [(0, False), (1, False), (1, True), (3, False)]


def test_a_run_no_better_than_a_constant_is_named_failed():
    def made(seed, score, diverged=None):
        figures = {} if score is None else {"accuracy": score}
        return FineTuningRun(seed, "", 1, figures, 1, 0.0, 0.0, diverged)

    found = summary_over_seeds(
        [made(1, 0.9), made(2, 0.6), made(3, None, "the loss is not finite")], "accuracy", 0.6
    )
    assert set(found["failed"]) == {"2", "3"}
    assert "not above that of a constant answer" in found["failed"]["2"]
    assert found["figures"]["accuracy"]["mean"] == pytest.approx(0.75)


@pytest.mark.parametrize("score", [0.5, 0.7])
def test_a_grid_whose_best_is_no_better_than_a_constant_says_so(tmp_path, capsys, score):
    best = FineTuningRun(3, "", 1, {"accuracy": score}, 1, 0.0, 0.0, None, 3e-3, 7)
    worse = FineTuningRun(3, "", 1, {"accuracy": 0.4}, 1, 0.0, 0.0, None, 1e-3, 7)
    report_combinations([worse, best], best, tmp_path, "accuracy", 0.6)
    said = "the one that is kept has failed: accuracy 0.5000 is not above that of a constant"
    assert (said in capsys.readouterr().out) == (score < 0.6)


def test_where_every_run_diverged_the_best_weights_before_are_named():
    job = Job("classification", None, None, 1, "", None, "accuracy")
    runs = [
        FineTuningRun(1, "here", 9, {"accuracy": 0.9}, 7, 0.0, 0.0, "not finite"),
        FineTuningRun(2, "there", 9, {}, 0, 0.0, 0.0, "not finite"),
    ]
    with pytest.raises(InputError) as error:
        best_run(job, runs)
    assert str(error.value) == (
        "seed 1: not finite; its best weights before that, of step 7, lie in here; "
        "seed 2: not finite"
    )


def test_the_best_weights_are_kept_and_early_stopping_stops(
    model_dir, tables, tmp_path, monkeypatch
):
    scores = iter([0.5, 0.9, 0.7, 0.6, 0.8, 0.1])
    kept = []

    def evaluate(self, model):
        score = next(scores)
        if score == 0.9:
            kept.append([weight.numpy() for weight in model.weights])
        return {"accuracy": score, "loss": 1.0}

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", evaluate)
        patch.setattr(classification, "_draw", lambda *_: None)
        run(
            model_dir,
            tmp_path,
            **own(tables),
            do_train=True,
            do_eval=True,
            eval_every_steps=7,
            early_stop_evals=2,
        )
    stored = read_json(tmp_path / "run.json")["run"]
    assert stored["best_step"] == 14 and stored["steps"] == 28
    assert stored["figures"]["accuracy"] == 0.9
    model = load_model(tmp_path).model
    for weight, expected in zip(model.weights, kept[0], strict=True):
        np.testing.assert_array_equal(weight.numpy(), expected)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("stop_at", "keep_best"),
    [
        (21, True),
        pytest.param(21, False, marks=pytest.mark.slow),
        pytest.param(28, True, marks=pytest.mark.slow),
        pytest.param(28, False, marks=pytest.mark.slow),
    ],
)
def test_early_stopping_counts_the_evaluations_before_a_resume(
    model_dir, tables, tmp_path, monkeypatch, keep_best, stop_at
):
    scores = {7: 0.5, 14: 0.9, 21: 0.7, 28: 0.6, 35: 0.8}

    class StoppedError(BaseException):
        pass

    def given():
        return {
            **own(tables),
            "do_train": True,
            "do_eval": True,
            "eval_every_steps": 7,
            "save_checkpoints_steps": 7,
            "early_stop_evals": 2,
            "keep_best": keep_best,
        }

    from bert_tf.training.trainer import Trainer

    save, step = Trainer.save, [0]

    def stop(self):
        save(self)
        if self.step == stop_at:
            raise StoppedError

    def evaluate(self):
        step[0] = self.trainer.step
        return original(self)

    original = SeedTraining._evaluate
    monkeypatch.setattr(SeedTraining, "_evaluate", evaluate)
    monkeypatch.setattr(
        Evaluator,
        "__call__",
        lambda self, model: {"accuracy": scores.get(step[0], 0.1), "loss": 1.0},
    )
    monkeypatch.setattr(classification, "_draw", lambda *_: None)
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(Trainer, "save", stop)
        run(model_dir, tmp_path, **given())
    run(model_dir, tmp_path, **given())
    stored = read_json(tmp_path / "run.json")["run"]
    assert stored["steps"] == 28
    assert stored["best_step"] == (14 if keep_best else 28)
    assert stored["figures"]["accuracy"] == (0.9 if keep_best else 0.6)


@pytest.mark.parametrize(
    "given",
    [
        {"freeze_layers": 1},
        pytest.param({"freeze": "^bert/pooler/"}, marks=pytest.mark.thorough),
        pytest.param(
            {"layer_wise_decay": 0.5, "bias_correction": True, "clip_norm": 0},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_is_frozen_stays_and_the_rest_learns(model_dir, tables, tmp_path, given):
    run(model_dir, tmp_path, **own(tables), do_train=True, **{**given, "num_train_steps": 5})
    before = load_bert(model_dir).encoder
    after = {w.path: w.numpy() for w in load_model(tmp_path).model.weights}
    frozen = {"freeze_layers": ("/embeddings/", "/layer_0/"), "freeze": ("/pooler/",)}
    patterns = next((frozen[name] for name in given if name in frozen), ())
    for weight in before.weights:
        same = np.array_equal(weight.numpy(), after[weight.path])
        assert same == any(pattern in weight.path for pattern in patterns), weight.path


@pytest.mark.thorough(traced=True)
@pytest.mark.parametrize(
    "kind", ["regression", pytest.param("multi_label", marks=pytest.mark.slow)]
)
def test_numbers_and_several_labels(model_dir, tmp_path, kind):
    rows = []
    for text, label in sentences(61, 7):
        labels = "|".join(n for n, holds in (("any", True), ("nice", label)) if holds)
        number = label * 2.5 - 1
        rows.append((text, number if kind == "regression" else labels))
    for split in ("train", "dev", "test"):
        write_table(tmp_path / f"{split}.csv", rows)
    output = tmp_path / "run"
    run(
        model_dir,
        output,
        **own(tmp_path),
        kind=kind,
        do_train=True,
        do_eval=True,
        do_predict=True,
        **{"num_train_epochs": 12},
    )
    results = read_json(output / "eval_results.json")
    name = {"regression": "eval_pearson_correlation", "multi_label": "eval_multi_label_micro_f1"}
    assert results[name[kind]] > 0.9, results
    with open(output / "predictions.csv", encoding="utf-8", newline="") as stream:
        predicted = [row["prediction"] for row in csv.DictReader(stream)]
    if kind == "regression":
        figure = metrics.METRICS["pearson_correlation"](
            np.array(predicted, float), np.array([number for _, number in rows])
        )
        assert figure == pytest.approx(results["eval_pearson_correlation"], abs=1e-4)
        assert (output / "regression.png").exists()
    else:
        assert set(predicted) <= {"", "any", "nice", "any|nice"}
        # The order of labels is that of labels.txt.
        assert (output / "labels.txt").read_text() == "any\nnice\n"


def made_model(model_dir, folder, kind, tables):
    """Write a fine-tuned model and tables whose labels follow from it; return logits of dev."""
    keras.utils.set_random_seed(3)
    model = make_model(kind, CONFIG, 2)
    vocabulary = model_dir / "vocab.txt"
    save_model_directory(folder, model, vocabulary, labels=("no", "yes"))
    TrainedTask(kind, 13).write(folder)
    texts = [f"{a} {b}" for (a, _), (b, _) in zip(sentences(83, 5), sentences(83, 6), strict=True)]
    # As logits of a temperature of 1 are the logarithms of the probabilities.
    probabilities = Predictor(folder).predict(texts)["probabilities"].astype(np.float64)
    logits = np.log(probabilities)
    if kind == "multi_label":
        logits -= np.log1p(-probabilities)
    true = logits / 3
    rng = np.random.default_rng(0)
    if kind == "multi_label":
        labels = rng.random(logits.shape) < scipy.special.expit(true)
        names = ["|".join(np.array(["no", "yes"])[row]) for row in labels]
    else:
        labels = (rng.random(83) < scipy.special.softmax(true, axis=1)[:, 1]).astype(int)
        names = [("no", "yes")[label] for label in labels]
    write_table(tables / "dev.csv", list(zip(texts, names, strict=True)))
    write_table(tables / "test.csv", [(text,) for text in texts[::-1]], ("text",))
    return texts, logits, labels


@pytest.mark.parametrize(
    "kind", ["classification", pytest.param("multi_label", marks=pytest.mark.thorough)]
)
def test_what_is_chosen_on_the_dev_set_is_what_every_answer_has(model_dir, tmp_path, kind, capsys):
    texts, logits, labels = made_model(model_dir, tmp_path, kind, tmp_path)
    given = {**own(tmp_path), "train_file": None, "max_seq_length": 13, "do_eval": True}
    given |= {"output_dir": tmp_path, "kind": kind, "labels": "no,yes"}
    if kind == "multi_label":
        given |= {"thresholds": "each"}
    plain = {name: value for name, value in given.items() if name != "thresholds"}
    classification.run(command(plain))
    before = read_json(tmp_path / "eval_results.json")
    expected = reliability_of(kind, logits, labels).error
    assert before["eval_ece"] == pytest.approx(expected, abs=1e-4)
    assert not (tmp_path / "calibration.json").exists()
    assert read_trained_task(tmp_path) == TrainedTask(kind, 13)

    classification.run(command({**given, "calibrate": True, "do_predict": True}))
    trained, after = read_trained_task(tmp_path), read_json(tmp_path / "eval_results.json")
    losses = [mean_loss(kind, logits, labels, t) for t in np.linspace(0.5, 6, 221)]
    assert mean_loss(kind, logits, labels, trained.temperature) <= min(losses) + 1e-6
    assert trained.temperature > 1.2 and f"temperature: {trained.temperature:.4g}" in (
        capsys.readouterr().out
    )
    assert after["eval_loss"] < before["eval_loss"]
    curves = read_json(tmp_path / "calibration.json")
    assert curves["before"]["ece"] == before["eval_ece"]
    assert curves["after"]["ece"] == after["eval_ece"] < before["eval_ece"]
    assert (tmp_path / "reliability.png").stat().st_size > 0

    # The predictions of the runner, of the folder and, where it has both, of the SavedModel.
    predictors = [Predictor(tmp_path)]
    if kind == "multi_label":
        export_saved_model(load_served_model(tmp_path), tmp_path / "exported")
        predictors.append(Predictor(tmp_path / "exported"))
    with open(tmp_path / "predictions.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    predicted = [row["prediction"] for row in rows][::-1]
    numbers = np.array([[float(row[f"probability of {n}"]) for n in ("no", "yes")] for row in rows])
    for predictor in predictors:
        names = predictor.labels(texts)
        assert predicted == (names if kind == "classification" else list(map("|".join, names)))
        scores = predictor.predict(texts)["probabilities"]
        np.testing.assert_allclose(numbers[::-1], scores, atol=1e-5)
    report = read_json(tmp_path / "class_report.json")
    if kind == "classification":
        assert after["eval_accuracy"] == before["eval_accuracy"]
        expected = metrics_of_sklearn.confusion_matrix(
            [("no", "yes")[label] for label in labels], predicted, labels=["no", "yes"]
        )
    else:
        chosen = best_thresholds(trained.probabilities(logits), labels, each=True)
        assert trained.thresholds == pytest.approx(chosen, abs=1e-4)
        name = "eval_multi_label_macro_f1"
        assert after[name] > before[name]
        taken = np.array([[n in text.split("|") for n in ("no", "yes")] for text in predicted])
        expected = metrics_of_sklearn.multilabel_confusion_matrix(labels, taken)
        assert after[name] == pytest.approx(
            metrics_of_sklearn.f1_score(labels, taken, average="macro")
        )
    assert report["confusion_matrix"] == expected.tolist()
    # What was chosen stays, until it is chosen anew.
    classification.run(command(plain))
    assert read_json(tmp_path / "eval_results.json") == after
    with pytest.raises(InputError, match="output_dir: temperature and thresholds are written bes"):
        elsewhere = {"model_dir": tmp_path, "output_dir": tmp_path / "x", "calibrate": True}
        classification.run(command({**given, **elsewhere}))


def test_a_dev_set_that_does_not_tell_a_temperature(model_dir, tmp_path, caplog):
    texts, logits, _ = made_model(model_dir, tmp_path, "classification", tmp_path)
    names = [("no", "yes")[k] for k in logits.argmax(axis=1)]
    write_table(tmp_path / "dev.csv", list(zip(texts, names, strict=True)))
    given = {**own(tmp_path), "train_file": None, "test_file": None, "labels": "no,yes"}
    given |= {"output_dir": tmp_path, "max_seq_length": 13, "do_eval": True, "calibrate": True}
    with caplog.at_level("WARNING", "absl"):
        classification.run(command(given))
    assert "calibrate: the 83 examples of the dev set do not tell the temperature" in caplog.text
    assert "it is set to 1" in caplog.text
    assert read_trained_task(tmp_path).temperature == 1


def evaluated(kind, **splits):
    """Return an evaluator of splits of (logits, labels)."""
    logits, labels = ({s: pair[i] for s, pair in splits.items()} for i in (0, 1))
    task = types.SimpleNamespace(kind=kind, labels=("a", "b"))
    return types.SimpleNamespace(task=task, logits=logits, labels=labels)


def test_a_temperature_alone_changes_no_decision_at_thresholds():
    random = np.random.default_rng(3)
    logits = random.normal(0, 3, (300, 2))
    labels = random.random((300, 2)) < scipy.special.expit(logits / 2)
    before = TrainedTask("multi_label", temperature=1.2, thresholds=(0.2, 0.7))
    options = command({"output_dir": "x", "calibrate": True, "do_eval": True})
    after = choose_decision(evaluated("multi_label", dev=(logits, labels)), before, options)
    assert after.temperature == pytest.approx(2, rel=0.3)
    np.testing.assert_array_equal(after.decide(logits), before.decide(logits))


def test_logits_that_are_not_finite_are_told_of(tmp_path, caplog, capsys):
    good, labels = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 1])
    bad = np.array([[np.nan, 0.0], [0.0, 1.0]])
    both = evaluated("classification", dev_matched=(bad, labels), dev_mismatched=(good, labels))
    trained = TrainedTask("classification")
    with caplog.at_level("WARNING", "absl"):
        errors = report_calibration(both, trained, tmp_path, draw=False)
    assert list(errors) == ["ece_mismatched"]
    assert "dev_matched: 1 of 2 examples have logits that are not finite" in caplog.text
    options = command({"output_dir": "x", "calibrate": True, "do_eval": True})
    with pytest.raises(InputError, match="dev_matched: 1 of 2 examples have logits that are not"):
        choose_decision(both, trained, options)
    report_classes(both, trained, tmp_path)
    said = capsys.readouterr().out
    assert 0 <= said.index("dev_matched:") < said.index("dev_mismatched:")


def write_glue(folder, task, train, dev, test):
    """Write the official files of WNLI or SST-2."""
    folder.mkdir()
    head = {"WNLI": "index\tsentence1\tsentence2\tlabel", "SST-2": "sentence\tlabel"}[task]
    for split, rows in (("train", train), ("dev", dev)):
        lines = [head]
        for number, (text, label) in enumerate(rows):
            row = (number, text, text, label) if task == "WNLI" else (text, label)
            lines.append("\t".join(map(str, row)))
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    lines = ["index\tsentence1\tsentence2" if task == "WNLI" else "index\tsentence"]
    for number, (text, _) in enumerate(test):
        row = (number, text, text) if task == "WNLI" else (number, text)
        lines.append("\t".join(map(str, row)))
    (folder / "test.tsv").write_text("\n".join(lines) + "\n")


@pytest.mark.thorough
def test_a_task_of_glue_writes_the_file_to_submit(model_dir, tmp_path):
    write_glue(tmp_path / "SST-2", "SST-2", sentences(97, 1), sentences(31, 2), sentences(17, 3))
    output = tmp_path / "run"
    given = {"task_name": "SST-2", "data_dir": tmp_path / "SST-2"}
    run(model_dir, output, **given, do_train=True, do_eval=True, do_predict=True)
    assert read_json(output / "eval_results.json")["eval_accuracy"] > 0.9
    lines = (output / "SST-2.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 18
    predicted = [int(line.split("\t")[1]) for line in lines[1:]]
    assert np.mean(np.equal(predicted, [label for _, label in sentences(17, 3)])) > 0.8


def test_wnli_submits_the_commonest_label_as_the_paper_did(model_dir, tmp_path):
    train = [(text, int(number > 2)) for number, (text, _) in enumerate(sentences(13, 1))]
    write_glue(tmp_path / "WNLI", "WNLI", train, sentences(7, 2), sentences(5, 3))
    given = {"task_name": "WNLI", "data_dir": tmp_path / "WNLI", "num_train_epochs": 1}
    run(model_dir, tmp_path / "run", **{**given, "do_train": True, "do_predict": True})
    lines = (tmp_path / "run" / "WNLI.tsv").read_text().splitlines()[1:]
    assert [line.split("\t")[1] for line in lines] == ["1"] * 5
    assert get_task("wnli").labels == ("0", "1")


def test_the_originals_commands_predict_with_what_training_left(finished, model_dir, tables):
    given = {
        "vocab_file": model_dir / "words.txt",
        "bert_config_file": model_dir / "bert_config.json",
        "init_checkpoint": model_dir / "bert_model.ckpt",  # not fine-tuned
        "output_dir": finished,
        "max_seq_length": 13,
        **own(tables),
    }
    expected = (finished / "test_results.tsv").read_bytes()
    (finished / "test_results.tsv").unlink()
    classification.run(command({**given, "do_train": False, "do_predict": True}))
    assert (finished / "test_results.tsv").read_bytes() == expected
    with pytest.raises(InputError, match="for classification, not for multi_label"):
        classification.run(command({**given, "kind": "multi_label", "do_predict": True}))


@pytest.mark.slow
def test_finished_runs_may_be_moved(model_dir, tables, tmp_path):
    given = {**own(tables), "do_train": True, "num_train_steps": 1, "seeds": "5,11"}
    run(model_dir, tmp_path / "before", **given)
    (tmp_path / "before").rename(tmp_path / "after")
    run(model_dir, tmp_path / "after", **given)
    folders = [run["folder"] for run in read_json(tmp_path / "after" / "seeds.json")["runs"]]
    assert folders == [str(tmp_path / "after" / f"seed-{seed}") for seed in (5, 11)]


def test_evaluating_in_training_or_not_is_said_to_be_another_run(model_dir, tables, tmp_path):
    given = {**own(tables), "do_train": True, "num_train_steps": 1}
    run(model_dir, tmp_path, **given)
    with pytest.raises(InputError, match="or it was with --do_eval and now is without"):
        run(model_dir, tmp_path, **given, do_eval=True)


def test_the_originals_three_flags_work_in_place_of_model_dir(model_dir, tables, tmp_path):
    given = {
        "vocab_file": model_dir / "words.txt",
        "bert_config_file": model_dir / "bert_config.json",
        "init_checkpoint": model_dir / "bert_model.ckpt",
        "output_dir": tmp_path,
        **own(tables),
        **QUICK,
        "num_train_steps": 2,
        "do_train": True,
    }
    classification.run(command(given))
    assert load_model(tmp_path).labels == ("no", "yes")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give at least one of --do_train, --do_eval, --do_predict"),
        ({"do_train": True, "use_tpu": True}, "use_tpu, .* with --distribution_strategy=tpu"),
        ({"do_train": True, "seeds": "1,1"}, "seeds: expected different whole numbers"),
        ({"do_train": True, "max_seq_length": 37}, "max_seq_length: the model has 31 positions"),
        ({"do_train": True, "learning_rate": -1}, "learning_rate: expected above 0"),
        (
            {"do_train": True, "learning_rate": "nan"},
            "learning_rate: expected above 0",
        ),
        ({"do_train": True, "iterations_per_loop": 0}, "iterations_per_loop: expected at least 1"),
        ({"do_train": True, "train_batch_size": 0}, "train_batch_size: expected at least 1"),
        ({"do_train": True, "num_train_epochs": 0.01}, "97 examples in batches of 7 make no step"),
        ({"do_train": True, "profile_steps": "9,999"}, "which takes 55, got 9,999"),
        ({"do_train": True, "seeds": "1,01"}, "seeds: expected different whole numbers"),
        (
            {"do_train": True, "num_train_epochs": "inf"},
            "num_train_epochs: expected .* below inf",
        ),
        ({"do_train": True, "eval_every_steps": -3}, "eval_every_steps: expected at least 0"),
        ({"do_train": True, "early_stop_evals": -1}, "early_stop_evals: expected at least 0"),
        ({"do_train": True, "early_stop_evals": 2}, "early_stop_evals: needs --do_eval"),
        ({"do_train": True, "freeze": "("}, "not a regular expression: '\\('"),
        ({"do_train": True, "freeze": "nothing"}, "no weight of the model matches 'nothing'"),
        *(
            ({"do_train": True, "class_weights": w}, "class_weights: expected .* no, yes; got")
            for w in ("1", "0,0", "1,2,3", "1,-2", "1,nan", "equal", "1,inf")
        ),
        ({"do_train": True, "label_smoothing": 1}, "label_smoothing: expected at least 0 and"),
        *(
            ({"do_train": True, name: value}, f"{name}: {message}")
            for name, value, message in (
                ("learning_rates", "1e-3,0.001", "expected different numbers, got 0.001,0.001"),
                ("learning_rates", "1e-3,-1", "expected above 0"),
                ("learning_rates", "1e-3,x", "expected float values, got 1e-3,x"),
                ("learning_rates", "1e-3,2e-3", "needs --do_eval, whose dev set tells which"),
                ("train_batch_sizes", "8,0", "expected at least 1, got 0"),
                ("train_batch_sizes", "8,16", "needs --do_eval, whose dev set tells which is best"),
            )
        ),
        (
            {**DO, "train_batch_sizes": "8,999", "num_train_epochs": 1},
            "in batches of 999 make no step",
        ),
        ({**DO, "folds": 1}, "folds: expected at least 2, or 0 for none; got 1"),
        ({"do_train": True, "folds": 3}, "folds: needs --do_train and --do_eval"),
        ({**DO, "folds": 3}, "dev_file: is of a dev set, which parts of the training set"),
        *(
            ({**DO, "folds": 3, "dev_file": None, name: value}, f"{name}: {message}")
            for name, value, message in (
                ("early_stop_evals", 2, "is of a dev set"),
                ("report", True, "is of a dev set"),
                ("calibrate", True, "is of a dev set"),
                ("thresholds", "each", "are chosen on a dev set, and --folds leave none"),
                ("teacher_dir", "x", "a teacher may have learnt from what --folds hold out"),
                ("folds", 99, "expected at most"),
            )
        ),
        ({"do_train": True, "report": True}, "report: needs --do_eval, of whose figures"),
        ({"do_train": True, "calibrate": True}, "calibrate: needs --do_eval, on whose dev set"),
        ({"do_train": True, "thresholds": "one"}, "thresholds: needs --do_eval, on whose dev set"),
        ({"do_eval": True, "thresholds": "one"}, "thresholds: is for kind multi_label, got class"),
        ({"do_train": True, "init_checkpoint": "x"}, "give --model_dir or --init_checkpoint"),
        ({"do_eval": True}, "no weights of a classification head"),
    ],
)
def test_bad_flags_are_refused(model_dir, tables, tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        run(model_dir, tmp_path, **{**own(tables), **given})


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("balanced", (11 / 16, 11 / 6)),
        pytest.param("3,0.5", (3.0, 0.5), marks=pytest.mark.thorough),
    ],
)
def test_weights_of_labels(model_dir, tmp_path, capsys, given, expected):
    good, bad = (("the film was good", "no"), ("the film was bad", "yes"))
    write_table(tmp_path / "train.csv", [good] * 8 + [bad] * 3)
    table = {"train_file": tmp_path / "train.csv", "text_column": "text", "label_column": "label"}
    # One step on all examples, whose loss is that of the model it begins with.
    quick = {"train_batch_size": 11, "num_train_steps": 1, "do_train": True, "log_steps": 1}
    losses = {}
    for weights in ("8,0", "0,3", given):
        run(model_dir, tmp_path / weights, **table, **quick, class_weights=weights)
        line = (tmp_path / weights / "metrics.jsonl").read_text().splitlines()[0]
        losses[weights] = json.loads(line)["loss"]
    assert losses["8,0"] != pytest.approx(losses["0,3"], rel=1e-3)  # each of one label alone
    first, second = expected
    assert f"in the loss: no {first:.4g}, yes {second:.4g}\n" in capsys.readouterr().out
    mean = (8 * first * losses["8,0"] + 3 * second * losses["0,3"]) / (8 * first + 3 * second)
    assert losses[given] == pytest.approx(mean, rel=1e-5)
    assert read_json(tmp_path / given / "run.json")["settings"]["class_weights"] == [
        pytest.approx(first),
        pytest.approx(second),
    ]
    with pytest.raises(InputError, match="run with class_weights .*, and now it is None"):
        run(model_dir, tmp_path / given, **table, **quick)


@pytest.mark.thorough
def test_labels_are_smoothed_in_training_alone(model_dir, tables, tmp_path):
    # One step on all examples, whose loss is that of the model it begins with.
    quick = {"train_batch_size": 97, "num_train_steps": 1, "log_steps": 1, "learning_rate": 1e-12}
    quick["jit_compile"] = "false"
    given = {**QUICK, **own(tables), **quick, "do_train": True, "do_eval": True}
    losses, evaluated = [], []
    for smoothing in (0, 0.25):
        run(model_dir, tmp_path / str(smoothing), **given, label_smoothing=smoothing)
        text = (tmp_path / str(smoothing) / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        losses += [line["loss"] for line in lines if "loss" in line]
        evaluated += [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert abs(losses[1] - losses[0]) > 1e-2
    assert evaluated == pytest.approx([evaluated[0]] * 2, rel=1e-5)
    with pytest.raises(InputError, match="run with label_smoothing 0.25, and now it is None"):
        run(model_dir, tmp_path / "0.25", **given)


def test_two_processes_do_not_train_in_one_folder(model_dir, tables, tmp_path):
    with filelock.FileLock(tmp_path / "lock"):
        with pytest.raises(InputError, match="output_dir: another process trains in "):
            run(model_dir, tmp_path, **own(tables), do_train=True)
        assert not any(path.suffix == ".index" for path in tmp_path.iterdir())


def test_weights_of_labels_are_for_one_label_an_example(model_dir, tmp_path):
    rows = [(f"the film was {word}", number) for number, word in enumerate(GOOD)]
    write_table(tmp_path / "train.csv", rows)
    table = {"train_file": tmp_path / "train.csv", "text_column": "text", "label_column": "label"}
    with pytest.raises(InputError, match="class_weights: is for kind classification or token_"):
        run(model_dir, tmp_path / "x", **table, do_train=True, kind="regression", class_weights="1")


def test_a_label_of_another_model_is_refused(finished, tables, tmp_path):
    rows = [("the film was good", "maybe"), ("the film was bad", "no")]
    write_table(tmp_path / "train.csv", rows)
    write_table(tmp_path / "dev.csv", rows)
    given = own(tmp_path) | {"test_file": tables / "test.csv"}
    with pytest.raises(InputError, match="labels are no, yes, the task's maybe, no"):
        run(finished, tmp_path / "x", **given, do_eval=True)


def test_new_texts_need_neither_the_training_file_nor_labels(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    expected = (tmp_path / "run" / "predictions.csv").read_text()
    (tmp_path / "run" / "predictions.csv").unlink()
    write_table(tmp_path / "test.csv", [(text,) for text, _ in sentences(23, 3)], ("text",))
    given = {"test_file": tmp_path / "test.csv", "text_column": "text", "max_seq_length": 13}
    classification.run(command({**given, "output_dir": tmp_path / "run", "do_predict": True}))
    assert (tmp_path / "run" / "predictions.csv").read_text() == expected


@pytest.mark.parametrize("skip", [False, True])
def test_every_row_is_predicted_whatever_stands_for_its_label(finished, tmp_path, skip):
    """Nothing uses the labels of a test, which are often empty or "?"; ids are the user's own."""
    shutil.copytree(finished, tmp_path / "run")
    with open(finished / "predictions.csv", encoding="utf-8", newline="") as stream:
        expected = [row["prediction"] for row in csv.DictReader(stream)]
    rows = [(f"r{i}", text, ("", "?", "no")[i % 3]) for i, (text, _) in enumerate(sentences(23, 3))]
    write_table(tmp_path / "test.csv", rows, ("name", "text", "label"))
    given = {"test_file": tmp_path / "test.csv", "text_column": "text", "label_column": "label"}
    given |= {"id_column": "name", "max_seq_length": 13, "skip_bad_examples": skip}
    classification.run(command({**given, "output_dir": tmp_path / "run", "do_predict": True}))
    with open(tmp_path / "run" / "predictions.csv", encoding="utf-8", newline="") as stream:
        predicted = list(csv.DictReader(stream))
    assert [row["id"] for row in predicted] == [f"r{i}" for i in range(23)]
    assert [row["prediction"] for row in predicted] == expected


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_a_model_with_another_number_of_outputs_is_refused(finished, tmp_path, kind):
    shutil.copytree(finished, tmp_path / "run")
    for name in ("labels.txt", "bert_task.json"):
        (tmp_path / "run" / name).unlink()
    write_table(tmp_path / "test.csv", [(text,) for text, _ in sentences(3, 3)], ("text",))
    given = {"test_file": tmp_path / "test.csv", "text_column": "text", "max_seq_length": 13}
    given |= {"kind": kind} | ({"labels": "a,b,c"} if kind == "classification" else {})
    values = command({**given, "output_dir": tmp_path / "run", "do_predict": True})
    with pytest.raises(InputError, match="the model has 2 outputs"):
        classification.run(values)


def test_bad_input_is_one_line_and_status_1(model_dir, tables, tmp_path):
    (tmp_path / "ragged.csv").write_text("text,label\nthe film was good,yes\nonly one column\n")
    arguments = [
        f"--model_dir={model_dir}",
        f"--train_file={tmp_path / 'ragged.csv'}",
        "--text_column=text",
        "--label_column=label",
        "--do_train",
        f"--output_dir={tmp_path / 'out'}",
        "--max_seq_length=13",
    ]
    done = warm_commands.run(["experiments/run_classifier.py", *arguments], cwd=REPOSITORY)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("run_classifier: ") and "ragged.csv, line 3" in last
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_run_that_begins_with_other_weights_of_the_same_place_is_another(
    model_dir, tables, tmp_path
):
    folder = tmp_path / "model"
    shutil.copytree(model_dir, folder)
    given = {**own(tables), "do_train": True, "num_train_steps": 2}
    run(folder, tmp_path / "run", **given)
    # The same weights elsewhere are the same run; others in the same place are not.
    run(model_dir, tmp_path / "run", **given)
    keras.utils.set_random_seed(29)
    save_model_directory(folder, HEADS["encoder"].make(CONFIG))
    with pytest.raises(InputError, match="holds a run with begins_with"):
        run(folder, tmp_path / "run", **given)


def test_a_model_is_not_taken_for_another_kind_with_the_same_head(finished, tables, tmp_path):
    with pytest.raises(InputError, match="for classification, not for multi_label"):
        run(finished, tmp_path, **own(tables), kind="multi_label", do_predict=True)


def test_memory_that_runs_out_is_one_line(capsys):
    def run_out():
        message = "Graph execution error:\n\nOOM when allocating\nmore"
        raise tf.errors.ResourceExhaustedError(None, None, message)

    values = flags.FlagValues()
    define(FineTuningOptions, values)
    values(["script.py", "--output_dir=x", "--train_batch_size=64"])
    assert exit_on_error("script", run_out, values) == OUT_OF_MEMORY_STATUS
    error = capsys.readouterr().err
    assert error.startswith(
        "script: out of memory with train_batch_size 64, eval_batch_size 8, "
        "max_seq_length 128, gradient_accumulation_steps 1; lower --train_batch_size"
    )
    assert "raise --gradient_accumulation_steps, use --precision=mixed_bfloat16: " in error
    assert error.endswith("OOM when allocating\n")
    assert exit_on_error("script", run_out, flags.FlagValues()) == OUT_OF_MEMORY_STATUS
    assert capsys.readouterr().err == "script: out of memory: OOM when allocating\n"
    with pytest.raises(KeyError):  # a mistake of the program, not of its user
        exit_on_error("script", lambda: {}["missing"])


def test_the_checkpoint_to_begin_with_is_not_removed_by_overwriting(model_dir, tables, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(model_dir, folder)
    for path in list(folder.glob("bert_model.ckpt.*")):
        path.rename(folder / path.name.replace("bert_model.ckpt", "model.ckpt-7"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match="which the run is to begin with"):
        run(folder, folder, **own(tables), do_train=True, overwrite=True)
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert after == before
