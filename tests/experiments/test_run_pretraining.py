"""The command: a run that is killed and continued, its files, and what it refuses."""

import json
import os
import random
import re
import shutil
import signal
import time

import filelock
import numpy as np
import pytest

from bert_tf.config import BertConfig
from bert_tf.input_pipeline.masking import MaskingRule, NextPieceRule
from bert_tf.options import to_dict
from bert_tf.records.encoding import encode_examples, encode_framed_examples
from bert_tf.records.files import RecordWriter, scan_records
from bert_tf.records.schema import pretraining_features
from bert_tf.training.log import read_metrics
from bert_tf.weights.tensor_bundle import read_tensors
from bert_tf.weights.tensor_files import checkpoint_steps
from experiments.command_line import preemption
from experiments.command_line.exit_status import InputError
from experiments.pretraining import continuation, plan
from experiments.pretraining import run as pretraining
from experiments.pretraining.options import PhaseOptions, PretrainingOptions
from experiments.pretraining.plan import (
    SEQUENCES_PER_ROW,
    make_plan,
    warn_of_predictions_cut_off,
)
from experiments.pretraining.run import PretrainingRun, training_dataset
from tests.support import command_options
from tests.support import synthetic_records as synthetic
from tests.support.pretraining_runs import STEPS, arguments, finish, log_of, start, write_data
from tests.support.synthetic_records import LENGTH, PREDICTIONS, VOCAB, VOCAB_SIZE

