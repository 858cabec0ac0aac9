"""What commands share: how they end, what asks them to, and what options of training make."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import threading
import types

import keras
import pytest
import tensorflow as tf
from absl import flags

from bert_tf.options import option
from bert_tf.training.errors import StoppedError
from experiments.command_line import command, exit_status, memory, preemption, training_setup
from experiments.command_line.exit_status import InputError, exit_on_error
from experiments.command_line.training_options import TrainingOptions
from experiments.command_line.weights_digest import weights_digest


@dataclasses.dataclass(frozen=True)
class Options:
    size: int = option(7, "A size.")


def run_command(monkeypatch, *arguments):
    """Run a command that notes the size it gets; return its status and what it noted."""
    noted = []
    work = types.SimpleNamespace(run=lambda options: noted.append(options.size))
    values = flags.FlagValues()
    monkeypatch.setattr(command, "flags", types.SimpleNamespace(FLAGS=values))
    monkeypatch.setattr(command.sys, "argv", ["a/train.py"])
    monkeypatch.setattr(command.importlib, "import_module", {"the.work": work}.get)
    statuses = []

    def run(main, flags_parser):
        statuses.append(main(values(["train", *arguments])))

    monkeypatch.setattr(command.app, "run", run)
    command.run_command(Options, "the.work")
    return statuses[0], noted


def test_an_argument_without_a_flag_is_refused(monkeypatch, capsys):
    assert run_command(monkeypatch, "--size=3") == (0, [3])
    assert run_command(monkeypatch, "--size=3", "more") == (1, [])
    assert capsys.readouterr().err.startswith("train: unexpected argument 'more'")


def test_how_a_command_ends(monkeypatch, capsys):
    def stop():
        raise StoppedError("stopped at step 7; the same command goes on")

    def fail():
        raise InputError("bad flag")

    values = flags.FlagValues()
    assert exit_on_error("train", stop, values) == preemption.STATUS == 75
    assert capsys.readouterr().err == "train: stopped at step 7; the same command goes on\n"
    assert exit_on_error("train", fail, values) == 1
    assert capsys.readouterr().err == "train: bad flag\n"
    monkeypatch.setattr(exit_status.logging, "level_debug", lambda: True)  # as by --verbosity=1
    with pytest.raises(InputError, match="bad flag"):
        exit_on_error("train", fail, values)
    assert not capsys.readouterr().err


def test_a_first_signal_asks_and_a_second_one_ends():
    before = signal.getsignal(signal.SIGTERM)
    with preemption.listening():
        assert not preemption.is_asked() and signal.getsignal(signal.SIGTERM) is not before
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.is_asked()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before
    with preemption.listening():  # of the next run in this process
        assert not preemption.is_asked()
    with pytest.raises(SystemExit) as ended, preemption.exiting():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == preemption.STATUS
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_listens_to_no_signal():
    handlers = []

    def enter():
        for context in (preemption.listening, preemption.exiting):
            with context():
                handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [before, before]


def test_memory_of_a_system_that_does_not_tell(tmp_path):
    assert memory._bytes_in(str(tmp_path / "meminfo"), "MemAvailable:") is None
    (tmp_path / "meminfo").write_text("MemTotal:   9 kB\nMemAvailable:  5 kB\n")
    assert memory._bytes_in(str(tmp_path / "meminfo"), "MemAvailable:") == 5 * 1024
    assert memory._bytes_in(str(tmp_path / "meminfo"), "VmHWM:") is None


def digest_of(path: pathlib.Path, file_format: str) -> str:
    located = types.SimpleNamespace(path=str(path), format=file_format)
    return weights_digest(types.SimpleNamespace(located=located))  # pyright: ignore


@pytest.mark.parametrize(
    ("name", "file_format", "parts", "others"),
    [
        ("model.safetensors.index.json", "hf", ["a.safetensors", "b.bin"], ["vocab.txt"]),
        ("preset", "keras_hub", ["preset/model.weights.h5"], ["preset/tokenizer.json", "x.h5"]),
        ("model.ckpt-7", "tf", ["model.ckpt-7.index", "model.ckpt-7.data-0"], ["model.ckpt-77.a"]),
        ("model.safetensors", "hf", ["model.safetensors"], ["model2.safetensors"]),
    ],
)
def test_weights_are_known_by_all_their_files(tmp_path, name, file_format, parts, others):
    (tmp_path / "preset").mkdir()
    for number, file in enumerate([*parts, *others]):
        (tmp_path / file).write_text(f"content {number}")
    if name.endswith(".json"):
        (tmp_path / name).write_text("{}")
    before = digest_of(tmp_path / name, file_format)
    assert len(before) == 16
    for file in others:
        (tmp_path / file).write_text("changed")
        assert digest_of(tmp_path / name, file_format) == before
    for file in parts:
        content = (tmp_path / file).read_text()
        (tmp_path / file).write_text("changed")
        assert digest_of(tmp_path / name, file_format) != before
        (tmp_path / file).write_text(content)
    assert digest_of(tmp_path / name, file_format) == before
    assert weights_digest(None) == "random weights"


# === Options of training ===


def test_pointwise_compilation_is_refused_with_float16():
    with pytest.raises(InputError, match="jit_compile: pointwise is for float32 and mixed_bfl"):
        TrainingOptions(jit_compile="pointwise", precision="mixed_float16")


def test_what_strategies_are_told(monkeypatch):
    given = []

    def create(name, **arguments):
        given.append((name, arguments))

    monkeypatch.setattr(training_setup.distribution, "create_strategy", create)
    of_tpu = {"tpu_name": "local", "tpu_zone": "z", "gcp_project": "p"}
    training_setup.strategy_of(TrainingOptions(distribution_strategy="tpu", **of_tpu))
    training_setup.strategy_of(TrainingOptions(distribution_strategy="mirrored", num_replicas=2))
    common = {"all_reduce_alg": None, "num_replicas": None}
    assert given == [
        ("tpu", {**common, "tpu": "local", "tpu_zone": "z", "gcp_project": "p"}),
        ("mirrored", {**common, "num_replicas": 2}),
    ]


def test_averages_and_loss_scaling_of_an_optimizer():
    options = TrainingOptions(ema_momentum=0.75)
    optimizer = training_setup.make_optimizer(options, 2, 1e-3, 10, 2)
    assert optimizer.use_ema and optimizer.ema_momentum == 0.75
    options = TrainingOptions(precision="mixed_float16")
    scaled = training_setup.make_optimizer(options, 2, 1e-3, 10, 2)
    assert isinstance(scaled, keras.optimizers.LossScaleOptimizer)
    assert type(scaled.inner_optimizer) is type(optimizer)
    assert not scaled.inner_optimizer.use_ema


def test_devices_in_a_phrase(monkeypatch):
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    assert training_setup.describe_devices(strategy) == "1 replicas, OneDeviceStrategy"
    for gpus, phrase in ((["a"], "1 GPU"), ([], "CPU")):
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind, gpus=gpus: gpus)
        assert training_setup.describe_devices(None) == phrase


def test_a_folder_is_locked_where_the_file_system_can(tmp_path, monkeypatch, caplog):
    with training_setup.locked(tmp_path / "new"):
        with pytest.raises(InputError, match=f"another process trains in {tmp_path}/new; wait"):
            training_setup.locked(tmp_path / "new")

    def lock(folder):
        raise NotImplementedError("no locks here")

    monkeypatch.setattr(training_setup, "lock_folder", lock)
    with caplog.at_level("WARNING", "absl"), training_setup.locked(tmp_path):
        pass
    assert f"{tmp_path} cannot be locked against a second training: no locks here" in caplog.text


@pytest.mark.parametrize(
    ("is_chief", "expected"),
    [(True, ["its files", "waited"]), (False, ["waited", "its files"]), (None, ["its files"])],
)
def test_the_other_hosts_wait_for_the_chief(monkeypatch, is_chief, expected):
    done = []
    several = is_chief is not None
    name = "multi_worker_mirrored" if several else "one_device"
    monkeypatch.setattr(training_setup, "strategy_of", lambda options: "strategy")
    monkeypatch.setattr(training_setup.distribution, "is_chief", lambda strategy: is_chief)
    monkeypatch.setattr(
        training_setup.distribution, "value_of_chief", lambda *_: done.append("waited")
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(training_setup.chief_first(TrainingOptions(distribution_strategy=name)))
        done.append("its files")
    assert done == expected
