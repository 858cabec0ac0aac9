"""The benchmarks with stand-ins for what takes long: what they measure, print and write.

The slow test at the end runs each script with small shapes, all contenders that are installed.
"""

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from bert_tf.config import BertConfig
from bert_tf.input_pipeline.token_batches import TokenBatches, count_lengths
from bert_tf.models.task_models import HEADS
from bert_tf.records.files import RecordWriter
from bert_tf.serving.load import load_served_model
from bert_tf.serving.saved_model import export_saved_model
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights.save import save_hf, save_model_directory
from experiments.benchmarks import (
    accelerator,
    device_memory,
    finetuning,
    harness,
    length_bins,
    load,
    memory,
    pretraining_data,
    pretraining_steps,
    serving,
    tokenization,
    training,
    transformers_finetuning,
    weights,
)
from experiments.benchmarks.harness import Contender, Spent
from experiments.command_line.exit_status import InputError
from tests.support import command_options
from tests.support import synthetic_records as synthetic

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TINY = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}
CONFIG = BertConfig(
    vocab_size=13,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=7,
)


def rows_of(printed):
    """Return the cells of the tables that were printed, without their heads."""
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


@pytest.fixture
def processes(monkeypatch):
    """Let contenders be measured by `processes.measure`, in place of a process of each."""
    made = types.SimpleNamespace(asked=[], measure=None)

    def in_process(name, *more, **arguments):
        made.asked.append((name, *more))
        figures = made.measure(name, *more)
        if figures is None:
            raise RuntimeError(f"{name}: failed\nno memory")
        return dict(figures)

    monkeypatch.setattr(harness, "in_process", in_process)
    return made


