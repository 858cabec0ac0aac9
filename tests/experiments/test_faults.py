"""What a run loses where a disk is full, or one of several workers is lost or called away."""

import contextlib
import signal
import subprocess
import time

import numpy as np
import pytest

from bert_tf.weights.tensor_bundle import read_tensors
from bert_tf.weights.tensor_files import checkpoint_steps
from experiments.command_line import preemption
from tests.support import distributed_runs, network
from tests.support.pretraining_runs import STEPS, finish, log_of, start, write_data

# A disk of 900 kB as the output folder, copied out of the mount namespace when the command ends.
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=900k tmpfs "$0" || exit 99
cd "$0" && "$@"
status=$?
cp -r "$0/." "$0.kept"
exit $status
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_the_checkpoints_before(data, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    enter = ("unshare", "--map-root-user", "--mount", "sh", "-c", ON_A_SMALL_DISK, str(folder))
    tried = subprocess.run([*enter, "true"], capture_output=True, check=False)  # noqa: S603
    if tried.returncode:
        pytest.skip(f"no disk can be mounted here: {tried.stderr.decode()}")
    changes = {"save_checkpoints_steps": 3, "keep_checkpoints": 100}
    process = start(data, folder, enter=enter, **changes)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1, output
    (line,) = [x for x in output.splitlines() if x.startswith("run_pretraining: ")]
    assert "No space left on device" in line
    assert "Traceback" not in output
    kept = tmp_path / "run.kept"
    steps = checkpoint_steps(kept)
    assert steps and not list(kept.glob("*.tempstate*"))
    # With room again the same command goes on, to where it would have come.
    output = finish(start(data, kept, **changes))
    assert f"step {steps[-1]} (continued)" in output
    finish(start(data, tmp_path / "whole", **changes))
    assert log_of(kept) == log_of(tmp_path / "whole")
    assert_same_weights(kept, tmp_path / "whole")


def assert_same_weights(first, second):
    ours, theirs = (read_tensors(folder / f"model.ckpt-{STEPS}") for folder in (first, second))
    assert ours.keys() == theirs.keys() and len(ours) > 80
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


# === Two workers ===


def start_workers(data, folder, hosts=None):
    addresses = [f"{host.address}:2222" for host in hosts or ()]
    configs = distributed_runs.tf_configs(addresses or distributed_runs.free_addresses(2))
    return [
        start(
            data,
            folder,
            enter=hosts[i].enter if hosts else (),
            tf_config=config,
            distribution_strategy="multi_worker_mirrored",
            train_batch_size=14,
            eval_batch_size=6,
        )
        for i, config in enumerate(configs)
    ]


def finish_workers(processes):
    try:
        return [finish(process) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Output folder of two workers that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish_workers(start_workers(data, folder))
    return folder


def wait_for_step(folder, step, processes):
    while True:
        assert all(process.poll() is None for process in processes)
        path = folder / "metrics.jsonl"
        if path.exists() and any(line.get("step", 0) >= step for line in log_of(folder)):
            return
        time.sleep(0.002)


@pytest.mark.slow
def test_where_one_worker_is_called_away_all_end_and_go_on_later(data, whole, tmp_path):
    folder = tmp_path / "run"
    processes = start_workers(data, folder)
    wait_for_step(folder, 14, processes)
    processes[1].send_signal(signal.SIGTERM)  # the one that is not the chief
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == preemption.STATUS, output
        assert "stopped by a signal after step" in output
    last = checkpoint_steps(folder)[-1]
    assert 14 <= last < STEPS
    outputs = finish_workers(start_workers(data, folder))
    assert f"step {last} (continued)" in outputs[0]
    assert log_of(folder) == log_of(whole)
    assert_same_weights(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_where_one_worker_is_killed_the_other_ends_and_both_go_on(data, whole, tmp_path, victim):
    folder = tmp_path / "run"
    processes = start_workers(data, folder)
    wait_for_step(folder, 14, processes)
    processes[victim].kill()
    survivor = processes[1 - victim]
    output, _ = survivor.communicate(timeout=300)
    processes[victim].communicate()
    assert survivor.returncode == preemption.STATUS, output
    assert "another worker was lost" in output.splitlines()[-1] and "Traceback" not in output
    assert max(checkpoint_steps(folder)) == 11, "nothing of a broken step is kept"
    outputs = finish_workers(start_workers(data, folder))
    assert "step 11 (continued)" in outputs[0]
    assert log_of(folder) == log_of(whole)
    assert_same_weights(folder, whole)


@pytest.fixture
def far_hosts():
    """Two hosts; what one sends is with the other after 30 ms, and every 50th packet never."""
    with contextlib.ExitStack() as stack:
        try:
            yield stack.enter_context(network.two_hosts(delay_seconds=0.03, loss=0.02))
        except PermissionError as error:
            pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_where_a_host_far_away_is_cut_off_both_end_and_go_on(data, whole, tmp_path, far_hosts):
    hosts, cable = far_hosts
    folder = tmp_path / "run"
    processes = start_workers(data, folder, hosts)
    wait_for_step(folder, 7, processes)
    with cable.cut():  # for less than the five seconds that a heartbeat's answer may take
        time.sleep(1)
    wait_for_step(folder, 14, processes)
    with cable.cut():
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == preemption.STATUS, output
        assert "another worker was lost" in output and "Traceback" not in output
    assert max(checkpoint_steps(folder)) == 11
    outputs = finish_workers(start_workers(data, folder, hosts))
    assert "step 11 (continued)" in outputs[0]
    assert cable.lost > 10
    assert log_of(folder) == log_of(whole)
    assert_same_weights(folder, whole)
