"""Workers: results in order, errors of theirs, and what is said where one is killed."""

import os
import signal
import time

import pytest

from data_prep.processes.worker_pool import WorkerPool


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