@pytest.fixture
def eager():
    """Trace nothing: that takes longer than all that is computed here."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


# === What all share ===


def test_contenders_that_are_not_installed_are_left_out(capsys):
    contenders = {
        "a": Contender(print),
        "b": Contender(print, ("json", "no_such_package")),
        "c": Contender(print, ("json",)),
    }
    assert list(harness.installed(contenders)) == ["a", "c"]
    assert capsys.readouterr().out == "b: left out, not installed: no_such_package\n"
    assert list(harness.installed(contenders, ["c"])) == ["c"]
    with pytest.raises(
        ValueError, match=r"contenders: unknown \['x'\]; known are \['a', 'b', 'c'\]"
    ):
        harness.installed(contenders, ["a", "x"])


def test_times_and_tables(monkeypatch, capsys):
    wall, cpu = itertools.count(0, 2), itertools.count(0, 3)
    monkeypatch.setattr(harness.time, "perf_counter", lambda: float(next(wall)))
    monkeypatch.setattr(harness.time, "process_time", lambda: float(next(cpu)))
    called = []
    figures = harness.measure_calls(lambda: called.append(1) or len(called), 2, 3)
    assert len(called) == 5 and figures["loss"] == 5 and figures["peak_mib"] > 10
    assert figures["cpu_seconds"] == figures["least_cpu_seconds"] == 3
    assert figures["wall_seconds"] == figures["least_wall_seconds"] == figures["start_seconds"] == 2
    table = harness.Table("name seconds:.2f share:.0%")
    table.row({"name": "ours", "seconds": 1.234, "share": None})
    assert capsys.readouterr().out.splitlines() == [
        "| name                         |  seconds |    share |",
        "| ---------------------------- | -------- | -------- |",
        "| ours                         |     1.23 |          |",
    ]


def test_figures_are_written_with_the_options(tmp_path):
    path = tmp_path / "x.json"
    harness.write_figures(harness.BenchmarkOptions(), a=1)
    assert not path.exists()
    harness.write_figures(harness.BenchmarkOptions(str(path)), a=1)
    assert json.loads(path.read_text()) == {"flags": {"output_file": str(path)}, "a": 1}


def test_one_is_measured_in_a_process_of_its_own(monkeypatch, capsys):
    asked = []
    done = types.SimpleNamespace(returncode=0, stdout='a note\n{"seconds": 2}\n', stderr="")

    def run(command, env, **arguments):
        asked.append((command, env))
        return done

    monkeypatch.setattr(harness.subprocess, "run", run)
    monkeypatch.setattr(harness.sys, "argv", ["bench.py", "--size=3"])
    assert harness.in_process("a", "--size=4", environment={"X": "1"}) == {"seconds": 2}
    ((command, environment),) = asked
    assert command[1:] == [os.path.abspath("bench.py"), "--size=3", "--size=4", "--contender=a"]
    assert environment["X"] == "1" and environment["TF_CPP_MIN_LOG_LEVEL"] == "2"
    done.returncode, done.stderr = 1, "x" * 3000 + "MemoryError"
    with pytest.raises(RuntimeError, match="^a: failed\nx{1989}MemoryError$"):
        harness.in_process("a")
    assert harness.try_in_process("a") is None and "a: failed" in capsys.readouterr().out


def run_benchmark(monkeypatch, *arguments):
    """Run a benchmark of one option; return its status, what it measured and compared."""
    done, values = [], flags.FlagValues()
    monkeypatch.setattr(harness, "flags", types.SimpleNamespace(FLAGS=values, DEFINE_string=None))
    harness.flags.DEFINE_string = lambda *given: flags.DEFINE_string(*given, flag_values=values)
    monkeypatch.setattr(harness.sys, "argv", ["a/bench.py"])
    statuses = []
    monkeypatch.setattr(
        harness.app,
        "run",
        lambda main, flags_parser: statuses.append(main(values(["bench", *arguments]))),
    )
    harness.run_benchmark(
        training.Options,
        lambda options: done.append(options.batch_size),
        lambda options, name: {"name": name, "size": options.batch_size},
        batch_size=5,
    )
    return statuses[0], done


def test_a_benchmark_compares_or_measures_one(monkeypatch, capsys):
    assert run_benchmark(monkeypatch) == (0, [5])
    assert run_benchmark(monkeypatch, "--contender=a", "--batch_size=3") == (0, [])
    assert json.loads(capsys.readouterr().out) == {"name": "a", "size": 3}
    with pytest.raises(SystemExit, match="unexpected argument 'more'"):
        run_benchmark(monkeypatch, "more")


# === Pre-training steps ===


def test_a_step_of_ours_on_a_batch_of_random_pieces(eager):
    options = training.Options(
        batch_size=2,
        max_seq_length=7,
        max_predictions_per_seq=3,
        vocab_size=13,
        dropout=0.0,
        **TINY,
    )
    shapes = training.make_shapes(options)
    assert shapes.config.intermediate_size == 32 and shapes.config.hidden_dropout_prob == 0
    batch = shapes.batch()
    assert batch["input_ids"].shape == (2, 7) and batch["masked_lm_positions"].shape == (2, 3)
    assert batch["input_ids"].max() < 13 and batch["masked_lm_positions"].min() > 0
    again = shapes.batch()
    assert all((again[name] == value).all() for name, value in batch.items())
    options = dataclasses.replace(options, accuracy=True, num_steps=2, num_warmup_steps=1)
    figures = training.measure(options, "ours_graph")
    assert 0.5 < figures["loss"] / (np.log(13) + np.log(2)) < 1.5
    assert figures["cpu_seconds"] > 0 and figures["start_seconds"] > 0


def test_packed_rows_of_random_pieces():
    batch = pretraining_steps.Shapes(CONFIG, 2, 7, 3, sequences=3).batch()
    assert batch["sequence_ids"].tolist() == [[1, 1, 1, 2, 2, 3, 3]] * 2
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1]] * 2
    assert batch["pooled_positions"].tolist() == [[0, 3, 5]] * 2
    assert batch["next_sentence_labels"].shape == (2, 3)


def test_contenders_of_a_step_take_turns(processes, monkeypatch, tmp_path, capsys):
    rounds = {"ours_graph": [3.0, 2.0], "ours_xla": [1.0, 5.0], "transformers": [4.0, 4.5]}
    names = (*rounds, "kerashub_graph")
    monkeypatch.setattr(harness, "installed", lambda known, asked: dict.fromkeys(names))

    def measure(name):
        if name not in rounds:
            return None
        return {"cpu_seconds": rounds[name].pop(0), "wall_seconds": 9.0, "peak_mib": 7.0}

    processes.measure = measure
    path = tmp_path / "x.json"
    training.compare(training.Options(str(path), num_rounds=2))
    assert [name for (name,) in processes.asked] == [*names] * 2
    printed = capsys.readouterr().out
    assert "kerashub_graph: failed" in printed and "batch 32, length 128, 20 predict" in printed
    assert rows_of(printed)[2:] == [
        ["ours_graph", "2.000", "9.000", "2.00", "7"],
        ["ours_xla", "1.000", "9.000", "1.00", "7"],
        ["transformers", "4.000", "9.000", "4.00", "7"],
    ]
    assert list(json.loads(path.read_text())["results"]) == [*names[:3]]


def test_memory_of_recomputed_layers(processes, monkeypatch, capsys):
    made = []

    def our_step(shapes, **arguments):
        made.append((shapes.config.num_attention_heads, shapes.batch_size, arguments))
        return lambda: 2.5

    monkeypatch.setattr(memory, "our_step", our_step)
    options = memory.Options(batch_size=3, hidden_size=192, num_steps=2, num_warmup_steps=0)
    assert memory.measure(options, "all")["loss"] == 2.5
    assert made == [(3, 3, {"jit_compile": False, "recompute": "all"})]
    processes.measure = lambda name, *little: {
        "peak_mib": 100 if little else 900,
        "least_cpu_seconds": 1.5,
        "loss": 2.0,
    }
    memory.compare(memory.Options(recompute=("none", "all")))
    rows = [[name, "900", "100", "1.50", "2.000000"] for name in ("none", "all")]
    assert rows_of(capsys.readouterr().out)[2:] == rows
    assert processes.asked[1] == ("none", "--batch_size=1", "--max_seq_length=32", "--num_steps=1")


# === On accelerators and meshes ===


def test_an_accelerator_is_measured_by_what_its_products_take(processes, monkeypatch, capsys):
    present = {
        name: types.SimpleNamespace(present=name == "lengths") for name in accelerator._SMALL
    }
    monkeypatch.setattr(accelerator, "flags", types.SimpleNamespace(FLAGS=present))
    assert accelerator._sized(accelerator.Options()) == accelerator.Options()
    options = accelerator._sized(accelerator.Options(small=True, lengths=(32, 64)))
    assert options.model_sizes == ("tiny",) and options.lengths == (32, 64)
    shapes = accelerator._shapes(options, "tiny", 32)
    assert (shapes.batch_size, shapes.length, shapes.predictions) == (2, 32, 5)
    work = accelerator.flops_of_sequence(shapes)
    monkeypatch.setattr(accelerator, "_device_of", lambda name: {"device": "one", "peak_bytes": 0})
    taken = []

    def prepare(*given):
        return lambda: taken.append(1), lambda: 0.5

    monkeypatch.setattr(accelerator, "CONTENDERS", {"ours": Contender(prepare)})
    monkeypatch.setattr(accelerator, "MATRICES", {"matrices": Contender(prepare)})
    figures = accelerator.measure(options, "ours:tiny:32")
    assert len(taken) == 2 + 3 * 2 and figures["loss"] == 0.5 and figures["device"] == "one"
    rate = figures["sequences_per_second"]
    assert figures["model_flops_per_second"] == pytest.approx(rate * work)
    assert rate == pytest.approx(2 / figures["seconds_per_step"])
    figures = accelerator.measure(options, "matrices")
    expected = 2 * 256**3 / figures["seconds_per_step"]
    assert figures["flops_per_second"] == pytest.approx(expected)

    def measure(job):
        if job == "matrices":
            return {"flops_per_second": 4e12, "device": "one"}
        figures = {"sequences_per_second": 8.0, "seconds_per_step": 0.25, "peak_bytes": 2**31}
        return None if job.endswith("64") else {**figures, "model_flops_per_second": 1e12}

    processes.measure = measure
    accelerator.compare(options)
    printed = capsys.readouterr().out
    assert "matrices: 4 TFLOP/s on one\n" in printed
    row = ["ours", "tiny", "32", "2", "8.0", "0.2500", "25.0%", "2.0"]
    assert rows_of(printed)[2:] == [row]
    processes.measure = lambda job: None
    with pytest.raises(RuntimeError, match="no contender could run"):
        accelerator.compare(options)


def test_which_device_a_contender_ran_on(monkeypatch):
    device = types.SimpleNamespace(device_kind="cpu", memory_stats=lambda: None)
    jax = types.SimpleNamespace(devices=lambda: [device], __version__="7")
    cuda = types.SimpleNamespace(
        is_available=lambda: True, get_device_name=lambda: "H", max_memory_allocated=lambda: 9
    )
    monkeypatch.setitem(sys.modules, "jax", jax)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda, __version__="8"))
    found = accelerator._device_of("ours")
    assert found == {"device": "cpu", "peak_bytes": None, "jax": "7"}
    assert accelerator._device_of("x") == {"device": "H", "peak_bytes": 9, "torch": "8"}
    cuda.is_available = lambda: False
    assert accelerator._device_of("x") == {"device": "cpu", "peak_bytes": None, "torch": "8"}


def test_steps_are_compiled_for_a_mesh(processes, monkeypatch, tmp_path, capsys):
    jax = types.ModuleType("jax")
    jax.devices, topologies = lambda: [1, 2], types.ModuleType("topologies")
    topologies.get_topology_desc = lambda name, platform: types.SimpleNamespace(devices=[3, 4, 5])
    monkeypatch.setitem(sys.modules, "jax", jax)
    experimental = types.ModuleType("jax.experimental")
    experimental.topologies = topologies
    monkeypatch.setitem(sys.modules, "jax.experimental", experimental)
    assert device_memory.devices_of("host", 2) == [1, 2]
    assert device_memory.devices_of("v5e:3", 3) == [3, 4, 5]
    with pytest.raises(ValueError, match="mesh: has 4 devices, v5e:3 3"):
        device_memory.devices_of("v5e:3", 4)
    gib = 2**30
    sizes = {"argument_size_in_bytes": 5 * gib, "output_size_in_bytes": 4 * gib}
    sizes |= {"alias_size_in_bytes": 3 * gib, "temp_size_in_bytes": 2 * gib}
    analysis = types.SimpleNamespace(**sizes, generated_code_size_in_bytes=gib)
    text = "x = all-reduce(a)\n y = all-gather-start(b)\n z = all-to-allx(c)"
    compiled = types.SimpleNamespace(
        memory_analysis=lambda: analysis,
        cost_analysis=lambda: {"flops": 3e12},
        as_text=lambda: text.replace("= ", "= f32[] "),
    )
    traced = types.SimpleNamespace(lower=lambda: types.SimpleNamespace(compile=lambda: compiled))
    asked = []
    monkeypatch.setattr(
        device_memory, "trace_step", lambda options, shapes: asked.append(shapes) or traced
    )
    options = device_memory.Options(
        str(tmp_path / "x.json"), model_sizes=("tiny",), lengths=(64, 128), sequences_per_row=2
    )
    figures = device_memory.measure(options, "tiny:64")
    assert (asked[0].batch_size, asked[0].length, asked[0].sequences) == (64, 64, 2)
    assert asked[0].predictions == 10 and asked[0].config.num_hidden_layers == 2
    assert figures.pop("compile_cpu_seconds") >= 0
    expected = {"state_gib": 6, "step_gib": 3, "gib": 9, "tflop": 3, "collectives": 2}
    assert figures == expected
    processes.measure = lambda job: None if "64" in job else {**figures, "compile_cpu_seconds": 7}
    device_memory.compare(options)
    row = ["tiny", "128", "6.00", "3.00", "9.00", "3.00", "2", "7"]
    assert rows_of(capsys.readouterr().out)[2:] == [row]
    assert len(json.loads((tmp_path / "x.json").read_text())["results"]) == 1
    processes.measure = lambda job: None
    with pytest.raises(RuntimeError, match="nothing could be compiled; see above"):
        device_memory.compare(options)
    with pytest.raises(ValueError, match="mesh: expected two numbers, got 8"):
        device_memory.compare(dataclasses.replace(options, mesh=(8,)))


# === Lengths ===


def test_what_grouping_by_length_saves(processes, monkeypatch, tmp_path, capsys):
    options = finetuning.Options(
        cache_dir=str(tmp_path), batch_size=4, max_seq_length=17, num_records=15, num_batches=3,
        num_warmup_steps=1, **TINY
    )  # fmt: skip
    with monkeypatch.context() as patched:
        step = lambda batch: tf.reduce_sum(batch[0]["input_mask"])  # noqa: E731
        patched.setattr(finetuning, "_training_step", lambda options: step)
        patched.setattr(tf, "function", lambda step, **_: step)
        grouped, padded = (finetuning.measure(options, name) for name in finetuning.CONTENDERS)
    lengths = np.load(tmp_path / "x.npy")
    assert lengths.shape == (15,) and lengths.min() >= 3 and lengths.max() <= 17
    assert padded["mean_length"] == 17 > grouped["mean_length"]
    assert padded["real_tokens"] < grouped["real_tokens"] <= 1
    assert padded["cpu_seconds_per_epoch"] == pytest.approx(3 * padded["cpu_seconds"])
    batch = {name: tf.ones([2, 5], tf.int32) for name in ("input_ids", "input_mask")}
    batch["segment_ids"] = tf.zeros([2, 5], tf.int32)
    labels, ones = tf.constant([0, 1]), tf.ones([2])
    assert int(finetuning._training_step(options)((batch, labels, ones))) == 10
    with pytest.raises(ValueError, match="--contender needs --cache_dir"):
        finetuning.measure(dataclasses.replace(options, cache_dir=None), "grouped")
    with pytest.raises(ValueError, match="--data_dir needs --vocab_file"):
        finetuning.compare(dataclasses.replace(options, data_dir="x"))
    processes.measure = lambda name, place: {
        **grouped,
        "cpu_seconds": 1.0 if name == "grouped" else 4.0,
        "wall_seconds": 2.0,
    }
    finetuning.compare(dataclasses.replace(options, cache_dir=None))
    printed = capsys.readouterr().out
    assert "cpu time of grouped / padded: 0.250\nwall time of grouped / padded: 1.000" in printed
    assert [name for name, _ in processes.asked] == ["grouped", "padded_to_max"]
    assert processes.asked[0][1] == processes.asked[1][1] != f"--cache_dir={tmp_path}"


def test_records_of_a_task_are_made_for_the_benchmark(tmp_path):
    synthetic.write_vocabulary(tmp_path / "v.txt")
    (tmp_path / "train.tsv").write_text("sentence\tlabel\nw1 w2\t1\nw3\t0\n")
    options = finetuning.Options(
        data_dir=str(tmp_path), vocab_file=str(tmp_path / "v.txt"), max_seq_length=5
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("data_prep.finetuning.prepare.available_cores", lambda: 1, raising=False)
        _, lengths = finetuning.prepare_records(options, str(tmp_path / "out"))
    assert np.load(lengths).tolist() == [4, 3]


class Taken:
    """In place of a step: takes the batch and learns nothing."""

    def __init__(self):
        self.learning_rate, self.count = tf.constant(0.5), 0

    def run(self, batches, steps):
        next(batches)
        self.count += 1


@pytest.mark.parametrize("packed", [0, 3])
def test_what_batches_of_like_length_save(tmp_path, monkeypatch, capsys, packed):
    path = synthetic.write(tmp_path / "train.tfrecord", 61, 1)
    synthetic.write_vocabulary(tmp_path / "v.txt")
    options = length_bins.Options(
        str(tmp_path / "x.json"), path, str(tmp_path / "v.txt"), batch_size=4,
        max_seq_length=synthetic.LENGTH, max_predictions_per_seq=synthetic.PREDICTIONS,
        sequences_per_row=packed, num_steps=8, **TINY
    )  # fmt: skip
    made = []
    with monkeypatch.context() as patched:
        patched.setattr(
            length_bins, "_train_step", lambda options, packed: made.append(Taken()) or made[-1]
        )
        length_bins.compare(options)
    printed = capsys.readouterr().out
    name = "packed" if packed else "of like length"
    steps, first, padded = *printed.splitlines()[:1], *rows_of(printed)[2:]
    number = int(steps.split()[0])
    assert [one.count for one in made] == ([number + 2] * 2 if packed else [2 * (number + 2)])
    assert first[0] == name and padded[0] == "padded" and f"time of a sequence, {name} /" in printed
    assert float(first[4].rstrip("%")) < float(padded[4].rstrip("%"))
    assert padded[5] == "31.0" and float(first[5]) < 31
    results = json.loads((tmp_path / "x.json").read_text())["results"]
    assert results["padded"]["mean_predictions"] == synthetic.PREDICTIONS
    assert results["padded"]["shapes"] == 1


def test_what_batches_of_so_many_tokens_save(tmp_path, monkeypatch, capsys):
    path = synthetic.write(tmp_path / "train.tfrecord", 61, 1)
    options = length_bins.Options(
        str(tmp_path / "x.json"), path, "v.txt", batch_size=4, batch_tokens=131,
        max_seq_length=synthetic.LENGTH, max_predictions_per_seq=synthetic.PREDICTIONS,
        num_steps=8, **TINY
    )  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(length_bins, "_train_step", lambda *_: Taken())
        length_bins.compare(options)
    names = ["of like tokens", "of like length", "padded"]
    printed = capsys.readouterr().out
    assert [row[0] for row in rows_of(printed)[2:5]] == names
    for name in names[:2]:
        assert f"cpu time of a token, {name} / padded" in printed
    results = json.loads((tmp_path / "x.json").read_text())["results"]
    lengths = synthetic.make_arrays(61, 1)["input_mask"].sum(axis=1)
    counts = count_lengths(path, max_seq_length=31, max_predictions_per_seq=5)
    epoch = TokenBatches(counts, options.length_bins, 131)
    found = results["of like tokens"]
    # What is timed of each width stands for all of it.
    assert found["batch_sequences"] == pytest.approx(61 / epoch.num_batches)
    real = (1 - found["padding"]) * found["mean_length"]
    assert real == pytest.approx(lengths.mean())
    assert found["shapes"] == epoch.num_shapes > 1
    assert found["token_cpu_seconds"] == pytest.approx(found["cpu_seconds"] / real)


def test_the_model_of_the_lengths_is_as_the_options_say(tmp_path):
    synthetic.write_vocabulary(tmp_path / "v.txt")
    options = length_bins.Options("x", "y", str(tmp_path / "v.txt"), max_seq_length=600, **TINY)
    step = length_bins._train_step(options, True)
    config = step.model.get_layer("bert").config
    assert (config.vocab_size, config.max_position_embeddings) == (97, 600)
    assert "position_ids" in step.model.input


# === Data preparation and tokenizers ===


def test_commands_of_data_preparation_are_measured(tmp_path):
    pytest.importorskip("psutil")
    code = "x = bytearray(40 << 20); x[::4096] = b'1' * len(x[::4096]); import time; time.sleep(.2)"
    figures = pretraining_data.measure([sys.executable, "-c", code])
    assert 40 * 2**20 < figures["peak_bytes"] and 40 * 2**20 < figures["peak_process_bytes"]
    assert figures["wall_seconds"] > 0.2 and figures["cpu_seconds"] > 0
    with pytest.raises(RuntimeError, match=r"-c raise SystemExit\('no'\) ... failed:\nno"):
        pretraining_data.measure([sys.executable, "-c", "raise SystemExit('no')"])


def test_the_original_is_scaled_to_the_whole_text(tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.txt"
    text.write_text("a b\n\nc d\n\n" * 50)
    pretraining_data._first_documents(text, tmp_path / "part", 0.1)
    assert (tmp_path / "part").read_text() == "a b\n\nc d\n\n" * 5
    small, large = {"instances": 2, "wall_seconds": 3.0}, {"instances": 4, "wall_seconds": 5.0}
    scaled = pretraining_data._extrapolate(small, large, 10)
    assert scaled == {"instances": 10, "wall_seconds": 11.0}

    def measure(command):
        given = dict(part.lstrip("-").split("=", 1) for part in command if "=" in part)
        lines = pathlib.Path(given["input_file"]).read_text().splitlines()
        with RecordWriter(given["output_file"]) as writer:
            for line in filter(None, lines):
                writer.write(line.encode())
        seconds = 0.5 * len(lines) if "-c" in command else 20.0
        return {
            "wall_seconds": seconds, "cpu_seconds": seconds,
            "peak_bytes": 2**20, "peak_process_bytes": 2**21,
        }  # fmt: skip

    monkeypatch.setattr(pretraining_data, "measure", measure)
    options = pretraining_data.Options(
        str(tmp_path / "x.json"), str(text), "v.txt", bert_checkout="bert", with_flags=("",),
        original_fraction=0.5, repeats=2,
    )  # fmt: skip
    pretraining_data.compare(options)
    printed = capsys.readouterr().out
    rows = rows_of(printed)[2:]
    assert [row[0] for row in rows] == [
        "ours, whole text", "ours, whole text", "original, 3.00% of the text",
        "original, 50.00% of the text", "original, scaled to the whole",
    ]  # fmt: skip
    assert rows[0][3:] == ["100", "1", "2"] and rows[-1][1] == "100.0"
    assert "wall time, original / ours: 5.0\ncpu time, original / ours: 5.0" in printed
    (result,) = json.loads((tmp_path / "x.json").read_text())["results"]
    assert result["original_scaled"]["instances"] == 100


def test_tokenizers_are_compared_with_ours(tmp_path, monkeypatch, capsys):
    synthetic.write_vocabulary(tmp_path / "v.txt")
    (tmp_path / "text.txt").write_text("w1 w2\nw3 nothing\n" * 20)
    (tmp_path / "tokenization.py").write_text(
        "import tensorflow as tf\n"
        "class FullTokenizer:\n"
        "    def __init__(self, path, lower):\n"
        "        with tf.gfile.GFile(path, 'r') as stream:\n"
        "            names = stream.read().split()\n"
        "        self.ids = {name: number for number, name in enumerate(names)}\n"
        "    def tokenize(self, line):\n"
        "        return line.split()\n"
        "    def convert_tokens_to_ids(self, pieces):\n"
        "        return [self.ids.get(piece, 9) for piece in pieces]\n"
    )
    options = tokenization.Options(
        str(tmp_path / "x.json"), str(tmp_path / "text.txt"), str(tmp_path / "v.txt"),
        original=str(tmp_path), megabytes=1e-4, peer_megabytes=6e-5, warm_rounds=1,
    )  # fmt: skip
    clock = itertools.count()
    monkeypatch.setattr(harness.time, "perf_counter", lambda: 1e-6 * next(clock))
    monkeypatch.setattr(harness.time, "process_time", lambda: 1e-6 * next(clock))
    known = tokenization.CONTENDERS
    chosen = {name: known[name] for name in ("ours", "google-research/bert")}
    monkeypatch.setattr(tokenization, "CONTENDERS", chosen)
    tokenization.compare(options)
    printed = capsys.readouterr().out
    assert "lines that differ from the original: 4 of 8" in printed  # its [UNK] is another
    at_once = [f"ours, many lines at once, {state}" for state in ("cold", "warm")]
    names = ["ours, cold", "ours, warm, round 1", *at_once]
    names += ["ours, with offsets", "ours, without memo"]
    assert [row[0] for row in rows_of(printed)[2:]] == [*names, "google-research/bert"]
    results = json.loads((tmp_path / "x.json").read_text())["results"]
    assert set(results) == {*names, "google-research/bert"}
    run = tokenization._Measurement(options)
    assert len(run.lines) == 12 and len(run.few) == 8
    tokenization._measure_original(
        types.SimpleNamespace(options=dataclasses.replace(options, original=None))
    )
    assert tokenization._first(["a"], 1) == ["a"]


# === Weights ===


def test_reading_of_checkpoints(processes, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(weights, "write_checkpoints", lambda options, folder: 50 * 2**20)
    names = ("built only", "ours, safetensors", "transformers, safetensors")
    monkeypatch.setattr(harness, "installed", lambda known: dict.fromkeys(names))
    peaks = {"built only": [60, 50], names[1]: [120, 100], names[2]: [160, 100]}
    seconds = itertools.cycle([3.0, 2.0])
    processes.measure = lambda name, place: {
        "cpu_seconds": next(seconds),
        "wall_seconds": 1.0,
        "peak_mib": peaks[name].pop(0),
    }
    weights.compare(weights.Options(str(tmp_path / "x.json"), num_rounds=2))
    printed = capsys.readouterr().out
    assert printed.startswith("large: weights of 50 MiB\n")
    assert rows_of(printed)[2:] == [
        ["built only", "2.00", "1.00", "60", ""],
        ["ours, safetensors", "2.00", "1.00", "120", "1.20"],
        ["transformers, safetensors", "2.00", "1.00", "160", ""],
    ]
    monkeypatch.setattr(
        weights, "CONTENDERS", {"x": Contender(lambda options: lambda: bytearray(9))}
    )
    figures = weights.measure(weights.Options(), "x")
    assert set(figures) == {"cpu_seconds", "wall_seconds", "peak_mib"} and figures["peak_mib"] >= 0


# === Fine-tuning beside transformers ===


def options_beside(tmp_path, **given):
    return command_options.of(
        transformers_finetuning.CompareOptions,
        **{"output_dir": tmp_path, "task_name": "SST-2", "data_dir": "d", **given},
    )


def test_losses_and_scores_of_both_are_told(tmp_path, monkeypatch, capsys):
    data = types.SimpleNamespace(task=types.SimpleNamespace(name="sst-2"))
    monkeypatch.setattr(transformers_finetuning, "check_options", lambda options: None)
    monkeypatch.setattr(transformers_finetuning, "_prepared", lambda options: ("start", data))
    monkeypatch.setattr(
        transformers_finetuning, "dev_set", lambda *_: ("dev", lambda x: {"accuracy": x})
    )

    def both(options, start, data, dev, seed):
        losses = [1.0] * 25
        ours = transformers_finetuning.Trained(losses, 0.5, 3.0, 4.0)
        other = [1.25 if number == 22 else 1 + 2**-10 for number in range(25)]
        return ours, transformers_finetuning.Trained(other, 0.25 * seed, 5.0, 6.0)

    monkeypatch.setattr(transformers_finetuning, "_train_both", both)
    transformers_finetuning.compare(options_beside(tmp_path, seeds="1,2"))
    printed = capsys.readouterr().out
    assert "seed 2: 25 steps, losses differ by at most 9.77e-04 in the first 20 and 2.50e-01" in (
        printed
    )
    assert "  accuracy               ours 0.5000   transformers 0.2500\n" in printed
    assert "sst-2, over 2 seeds:\n  accuracy               ours 0.5000 ± 0.0000   transf" in printed
    assert "transformers 0.3750 ± 0.1768" in printed
    rows = json.loads((tmp_path / "compare.json").read_text())
    assert [row["theirs"]["cpu_seconds"] for row in rows] == [5, 5] and rows[0]["steps"] == 25
    for other in ({"dropout": True}, {"their_batches": "random"}, {"precision": "mixed_bfloat16"}):
        transformers_finetuning.compare(options_beside(tmp_path, seeds="1", **other))
        assert capsys.readouterr().out.startswith("seed 1: 25 steps\n"), other


def test_steps_after_the_second_are_timed(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(harness.time, "process_time", lambda: clock[0])

    def step(batch):
        clock[0] += batch
        return batch + 1

    losses, spent = transformers_finetuning._timed(step, [100, 10, 1, 2])
    assert losses == [101, 11, 2, 3] and spent.cpu == 3


def test_tasks_that_transformers_would_train_otherwise_are_refused(tmp_path, monkeypatch):
    start = dataclasses.make_dataclass("Start", ["config"])(CONFIG)
    monkeypatch.setattr(transformers_finetuning, "initial_model", lambda options: start)
    made = []
    task = types.SimpleNamespace(name="x", kind="regression")
    monkeypatch.setattr(
        transformers_finetuning,
        "prepare",
        lambda options, start, tagged: made.append(start) or types.SimpleNamespace(task=task),
    )
    transformers_finetuning._prepared(options_beside(tmp_path))
    transformers_finetuning._prepared(options_beside(tmp_path, dropout=True))
    assert [one.config.hidden_dropout_prob for one in made] == [0, CONFIG.hidden_dropout_prob]
    task.kind = "multi_label"
    with pytest.raises(InputError, match="x: is multi_label; expected one of classification, reg"):
        transformers_finetuning._prepared(options_beside(tmp_path))


# === Serving ===


def encoders():
    return {
        "transformers": lambda texts: np.ones((len(texts), 3)),
        "SavedModel": lambda texts: np.ones((len(texts), 3)) * (1 + 1e-5),
    }


def test_contenders_of_serving_take_turns(tmp_path, monkeypatch, capsys):
    synthetic.write_vocabulary(tmp_path / "vocab.txt")
    options = serving.Options(str(tmp_path / "x.json"), str(tmp_path), rounds=2, calls=4)
    monkeypatch.setattr(serving, "_encoders", lambda options, folder: encoders())
    monkeypatch.setattr(serving, "flags", types.SimpleNamespace(FLAGS={"verbosity": Spent()}))
    serving.flags.FLAGS["verbosity"].present = True
    for name in ("intra", "inter"):
        monkeypatch.setattr(
            tf.config.threading, f"set_{name}_op_parallelism_threads", lambda count: None
        )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    serving.run(options)
    cases = json.loads((tmp_path / "x.json").read_text())["cases"]
    assert [(case["batch_size"], case["length"]) for case in cases] == [
        (1, 32), (1, 128), (8, 32), (8, 128)
    ]  # fmt: skip
    assert [case["figures"]["SavedModel"]["calls"] for case in cases] == [8, 4, 4, 4]
    for case in cases:
        ours, theirs = (case["figures"][name] for name in ("SavedModel", "transformers"))
        assert ours["difference"] == pytest.approx(1e-5, rel=1e-3) and theirs["difference"] == 0
        assert ours["times_faster_wall"] == pytest.approx(theirs["wall_ms"] / ours["wall_ms"])
        assert theirs["times_faster_cpu"] == 1
    assert "batch 8, 128 pieces\n" in capsys.readouterr().out
    (case, *_) = serving._cases(options, {"SavedModel": encoders()["SavedModel"]})
    row = case["figures"]["SavedModel"]
    assert row["difference"] == 0 and "times_faster_wall" not in row
    times = [Spent(0.25 * n, 0.5 * n) for n in (1, 2, 3)]
    assert serving.summary(times, 4) == {
        "wall_ms": 500, "wall_ms_p90": 700, "cpu_ms": 1000, "texts_per_second": 8,
        "texts_per_cpu_second": 4, "calls": 3,
    }  # fmt: skip


def test_what_is_served_is_exported_once(tmp_path, monkeypatch):
    synthetic.write_vocabulary(tmp_path / "vocab.txt")
    written = []

    def write(served, target, weights="", samples=None):
        written.append((target.name, weights, samples and len(list(samples))))
        target.mkdir()

    places = {
        "onnx.export_onnx": write, "openvino.export_openvino": write, "tflite.export_tflite": write,
        "saved_model.export_saved_model": write, "load.load_served_model": lambda *_, **__: None,
    }  # fmt: skip
    for place, function in places.items():
        monkeypatch.setattr(f"bert_tf.serving.{place}", function)
    names = ("SavedModel", "transformers", "TFLite float16", "OpenVINO int8", "ONNX Runtime int8")
    for _ in range(2):
        serving.export(str(tmp_path), tmp_path, names)
    assert written == [
        ("saved_model", "", None), ("tflite_float16", "float16", None),
        ("openvino_int8", "int8", 96), ("onnx_int8", "int8", None),
    ]  # fmt: skip
    first, *_, last = serving._samples(str(tmp_path))
    assert (
        set(first) == set(serving.ID_INPUTS)
        and first["input_ids"].size < last["input_ids"].size <= 128
    )
    assert first["input_mask"].all() and not first["segment_ids"].any()
    exported = []
    monkeypatch.setattr(serving, "export", lambda *given: exported.append(given))
    prepare = Contender(lambda options, folder: (options.threads, folder))
    monkeypatch.setattr(serving, "CONTENDERS", {"a": prepare, "b": Contender(print, ("no_such",))})
    made = serving._encoders(serving.Options(None, "m", threads=3), tmp_path)
    assert made == {"a": (3, tmp_path)} and list(exported[0][2]) == ["a"]


# === The load on a server ===


class Connection:
    """In place of a connection to the server: gives one answer after another."""

    answers: list = []
    asked: list = []

    def __init__(self, host, port, timeout):
        self.asked.append(port)

    def request(self, method, path, body=None):
        self.asked.append((method, path))

    def getresponse(self):
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return types.SimpleNamespace(status=answer[0], read=lambda: answer[1])

    def close(self):
        pass


class AtOnce:
    """In place of a thread: runs until it is interrupted."""

    def __init__(self, target, args, daemon):
        self.run = target, args

    def start(self):
        target, args = self.run
        with contextlib.suppress(KeyboardInterrupt):
            target(*args)


@pytest.fixture
def connections(monkeypatch):
    monkeypatch.setattr(load.http.client, "HTTPConnection", Connection)
    monkeypatch.setattr(load.time, "sleep", lambda seconds: None)
    Connection.answers, Connection.asked = [], []
    return Connection


def test_a_client_tells_of_latencies_and_errors(connections, monkeypatch):
    connections.answers = [(200, b"{}"), (503, b"full"), OSError("gone"), KeyboardInterrupt()]
    monkeypatch.setattr(load.threading, "Thread", AtOnce)
    sent = []

    def send(news):
        if sent:
            raise BrokenPipeError
        sent.append(news)

    load._client(8501, "/x", [b"body"], 1, types.SimpleNamespace(send=send))
    ((latencies, errors),) = sent
    assert len(latencies) == 2 and errors == ["503 b'full'", "OSError('gone')"]
    assert connections.asked.count(8501) == 2 and ("POST", "/x") in connections.asked


def test_figures_of_the_server_are_read(connections):
    page = b'# HELP\nprocess_resident_memory_bytes 5242880.0\nx{a="b"} 7\n'
    connections.answers = [(200, page)] * 3
    assert load._memory_mib(1) == 5.0
    assert load._metric(1, "x") == 7
    assert np.isnan(load._cpu_seconds(1))


class Pipe:
    """An end of a pipe with what was sent through it."""

    def __init__(self, news=()):
        self.news, self.closed = list(news), False

    def poll(self):
        return bool(self.news)

    def recv(self):
        return self.news.pop(0)

    def close(self):
        self.closed = True


def test_clients_are_killed_and_replaced(monkeypatch):
    started = []

    class Context:
        def Pipe(self, duplex):
            return Pipe([([0.5], ["no"]), ([0.25], [])]), Pipe()

        def Process(self, target, args, daemon):
            process = types.SimpleNamespace(args=args, told=[])
            for name in ("start", "kill", "join"):
                setattr(process, name, lambda name=name: process.told.append(name))
            started.append(process)
            return process

    monkeypatch.setattr(load.multiprocessing, "get_context", lambda name: Context())
    options = load.Options(None, "m", num_processes=2, num_connections=3)
    clients = load._Clients(options, 8501, "/x", [b"y"])
    assert started[0].args[:4] == (8501, "/x", [b"y"], 3) and started[0].args[4].closed
    assert clients.collect() == ([0.5, 0.25] * 2, ["no"] * 2)
    assert clients.collect() == ([], [])
    clients.kill_one()
    assert clients.killed == 1 and [process.told for process in started] == [
        ["start", "kill", "join"], ["start"], ["start"]
    ]  # fmt: skip
    clients.end()
    assert [process.told[-1] for process in started] == ["join"] * 3


def test_a_server_is_waited_for(connections, monkeypatch):
    lines = []
    process = types.SimpleNamespace(told=[])
    process.stdout = types.SimpleNamespace(readline=lambda: lines.pop(0))
    process.terminate = lambda: process.told.append("terminate")

    @contextlib.contextmanager
    def start(command, stdout, text):
        assert "--batch_timeout_micros=5" in command and "--max_row_padding=0.25" in command
        yield process

    monkeypatch.setattr(load.subprocess, "Popen", start)
    options = load.Options(None, "m")
    lines.append("REST API and page: http://127.0.0.1:8123/\n")
    connections.answers = [(503, b""), (200, b"START"), (200, b"")]
    with load._server(options, 5, 0.25) as (found, port):
        assert found is process and port == 8123 and not process.told
    assert process.told == ["terminate"]
    lines.append("REST API and page: http://127.0.0.1:8123/\n")
    connections.answers = [(503, b""), (200, b'"state": "END"')]
    with pytest.raises(RuntimeError, match="the model did not load; see above"):
        with load._server(options, 5, 0.25):
            pass
    lines.append("")
    with pytest.raises(RuntimeError, match="the server did not start; see above"):
        with load._server(options, 5, 0.25):
            pass


def test_the_load_of_each_window_is_told(tmp_path, monkeypatch, capsys):
    clock, reading = itertools.count(), itertools.count(0, 3)
    monkeypatch.setattr(load.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(load.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(load, "_memory_mib", lambda port: 100.0)
    monkeypatch.setattr(load, "_metric", lambda port, name: 30.0 if name.endswith("sum") else 10.0)
    monkeypatch.setattr(load, "_cpu_seconds", lambda port: float(next(reading)))
    process = types.SimpleNamespace(terminate=lambda: None, wait=lambda: 0)
    monkeypatch.setattr(load, "_server", lambda *given: contextlib.nullcontext((process, given[1])))
    given = []

    class Clients:
        killed = 0
        answers = ([0.25, 0.75], ["x"])

        def __init__(self, options, port, path, bodies):
            given.append((port, path, bodies))

        def collect(self):
            return self.answers

        def kill_one(self):
            self.killed += 1

        def end(self):
            given.append("ended")

    monkeypatch.setattr(load, "_Clients", Clients)
    options = load.Options(
        str(tmp_path / "x.json"), "m", text=("a",), batch_timeout_micros=(0, 1000), minutes=0.2,
        kill_seconds=5,
    )  # fmt: skip
    load.compare(options)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["batch_timeout_micros"], second["batch_timeout_micros"]) == (0, 1000)
    assert given[0] == (0, "/v1/models/model:predict", [b'{"instances": ["a"]}'])
    assert given[1::2] == ["ended"] * 2
    requests = first["requests"]
    assert requests == 2 * first["errors"] == 22 and first["first_errors"] == ["x"] * 3
    assert first["server_cpu_ms_per_request"] == round(3e3 / requests, 2)
    assert first["latency_p50_ms"] == 500 and first["latency_p99_ms"] == 750
    assert first["mean_batch_rows"] == 3 and first["killed_clients"] == 2
    assert first["exit_status"] == 0 and set(first["memory_mib"]) == {100.0}
    assert len(json.loads((tmp_path / "x.json").read_text())["windows"]) == 2
    (tmp_path / "requests").write_text("\n  \n")
    with pytest.raises(ValueError, match="--requests_file: expected at least one line"):
        load.compare(dataclasses.replace(options, requests_file=str(tmp_path / "requests")))
    (tmp_path / "requests").write_text('{"x": 1}\n\n{"x": 2}\n')
    monkeypatch.setattr(Clients, "answers", ([], ["gone"]))
    with pytest.raises(RuntimeError, match=r"no answers within 0.2 minutes: \['gone', 'gone', 'go"):
        load.compare(dataclasses.replace(options, requests_file=str(tmp_path / "requests")))
    assert given[-2][2] == [b'{"x": 1}', b'{"x": 2}']


# === Each script, for real ===

LITTLE = ["--batch_size=2", "--max_seq_length=16", "--max_predictions_per_seq=3"]
LITTLE += ["--num_hidden_layers=1", "--hidden_size=16", "--num_attention_heads=2"]
LITTLE += ["--vocab_size=97", "--num_steps=2", "--num_warmup_steps=1"]
BESIDE = ["--bert_config_file={}/config.json", "--init_checkpoint={}/bert_model.ckpt"]
BESIDE += ["--vocab_file={}/vocab.txt", "--output_dir={}/beside", "--num_train_steps=5"]
BESIDE += ["--max_seq_length=13", "--train_batch_size=4", "--text_column=text"]
BESIDE += ["--label_column=label", "--train_file={}/t.csv", "--dev_file={}/t.csv"]
# Script -> its arguments, and the contenders (or words) that are printed; {} is the folder.
SCRIPTS = {
    "accelerator": (["--small"], ["matrices_jax", "matrices_torch", *accelerator.CONTENDERS]),
    "device_memory": (["--mesh=2,1", "--model_sizes=tiny", "--lengths=16"], ["tiny"]),
    "finetuning": (["--num_records=20", *LITTLE[:2], *LITTLE[3:6], "--num_batches=2"], []),
    "length_bins": (
        ["--input_file={}/r.tfrecord", "--vocab_file={}/vocab.txt", "--max_seq_length=31"]
        + ["--max_predictions_per_seq=5", "--batch_size=4", *LITTLE[3:6]],
        ["of like length", "padded"],
    ),
    "load": (
        ["--model_base_path={}/saved", "--text=w1 w2", "--minutes=0.05", "--kill_seconds=1"]
        + ["--batch_timeout_micros=0", "--num_connections=2"],
        ['"exit_status": 0'],
    ),
    "memory": ([*LITTLE, "--recompute=none"], ["none"]),
    "pretraining_data": (
        ["--input_file={}/text.txt", "--vocab_file={}/vocab.txt", "--with_flags="],
        ["ours, whole text"],
    ),
    "serving": (["--model_dir={}/hf", "--rounds=1", "--calls=2"], list(serving.CONTENDERS)),
    "tokenization": (
        ["--input_file={}/text.txt", "--vocab_file={}/vocab.txt", "--warm_rounds=1"],
        ["in the graph: 0 of", "in the graph, with offsets", "tokenizers, batches of 1000"],
    ),
    "training": (
        [*LITTLE, "--accuracy", "--contenders=ours_pointwise,kerashub_graph,transformers"],
        ["ours_pointwise", "kerashub_graph", "transformers"],
    ),
    "transformers_finetuning": (BESIDE, ["5 steps, losses differ by at most"]),
    "weights": (["--model_size=tiny"], list(weights.CONTENDERS)),
}


# Of contenders a benchmark leaves out what is not installed; these it does not do without.
NEEDED = {
    "accelerator": ("jax",),
    "device_memory": ("jax",),
    "load": ("uvicorn", "tensorflow_serving"),
    "pretraining_data": ("psutil",),
    "tokenization": ("tensorflow_text", "tokenizers"),
    "transformers_finetuning": ("torch", "transformers"),
    "weights": ("keras_hub",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a model in several formats, and texts and records of its pieces."""
    folder = tmp_path_factory.mktemp("folder")
    config = synthetic.small_config(
        hidden_size=24, intermediate_size=32, num_hidden_layers=1, max_position_embeddings=128
    )
    pieces = [*synthetic.VOCAB][:-26] + [*"abcdefghijklmnopqrstuvwxyz"]
    pieces[9:35] = [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    pieces[35:37] = ".,"
    (folder / "words.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    model = HEADS["encoder"].make(config)
    save_model_directory(folder, model, folder / "words.txt")
    config.to_json_file(folder / "config.json")
    save_hf(folder / "hf", model, FullTokenizer(folder / "words.txt"))
    served = load_served_model(folder, task="embeddings", max_seq_length=16)
    export_saved_model(served, folder / "saved")
    synthetic.write(folder / "r.tfrecord", 61, 1)
    (folder / "text.txt").write_text("a b.\nc d.\n\ne f.\ng h.\n\n" * 20)
    (folder / "t.csv").write_text("text,label\n" + "a b,no\nc d,yes\n" * 10)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_benchmark_runs(script, folder):
    if missing := [x for x in NEEDED.get(script, ()) if not importlib.util.find_spec(x)]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    given, expected = SCRIPTS[script]
    path = folder / f"{script}.json"
    arguments = [part.replace("{}", str(folder)) for part in given]
    done = subprocess.run(
        [sys.executable, f"experiments/benchmarks/{script}.py", *arguments]
        + ([] if script in ("transformers_finetuning", "memory") else [f"--output_file={path}"]),
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout
    for words in expected:
        assert words in done.stdout, done.stdout
    if script == "transformers_finetuning":
        (row,) = json.loads((folder / "beside" / "compare.json").read_text())
        assert row["largest_difference_of_losses"] < 1e-5
    elif script != "memory":
        assert len(json.loads(path.read_text())) > 1