# Runs the command, but dies within the write of the checkpoint of step 22: the kernel kills the
# process when a file grows beyond the limit, which leaves the data file half written.
DIES_WHILE_WRITING = """
import resource, runpy, signal, sys
from bert_tf.training import state as training_state

write = training_state.write_tensors

def write_and_die(prefix, tensors):
    if str(prefix).endswith("ckpt-22"):
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    write(prefix, tensors)

training_state.write_tensors = write_and_die
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Return a run never stopped: (folder, what it printed)."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, finish(start(data, folder, eval_every_steps=20))


@pytest.mark.slow
def test_killed_runs_continue_to_the_bit(data, whole, tmp_path):
    folder = tmp_path / "run"
    # Killed by the kernel in the middle of the second checkpoint.
    process = start(data, folder, prelude=("-c", DIES_WHILE_WRITING), eval_every_steps=20)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == -signal.SIGXFSZ, output
    assert checkpoint_steps(folder) == [11, 20]  # of 20 as the best so far
    assert [p.stat().st_size for p in folder.glob("*ckpt-22*.tempstate*")] == [50_000]

    # Killed from outside at a random moment after it has gone on for a while.
    process = start(data, folder, eval_every_steps=20)
    while process.poll() is None:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        if len(lines) > 1 and json.loads(lines[-1])["step"] >= 28:
            break
        time.sleep(0.002)
    time.sleep(random.random() * 0.1)
    process.kill()
    output, _ = process.communicate()
    assert process.returncode in (-signal.SIGKILL, 0), output
    assert "step 20 (continued)" in output
    # And the newest checkpoint it left is then found to be damaged.
    steps = checkpoint_steps(folder)
    assert steps[:2] == [11, 20] and len(steps) > 2
    newest = folder / f"model.ckpt-{steps[-1]}.data-00000-of-00001"
    os.truncate(newest, newest.stat().st_size // 2)

    output = finish(start(data, folder, eval_every_steps=20))
    assert f"step {steps[-2]} (continued)" in output
    assert f"model.ckpt-{steps[-1]} is damaged" in output and "the one before it" in output
    assert log_of(folder) == log_of(whole[0])
    last = f"model.ckpt-{STEPS}"
    ours, theirs = (read_tensors(f / last) for f in (folder, whole[0]))
    assert ours.keys() == theirs.keys() and len(ours) > 80
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    for name in ("eval_results.txt", "bert_model.ckpt.data-00000-of-00001"):
        assert (folder / name).read_bytes() == (whole[0] / name).read_bytes()


@pytest.mark.slow
def test_a_run_that_is_asked_to_end_saves_its_state_and_says_so(data, whole, tmp_path):
    folder = tmp_path / "run"
    process = start(data, folder, eval_every_steps=20, save_checkpoints_steps=1000)
    while process.poll() is None:
        path = folder / "metrics.jsonl"
        if path.exists() and len(path.read_text().splitlines()) > 2:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == preemption.STATUS, output
    (step,) = checkpoint_steps(folder)
    assert f"stopped by a signal after step {step}, whose state is saved" in output
    finish(start(data, folder, eval_every_steps=20))
    assert log_of(folder) == log_of(whole[0])
    name = "bert_model.ckpt.data-00000-of-00001"
    assert (folder / name).read_bytes() == (whole[0] / name).read_bytes()


def write_longer(path, count, seed):
    """Write the records of 37 tokens and 7 predictions, of which the last are padding."""
    arrays = {}
    for name, array in synthetic.make_arrays(count, seed).items():
        width = {LENGTH: 37, PREDICTIONS: 7}.get(array.shape[1], array.shape[1])
        arrays[name] = np.pad(array, ((0, 0), (0, width - array.shape[1])))
    with RecordWriter(path) as writer:
        for example in encode_examples(pretraining_features(37, 7), arrays):
            writer.write(example)


@pytest.mark.slow
def test_a_second_phase_takes_longer_sequences_and_is_resumed(data, tmp_path):
    write_longer(tmp_path / "long.tfrecord", 61, 5)
    config = tmp_path / "config.json"
    synthetic.small_config(num_hidden_layers=1, max_position_embeddings=41).to_json_file(config)
    given = {
        "bert_config_file": config,
        "second_input_file": tmp_path / "long.tfrecord",
        "second_max_seq_length": 37,
        "second_max_predictions_per_seq": 7,
        "second_train_batch_size": 5,
        "second_phase_steps": 9,
        "second_learning_rate": 5e-4,
        "num_train_steps": 30,
        "do_eval": False,
    }
    output = finish(start(data, tmp_path / "whole", **given))
    assert re.search(r"steps +21 of 13 sequences", output)
    assert re.search(r"training records +61 of 37 tokens", output)
    rates = {line["step"]: line["learning_rate"] for line in log_of(tmp_path / "whole")[1:]}
    assert rates[21] == pytest.approx(1e-3 * (1 - 20 / 21), rel=1e-4)
    assert rates[28] == pytest.approx(5e-4 * (1 - 6 / 9), rel=1e-4)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    # Stopped in the second phase, and in the first.
    for last in (22, 11):
        for step in (21, 22, 30):
            if step > last:
                (tmp_path / "parts" / f"model.ckpt-{step}.index").unlink(missing_ok=True)
        assert f"step {last} (continued)" in finish(start(data, tmp_path / "parts", **given))
        assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")
        ours, theirs = (read_tensors(tmp_path / x / "model.ckpt-30") for x in ("parts", "whole"))
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_files_and_figures_of_a_run(data, whole):
    folder, output = whole
    names = {p.name for p in folder.iterdir()}
    assert names >= {
        *("bert_config.json", "vocab.txt", "bert_model.ckpt.index", "checkpoint", "config.json"),
        *("metrics.jsonl", "curves.png", "eval_results.txt", "eval_results.json"),
    }
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "vocab.txt").read_bytes() == (data / "vocab.txt").read_bytes()
    config = json.loads((folder / "config.json").read_text())
    assert config["flags"]["num_train_steps"] == STEPS
    assert config["bert_config"]["vocab_size"] == VOCAB_SIZE

    lines = dict(x.split(" = ") for x in (folder / "eval_results.txt").read_text().splitlines())
    results = json.loads((folder / "eval_results.json").read_text())
    keys = [f"masked_lm_{name}{of}" for name in ("accuracy", "loss") for of in ("", "_at_mask")]
    keys = ["global_step", "loss", *keys, "next_sentence_accuracy", "next_sentence_loss"]
    assert list(lines) == keys == sorted(results)
    assert {name: float(value) for name, value in lines.items()} == results
    assert results["global_step"] == STEPS

    steps = [line["step"] for line in read_metrics(folder / "metrics.jsonl")]
    assert steps == [7, 14, 21, 28, 35, 42, 46]
    evaluations = read_metrics(folder / "metrics.jsonl", "eval")
    assert [line["step"] for line in evaluations] == [20, 40, 46]
    assert evaluations[-1]["eval_mlm_loss"] == results["masked_lm_loss"]
    baseline = read_metrics(folder / "metrics.jsonl", "baseline")
    assert baseline[0]["uniform_loss"] == pytest.approx(np.log(VOCAB_SIZE))
    train = [
        synthetic.make_arrays(count, seed, True)["masked_lm_ids"][
            synthetic.make_arrays(count, seed, True)["masked_lm_weights"] > 0
        ]
        for count, seed in ((101, 1), (53, 2))
    ]
    counts = 1 + np.bincount(np.concatenate(train), minlength=VOCAB_SIZE)
    dev = synthetic.make_arrays(37, 3)
    dev = dev["masked_lm_ids"][dev["masked_lm_weights"] > 0]
    assert baseline[0]["unigram_loss"] == pytest.approx(-np.log(counts / counts.sum())[dev].mean())
    share = (dev == counts.argmax()).mean()
    assert baseline[0]["unigram_accuracy"] == pytest.approx(share)
    for text in (
        "accuracy at [MASK]",
        "MLM loss, uniform",
        "MLM loss, unigram",
        "held-out MLM loss",
        "curves.png",
    ):
        assert text in output
    assert f"accuracy at [MASK]   {results['masked_lm_accuracy_at_mask']:.1%}" in output
    for name in ("masked_lm_loss", "masked_lm_loss_at_mask"):
        gain = baseline[0]["unigram_loss"] - results[name]
        assert f"; {gain:+.4f} better than unigram)" in output
    assert "46/46" in output and "mlm_accuracy" in output and "tokens/s" in output


@pytest.mark.thorough
def test_a_continued_run_stays_described_as_it_was_begun(data, tmp_path, monkeypatch, capsys):
    told = []
    monkeypatch.setattr(pretraining.logging, "warning", lambda *a: told.append(a[0] % a[1:]))
    monkeypatch.chdir(data)
    given = {"do_eval": False, "save_checkpoints_steps": 2, "num_train_steps": 2}
    given |= {"init_checkpoint": None, "input_file": "train-0.tfrecord"}
    for more in (
        {},
        {"num_train_steps": 4, "input_file": str(data / "train-0.tfrecord")},
        {"num_train_steps": 4, "init_checkpoint": str(tmp_path / "model.ckpt-2")},
    ):
        flags = arguments(data, tmp_path, **{**given, **more})
        pretraining.run(command_options.parse(PretrainingOptions, flags))
    longer = "num_train_steps is 4 and was 2 when this run began: it goes on, but not as it would"
    assert [text[: len(longer)] for text in told if "num_train" in text] == [longer, longer]
    (ignored,) = [text for text in told if "num_train" not in text]
    assert ignored.startswith("init_checkpoint is") and "it is not read" in ignored
    assert "goes on from step 4" in capsys.readouterr().out
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["flags"]["num_train_steps"] == 2
    assert config["train_records"] == {"train-0.tfrecord": 101}


def test_batches_are_of_like_length_but_for_runs_begun_without(data, tmp_path):
    def parse(**flags):
        return command_options.parse(PretrainingOptions, arguments(data, tmp_path, **flags))

    def shapes(options):
        plan = make_plan(options)
        batches = training_dataset(options, plan, plan.phases[0], 0).take(9)
        return {tuple(inputs["input_ids"].shape) for inputs, _, _ in batches}

    assert {length for _, length in shapes(parse())} <= {*range(0, LENGTH, 2), LENGTH}
    whole = {(13, LENGTH)}
    assert len(shapes(parse())) > 3
    assert shapes(parse(length_bins=0)) == whole
    # A TPU has one shape; and the largest is what memory is measured of.
    assert shapes(parse(distribution_strategy="tpu")) == whole
    assert shapes(parse(measure_only=True)) == whole
    longer = {"second_input_file": "x", "second_max_seq_length": 512, "max_seq_length": 128}
    compiled = ({"jit_compile": "true"}, [16, 64]), ({"jit_compile": "pointwise"}, [16, 64])
    for flags, expected in (({}, [8, 32]), *compiled):
        for bins, result in ((None, expected), (4, [4, 4]), (0, [0, 0])):
            options = parse(**longer, **flags, length_bins=bins)
            assert [plan.length_bins_of(options, x) for x in options.phases] == result


@pytest.mark.parametrize(
    "begun, given, expected",
    [
        ({"flags": {"length_bins": None, "max_seq_length": 512}, "length_bins": [32]}, None, 2),
        ({"flags": {"length_bins": None, "pack_sequences": True}, "length_bins": [0]}, None, 2),
        ({"flags": {"length_bins": None}, "length_bins": [4]}, "packs", 0),
        ({"flags": {}}, None, 0),  # of an earlier version, which had no such flag
        ({"flags": {}}, 8, 8),
        ({"flags": {"length_bins": None}}, None, 2),  # of one that did not write what it took
        ({"flags": {"length_bins": None}, "length_bins": [4]}, None, 4),
        ({"flags": {"length_bins": None}, "length_bins": [4]}, 8, 8),
        ({"flags": {"length_bins": 3}, "length_bins": [3]}, None, 3),
    ],
)
def test_a_run_goes_on_with_batches_as_wide_as_it_began(
    data, tmp_path, monkeypatch, begun, given, expected
):
    """Though the device, from which their width follows by default, may be another."""
    packs = given == "packs"
    flags = {"pack_sequences": True} if packs else {"length_bins": given}
    options = command_options.parse(PretrainingOptions, arguments(data, tmp_path, **flags))
    made = make_plan(options)
    (tmp_path / "config.json").write_text(json.dumps(begun))
    assert continuation.begun_with(tmp_path) is None
    (tmp_path / "model.ckpt-3.index").touch()
    found = continuation.begun_with(tmp_path)
    (phase,) = continuation.with_bins_of(found, made, options).phases
    assert phase.length_bins == expected

    told = []
    monkeypatch.setattr(continuation.logging, "warning", lambda *a: told.append(a[0] % a[1:]))
    flags = to_dict(options)
    now = {"flags": flags, "length_bins": [phase.length_bins], "train_records": {}}
    continuation.check_continuation({**begun, "bert_config": 1}, now | {"bert_config": 1}, options)
    did_pack = begun["flags"].get("pack_sequences", False)
    assert any("pack_sequences is" in line for line in told) == (packs != did_pack)
    was = begun.get("length_bins", [0] if "length_bins" not in begun["flags"] else [expected])
    if packs or did_pack:
        was = [expected]  # rows of one length have no bins
    text = f"length_bins is [{expected}] and was {was} when this run began"
    assert [line[: len(text)] for line in told if "length_bins" in line] == (
        [text] if was != [expected] else []
    )


def test_a_run_goes_on_with_its_records_by_another_path(data, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(data)
    options = command_options.parse(PretrainingOptions, arguments(data, tmp_path))
    described = {"bert_config": 1, "flags": to_dict(options), "length_bins": [0]}
    begun = {**described, "train_records": {"t-0.tfrecord": 3}}
    for records, count in ({f"{data}/t-0.tfrecord": 3}, 0), ({f"{data}/t-0.tfrecord": 2}, 1):
        continuation.check_continuation(begun, {**described, "train_records": records}, options)
        assert caplog.text.count("not those that this run began with") == count


def test_the_table_says_in_which_steps_lengths_come(data, tmp_path):
    def steps(**flags):
        options = command_options.parse(PretrainingOptions, arguments(data, tmp_path, **flags))
        return dict(pretraining._rows_of(make_plan(options).phases[0], options))["steps"]

    assert steps().endswith(" epochs), of like length in steps of 2 tokens")
    assert steps(length_bins=0).endswith(" epochs)")
    assert steps(distribution_strategy="tpu").endswith(" epochs), of like length")  # of one shape


def test_batches_of_so_many_tokens(data, tmp_path):
    def parse(**flags):
        flags = {"train_batch_size": None, "train_batch_tokens": 403, **flags}
        return command_options.parse(PretrainingOptions, arguments(data, tmp_path, **flags))

    options = parse(gradient_accumulation_steps=3)
    made = make_plan(options, 2)
    (phase,) = made.phases
    assert (phase.batch_size, phase.batch_tokens, phase.batch_multiple) == (0, 403, 6)
    batches = phase.token_batches
    assert phase.sequences_per_batch == 154 / batches.num_batches
    for inputs, _, _ in training_dataset(options, made, phase, 0).take(3):
        rows, length = inputs["input_ids"].shape
        assert rows == 403 // length // 6 * 6 and length in batches.widths
    said = dict(pretraining._rows_of(phase, options))["steps"]
    assert said == (
        f"46 of up to 403 tokens ({46 / batches.num_batches:.2f} epochs), of like length in steps "
        f"of 2 tokens, {154 / batches.num_batches:.1f} sequences on the average, "
        f"{batches.num_shapes} shapes"
    )
    # Where nothing is trained nothing is counted.
    options = parse(do_train=False)
    (phase,) = make_plan(options).phases
    assert phase.length_counts is None
    said = dict(pretraining._rows_of(phase, options))["steps"]
    assert said == "46 of up to 403 tokens, of like length in steps of 2 tokens"


def test_the_memory_of_each_shape_is_measured(data, tmp_path):
    flags = {"train_batch_size": None, "train_batch_tokens": 155, "measure_only": True}
    options = command_options.parse(PretrainingOptions, arguments(data, tmp_path, **flags))
    made = make_plan(options)
    (phase,) = made.phases
    met = pretraining.measured_dataset(options, made, phase, 0).take(phase.token_batches.num_shapes)
    shapes = [tuple(inputs["input_ids"].shape) for inputs, _, _ in met]
    assert (5, 31) in shapes and len(set(shapes)) == phase.token_batches.num_shapes > 8
    assert all(rows == 155 // length for rows, length in shapes)


def test_phases_are_of_sequences_or_tokens(data):
    def batches(**flags):
        given = {"second_input_file": "x", **flags}
        options = command_options.parse(PretrainingOptions, arguments(data, "o", **given))
        return [(phase.batch_size, phase.batch_tokens) for phase in options.phases]

    first = {"train_batch_size": None, "train_batch_tokens": 4096}
    assert batches() == [(13, None), (13, None)]
    assert batches(second_train_batch_size=5) == [(13, None), (5, None)]
    assert batches(second_train_batch_tokens=512) == [(13, None), (0, 512)]
    assert batches(**first) == [(0, 4096), (0, 4096)]
    assert batches(**first, second_train_batch_size=5) == [(0, 4096), (5, None)]
    assert batches(**first, second_train_batch_tokens=512) == [(0, 4096), (0, 512)]


def test_each_replica_needs_a_sequence_of_the_tokens(data):
    def check(replicas, **flags):
        given = {"train_batch_size": None, "second_input_file": "x", **flags}
        given = arguments(data, "o", gradient_accumulation_steps=3, **given)
        plan.check_batch_tokens(command_options.parse(PretrainingOptions, given), replicas)

    check(2, train_batch_tokens=3072)
    for flags, message in (
        (
            {"train_batch_tokens": 3071},
            "train_batch_tokens: expected at least 3072, second_max_seq_length 512 x 2 replicas x "
            "3 accumulation steps, got 3071",
        ),
        (
            {"train_batch_tokens": 185, "second_train_batch_size": 6},
            "train_batch_tokens: expected at least 186, max_seq_length 31 x 2 replicas x 3 accum",
        ),
        (
            {"train_batch_size": 12, "second_train_batch_tokens": 9},
            "second_train_batch_tokens: expected at least 3072, second_max_seq_length 512 x 2 rep",
        ),
    ):
        with pytest.raises(InputError) as error:
            check(2, **flags)
        assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "begun, replicas, expected, is_told",
    [(6, 2, 6, False), (6, 3, 6, False), (6, 4, 4, True), (1, 1, 1, False), (1, 2, 2, True)],
)
def test_a_run_goes_on_with_as_many_rows_where_they_can_be_shared(
    data, tmp_path, monkeypatch, begun, replicas, expected, is_told
):
    flags = {"train_batch_size": None, "train_batch_tokens": 403}
    options = command_options.parse(PretrainingOptions, arguments(data, tmp_path, **flags))
    made = make_plan(options, replicas)
    before = pretraining._description_of(options, make_plan(options, begun))
    assert before["batch_multiple"] == begun
    after = continuation.with_bins_of(before, made, options)
    assert after.phases[0].batch_multiple == expected
    told = []
    monkeypatch.setattr(continuation.logging, "warning", lambda *a: told.append(a[0] % a[1:]))
    now = pretraining._description_of(options, after)
    continuation.check_continuation(before, now, options)
    assert [line[:23] for line in told] == ["the number of which the"] * is_told
    # One that earlier versions began padded cannot go on so.
    (phase,) = continuation.with_bins_of({"flags": {}}, made, options).phases
    assert phase.length_bins == 2


@pytest.mark.thorough
def test_a_run_of_so_many_tokens_goes_on_as_if_never_stopped(data, tmp_path):
    given = {"train_batch_size": None, "train_batch_tokens": 403, "save_checkpoints_steps": 3}
    given |= {"log_steps": 1, "num_train_steps": 6, "distribution_strategy": "one_device"}
    for name in ("whole", "stopped"):
        flags = arguments(data, tmp_path / name, **given)
        pretraining.run(command_options.parse(PretrainingOptions, flags))
    (tmp_path / "stopped" / "model.ckpt-6.index").unlink()
    pretraining.run(command_options.parse(PretrainingOptions, flags))
    whole, stopped = (read_tensors(tmp_path / x / "model.ckpt-6") for x in ("whole", "stopped"))
    assert set(whole) == set(stopped)
    for name, value in whole.items():
        np.testing.assert_array_equal(stopped[name], value, err_msg=name)
    assert log_of(tmp_path / "stopped") == log_of(tmp_path / "whole")


@pytest.mark.thorough
def test_a_run_of_packed_rows_has_the_weights_of_any_other(data, tmp_path, capsys):
    def run(**flags):
        changes = {"num_train_steps": 3, "save_checkpoints_steps": 3, "log_steps": 1, **flags}
        options = command_options.parse(PretrainingOptions, arguments(data, tmp_path, **changes))
        pretraining.run(options)
        return options, json.loads((tmp_path / "eval_results.json").read_text())

    options, packed = run(pack_sequences=True)
    plan = make_plan(options)
    (phase,) = plan.phases
    records, rows = sum(phase.counts), sum(phase.row_counts)
    assert records == 154 and 110 < rows < 150 and phase.rows == rows
    assert phase.sequences_per_batch == 13 * records / rows
    for inputs, labels, _ in training_dataset(options, plan, phase, 0).take(3):
        assert inputs["input_ids"].shape == inputs["sequence_ids"].shape == (13, LENGTH)
        assert labels["next_sentence_logits"].shape == (13, SEQUENCES_PER_ROW)
    output = capsys.readouterr().out
    assert re.search(r"training records +154 of 31 tokens in 2 files", output)
    said = f"3 of 13 rows \\({39 / rows:.2f} epochs\\), {records / rows:.2f} sequences a row"
    assert re.search(f"steps +{said}", output)
    # Records as they are, from the checkpoint of packed rows.
    _, single = run(do_train=False)
    assert "weights from" not in capsys.readouterr().out
    assert single == pytest.approx(packed, rel=1e-6)


def test_nothing_is_told_of_mask_where_none_is_shown(data):
    config = BertConfig.from_size("tiny", vocab_size=VOCAB_SIZE)
    vocab_file = str(data / "vocab.txt")
    manifests = [{"flags": {"mask_prob": 0.0}}]  # its loss there would be 0 / 0
    assert plan._mask_id(config, vocab_file, manifests) is None
    assert plan._mask_id(config, vocab_file, [{"flags": {"mask_prob": 0.8}}]) == VOCAB["[MASK]"]
    assert plan._mask_id(config, vocab_file, []) == VOCAB["[MASK]"]
    assert plan._mask_id(config, None, []) is None


def test_a_model_that_has_not_learnt_from_context_is_warned_of(data, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(pretraining.logging, "warning", lambda *a: told.append(a[0] % a[1:]))
    pretraining.warn_of_plateau(6.69, 7.0)
    assert not told
    pretraining.warn_of_plateau(6.71, 7.0)
    words = "it has not learnt from context yet; more steps, or what docs/guides/pretrain.md names"
    assert len(told) == 1 and words in told[0]
    flags = arguments(data, tmp_path, num_train_steps=1, num_warmup_steps=1)
    pretraining.run(command_options.parse(PretrainingOptions, flags))
    assert len([text for text in told if words in text]) == 2  # one step teaches nothing


def test_next_sentence_prediction_counts_as_the_flag_says(data, tmp_path, monkeypatch):
    """A run goes on with another weight, or from a version that had none, but says what differs."""
    told = []
    monkeypatch.setattr(pretraining.logging, "warning", lambda *a: told.append(a[0] % a[1:]))

    def weight_of(folder=tmp_path, **given):
        options = command_options.parse(PretrainingOptions, arguments(data, folder, **given))
        run = PretrainingRun(options, make_plan(options), None)
        return run.trainer.objective.next_sentence_weight

    assert weight_of() == 1.0 and weight_of(next_sentence_weight=0.25) == 0.25
    assert not told
    config = json.loads((data / "bert_config.json").read_text())
    without = tmp_path / "without_nsp.json"
    without.write_text(json.dumps({**config, "next_sentence_prediction": False}))
    weight_of(tmp_path / "other", bert_config_file=without, next_sentence_weight=0.25)
    (text,) = told
    assert text.startswith("next_sentence_weight: without effect, since the configuration has no")
    told.clear()
    short = {"num_train_steps": 1, "num_warmup_steps": 1, "do_eval": False}
    for step, weight in ((1, 1.0), (2, 1.0), (3, 0.25)):
        given = {**short, "num_train_steps": step, "next_sentence_weight": weight}
        flags = arguments(data, tmp_path / "run", **given)
        pretraining.run(command_options.parse(PretrainingOptions, flags))
        if step == 1:  # as an earlier version left it
            path = tmp_path / "run/config.json"
            begun = json.loads(path.read_text())
            del begun["flags"]["next_sentence_weight"]
            path.write_text(json.dumps(begun))
    (text,) = [text for text in told if text.startswith("next_sentence_weight")]
    assert text.startswith("next_sentence_weight is 0.25 and was 1.0 when this run began")


def test_frozen_weights_stay_and_lower_layers_learn_less(data, tmp_path):
    changes = {"num_train_steps": 2, "num_warmup_steps": 1, "layer_wise_decay": 0.5}
    changes |= {"freeze_layers": 0, "freeze": "pooler/dense/bias$", "save_checkpoints_steps": 1}
    options = command_options.parse(PretrainingOptions, arguments(data, tmp_path, **changes))
    run = PretrainingRun(options, make_plan(options), None)
    before = {v.path: v.numpy() for v in run.model.weights}
    run.load()
    run.train()
    moved = {v.path: np.abs(v.numpy() - before[v.path]).max() for v in run.model.weights}
    frozen = {path for path, distance in moved.items() if not distance}
    assert frozen == {p for p in before if "/embeddings/" in p} | {"bert/pooler/dense/bias"}
    # Adam's first steps are about the learning rate whatever the gradient.
    output, layer = (
        moved[f"{place}/kernel"]
        for place in ("cls/predictions/transform/dense", "bert/encoder/layer_0/output/dense")
    )
    assert 0.4 < layer / output < 0.6
    # Without next sentence prediction as with it: nothing of the frozen has a slot.
    slots = read_tensors(tmp_path / "model.ckpt-2")
    assert "bert/encoder/layer_0/output/dense/kernel/adam_m" in slots
    assert not any(f"{path}/adam_m" in slots for path in frozen)


@pytest.mark.thorough
def test_evaluates_a_finished_run_and_continues_from_its_weights(data, whole, tmp_path):
    folder = tmp_path / "other"
    output = finish(
        start(
            data,
            folder,
            init_checkpoint=whole[0],
            bert_config_file=None,
            do_train=False,
            eval_batch_size=5,
        )
    )
    assert "weights from model directory" in output
    ours, theirs = (json.loads((f / "eval_results.json").read_text()) for f in (folder, whole[0]))
    for name in ("masked_lm_loss", "masked_lm_accuracy", "next_sentence_accuracy"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5)


# === What it refuses, in this process ===


@pytest.fixture
def refused(data, tmp_path):
    """Return a function that validates flags and returns the one line of the error."""

    def check(**changes):
        given = arguments(data, tmp_path / "out", **changes)
        with pytest.raises((ValueError, OSError)) as caught:
            make_plan(command_options.parse(PretrainingOptions, given))
        assert not (tmp_path / "out").exists()
        text = str(caught.value)
        assert "\n" not in text
        return text

    return check


def test_flags_that_do_not_fit_are_refused(refused, data):
    assert "do_train, do_eval" in refused(do_train=False, do_eval=False)
    assert refused(use_tpu=True).startswith("use_tpu, tpu_name")
    assert "layer_wise_decay: expected above 0 and at most 1, got 0" in refused(layer_wise_decay=0)
    assert "TPUs" in refused(master="grpc://x")
    assert refused(train_batch_size=0) == "train_batch_size: expected at least 1, got 0"
    assert "length_bins: expected at most max_seq_length, 31, got 32" in refused(length_bins=32)
    assert "length_bins: expected at least 0" in refused(length_bins=-1)
    assert "profile_steps: expected a first step and a last one" in refused(profile_steps="20,10")
    assert "profile_steps: expected int values, got 1,x" in refused(profile_steps="1,x")
    text = refused(profile_steps="10,47")
    assert "profile_steps: expected steps of the run, which takes 46, got 10,47" in text
    text = refused(length_bins=4, pack_sequences=True)
    assert text.startswith("pack_sequences, length_bins: expected one of them") and "bins 4" in text
    both = "train_batch_size, train_batch_tokens: expected one of them, got 13 and 99"
    assert refused(train_batch_tokens=99) == both
    tokens = {"train_batch_size": None, "train_batch_tokens": 99}
    text = "train_batch_tokens: expected batches of like length, without length_bins 0: "
    assert refused(**tokens, length_bins=0).startswith(text)
    text = "train_batch_tokens: expected batches of like length, without pack_sequences: "
    assert refused(**tokens, pack_sequences=True).startswith(text)
    text = "train_batch_tokens: its batches have many shapes, and a TPU is for one; use "
    assert refused(**tokens, distribution_strategy="tpu").startswith(text)
    assert "train_batch_tokens: expected at least 1" in refused(train_batch_tokens=0)
    text = "second_train_batch_tokens: is of the second phase; give --second_input_file"
    assert refused(second_train_batch_tokens=99) == text
    second = {"second_input_file": "x", "second_train_batch_tokens": 99}
    text = "second_train_batch_size, second_train_batch_tokens: expected one of them, got 5 and 99"
    assert refused(**second, second_train_batch_size=5) == text
    assert refused(**second, length_bins=0).startswith("second_train_batch_tokens: expected batch")
    several = {"find_batch_size": True, "distribution_strategy": "multi_worker_mirrored"}
    assert "find_batch_size: measure on one host" in refused(**several)
    assert "num_warmup_steps: expected at least 0" in refused(num_warmup_steps=-1)
    assert "learning_rate" in refused(learning_rate=0)
    assert "got both" in refused(model_size="tiny")
    assert "got neither" in refused(bert_config_file=None)
    assert "input_file: this flag is required" in refused(input_file=None)
    assert "size must be one of" in refused(model_size="huge", bert_config_file=None)
    assert "vocabulary's size is not known" in refused(
        model_size="tiny", bert_config_file=None, vocab_file=None
    )


def test_files_that_do_not_fit_are_refused(refused, data, tmp_path):
    assert "absent*: no such record file" in refused(input_file=f"{data}/absent*")
    assert "vocab_file: no such file" in refused(vocab_file="absent.txt")
    assert "absent.json" in refused(bert_config_file="absent.json")
    assert "absent.ckpt: no such file or directory" in refused(init_checkpoint="absent.ckpt")
    assert "max_seq_length 31, expected 37" in refused(max_seq_length=37)
    second = {"second_input_file": f"{data}/dev.tfrecord", "second_max_seq_length": 29}
    assert "max_seq_length 31, expected 29" in refused(**second)
    assert "second_phase_steps: expected less than" in refused(**second, second_phase_steps=STEPS)
    assert "second_learning_rate: expected above 0, with" in refused(second_learning_rate=1e-3)
    assert "max_predictions_per_seq 5, expected 3" in refused(max_predictions_per_seq=3)
    small = tmp_path / "small.json"
    synthetic.small_config(max_position_embeddings=29).to_json_file(small)
    assert "max_seq_length: the model has 29 positions" in refused(bert_config_file=small)
    synthetic.small_config(vocab_size=89).to_json_file(small)
    assert "the model has 89 pieces, the vocabulary 97" in refused(bert_config_file=small)
    text = refused(bert_config_file=small, vocab_file=None)
    assert "train-0.tfrecord: record 1: holds token id 94" in text and "vocab_size is 89" in text
    assert "unmasked, for dynamic masking" in refused(
        input_file=f"{data}/unmasked.tfrecord", vocab_file=None
    )
    synthetic.small_config(left_to_right=True).to_json_file(small)
    assert "holds masked records" in refused(bert_config_file=small)
    damaged = tmp_path / "damaged.tfrecord"
    damaged.write_bytes((data / "dev.tfrecord").read_bytes()[:-3])
    assert f"{damaged}: record 36" in refused(input_file=damaged)


def test_records_of_another_vocabulary_or_casing_are_refused(refused, data, tmp_path):
    arrays = synthetic.make_arrays(3, 1)
    features = pretraining_features(LENGTH, PREDICTIONS)
    path = tmp_path / "cased.tfrecord"
    with RecordWriter(path) as writer:
        writer.write_framed(encode_framed_examples(features, arrays))
    manifest = {
        "files": [path.name],
        "do_lower_case": False,
        "max_token_id": 96,
        "vocab_size": VOCAB_SIZE,
        "vocab_sha256": "0" * 64,
    }
    (tmp_path / "cased.manifest.json").write_text(json.dumps(manifest))
    own = {"input_file": path, "eval_input_file": path}
    assert "is not the vocabulary that the records were made with" in refused(**own)
    assert "do_lower_case" in refused(**own, vocab_file=None, do_lower_case=True)
    uncased = tmp_path / "uncased_L-12_H-768_A-12"
    uncased.mkdir()
    (uncased / "bert_model.ckpt.index").write_bytes(b"")
    text = refused(**own, vocab_file=None, init_checkpoint=uncased / "bert_model.ckpt")
    assert "uncased" in text
    assert "mixed" not in text


def test_damaged_records_are_left_out_counted_and_named(refused, data, tmp_path, caplog):
    damaged = tmp_path / "train-0.tfrecord"
    whole = bytearray((data / "train-0.tfrecord").read_bytes())
    for place in range(7):
        whole[(2 * place + 1) * len(whole) // 14] ^= 1
    damaged.write_bytes(whole)
    message = f"{damaged}: record 7: corrupt"
    assert message in refused(input_file=damaged)
    names = {"input_file": f"{damaged},{data}/train-1*", "skip_corrupt_records": True}
    given = arguments(data, tmp_path / "out", **names)
    options = command_options.parse(PretrainingOptions, given)
    plan = make_plan(options)
    (phase,) = plan.phases
    assert phase.files == [str(damaged), f"{data}/train-1.tfrecord.gz"]  # as in config.json
    assert phase.counts == [101 - 7, 53]
    read = plan.sound_files
    assert read[phase.files[1]] == phase.files[1]
    assert scan_records(read[str(damaged)]) == 101 - 7
    assert f"left out: {message}" in caplog.text and "and 2 more" in caplog.text
    assert "7 damaged records or stretches left out, 184 records sound" in caplog.text
    dataset = training_dataset(options, plan, phase, 0)
    (inputs, _, _) = next(dataset.as_numpy_iterator())
    rows, length = inputs["input_ids"].shape
    assert rows == 13 and length <= LENGTH  # a batch of like length


def test_predictions_that_dynamic_masking_cuts_off_are_warned_of(caplog):
    """As create_pretraining_data warns where masks are drawn beforehand."""
    phase = PhaseOptions("second_", "x", 32, 5, 8, None, 0, 9)
    warn_of_predictions_cut_off(phase, MaskingRule(synthetic.VOCAB, masked_lm_prob=0.8))
    (record,) = caplog.records
    assert record.getMessage() == (
        "second_max_predictions_per_seq 5 cuts off predictions: max_seq_length * masked_lm_prob is "
        "25.6; give at least 26"
    )
    caplog.clear()
    for masking in (MaskingRule(synthetic.VOCAB), NextPieceRule(), None):
        warn_of_predictions_cut_off(phase, masking)
    assert not caplog.records


def test_a_plan_warns_of_predictions_that_are_cut_off(data, tmp_path, caplog):
    given = {"input_file": f"{data}/unmasked.tfrecord", "masked_lm_prob": 0.8}
    given = arguments(data, tmp_path / "out", **given, max_predictions_per_seq=5)
    make_plan(command_options.parse(PretrainingOptions, given))
    assert "max_predictions_per_seq 5 cuts off predictions: " in caplog.text


def test_a_plan_leaves_empty_shards_out(data, tmp_path):
    names = [f"t-{i:05}-of-00002.tfrecord" for i in range(2)]
    shutil.copy(data / "train-0.tfrecord", tmp_path / names[0])
    (tmp_path / names[1]).write_bytes(b"")
    described = {"files": names, "file_instances": [101, 0]}
    (tmp_path / "t.manifest.json").write_text(json.dumps(described))
    files = dict.fromkeys(("input_file", "eval_input_file"), f"{tmp_path}/t-*.tfrecord")
    given = arguments(data, tmp_path / "out", **files)
    plan = make_plan(command_options.parse(PretrainingOptions, given))
    assert plan.phases[0].files == plan.eval_files == [str(tmp_path / names[0])]
    assert plan.phases[0].counts == [101]


def test_two_processes_do_not_train_in_one_folder(data, tmp_path):
    with filelock.FileLock(tmp_path / "lock"):
        options = command_options.parse(PretrainingOptions, arguments(data, tmp_path))
        run = PretrainingRun(options, make_plan(options), None)
        with pytest.raises(InputError, match="output_dir: another process trains in "):
            run.run()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_training_records_by_another_path_are_not_held_out(data, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    own = {"input_file": "dev.tfrecord", "eval_input_file": f"{data}/dev.tfrecord"}
    options = command_options.parse(PretrainingOptions, arguments(data, tmp_path, **own))
    assert not make_plan(options).held_out


def test_the_tokenizer_of_the_model_is_that_of_the_records(refused, data, tmp_path):
    shutil.copy(data / "train-0.tfrecord", tmp_path / "kept.tfrecord")
    described = {"do_lower_case": True, "strip_accents": False, "files": ["kept.tfrecord"]}
    (tmp_path / "kept.manifest.json").write_text(json.dumps(described))
    names = {"input_file": f"{tmp_path}/kept.tfrecord", "eval_input_file": None}
    given = arguments(data, tmp_path / "out", **names)
    tokenizer = make_plan(command_options.parse(PretrainingOptions, given)).tokenizer
    assert tokenizer.do_lower_case and not tokenizer.strip_accents
    said = refused(**names, strip_accents=True)
    assert said.startswith("strip_accents: records with and without accents")
