"""Workers: results in order, errors of theirs, and what is said where one is killed."""

import os
import signal
import sys
import time

import pytest

from data_prep.processes import command, progress
from data_prep.processes.command import end_in_one_line
from data_prep.processes.folder_lock import lock_folder
from data_prep.processes.work_folder import work_folder
from data_prep.processes.worker_pool import WorkerPool, available_cores


class Worker:
    """Answers later the smaller its number is; ends as it is told to."""

    def __init__(self, base):
        self.base = base

    def add(self, number):
        time.sleep(0.02 / (1 + number))
        if number == 13:
            raise ValueError("13 is bad")
        return self.base + number

    def die(self, number):
        if number == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return number


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_come_in_order_and_an_error_ends_them(num_workers):
    with WorkerPool(num_workers, Worker, 100) as pool:
        assert list(pool.map("add", ((n,) for n in range(11)))) == list(range(100, 111))
        found = []
        with pytest.raises(ValueError, match="13 is bad"):
            found.extend(pool.map("add", ((n,) for n in range(11, 19))))


def test_a_worker_that_is_killed_is_told_in_one_line():
    with WorkerPool(2, Worker, 0) as pool, pytest.raises(RuntimeError) as error:
        list(pool.map("die", ((n,) for n in range(11))))
    assert str(error.value).startswith("a worker process was killed; if memory was short")


def test_there_is_at_least_one_worker():
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        WorkerPool(0, Worker, 0)


def test_progress_in_a_log_is_a_line_now_and_then(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Progress("tokens", 50, "B", done=10) as shown:
        for seconds in (29, 30, 31, 61):
            now[0] = float(seconds)
            shown.update(5)
    lines = capsys.readouterr().err.splitlines()
    shown = [line.partition("<")[0] for line in lines]
    assert shown == [
        "tokens:  40% 20.0/50.0 [00:30",
        "tokens:  60% 30.0/50.0 [01:01",
        "tokens:  60% 30.0/50.0 [01:01",
    ]


def test_cores_where_the_system_has_no_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    for count, expected in ((7, 7), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert available_cores() == expected


def test_a_folder_that_another_run_holds_stays(tmp_path):
    base = f"{tmp_path}/x.work-"
    held, left = base + "0" * 16, base + "1" * 16
    for folder in (held, left):
        os.mkdir(folder)
    lock = lock_folder(held)
    assert lock is not None
    with lock, work_folder(base, "2" * 16) as work:
        assert sorted(os.listdir(tmp_path)) == [f"x.work-{x * 16}" for x in "02"]
        with pytest.raises(RuntimeError, match=f"another run .*; it holds {work}"):
            with work_folder(base, "2" * 16):
                pass
    assert os.listdir(tmp_path) == [f"x.work-{'0' * 16}"]


def test_how_a_command_ends(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/learn_vocab.py"])

    def stop():
        raise KeyboardInterrupt

    def fail():
        raise ValueError("bad input")

    with pytest.raises(SystemExit, match="^learn_vocab: stopped$"):
        end_in_one_line(stop)
    with pytest.raises(SystemExit, match="^learn_vocab: stopped; go on$"):
        end_in_one_line(stop, "stopped; go on")
    with pytest.raises(SystemExit, match="^learn_vocab: bad input$"):
        end_in_one_line(fail)
    monkeypatch.setattr(command.logging, "level_debug", lambda: True)  # as by --verbosity=1
    with pytest.raises(ValueError, match="^bad input$"):
        end_in_one_line(fail)
