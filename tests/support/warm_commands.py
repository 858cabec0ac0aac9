"""Our commands in processes that need not import TensorFlow first, which takes seconds.

A server process imports it once and forks for each command (`multiprocessing`'s forkserver). The
command gets its own arguments, folder, environment and output, as in a process that a shell starts;
what TensorFlow and Keras read when they are imported is that of the tests, and so is the seed of
Python's hashes: what must not depend on it needs a process of its own.
"""

import atexit
import multiprocessing
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from unittest import mock

import numpy as np

_PRELOADED = ["tensorflow", "tensorflow_text", "keras", "matplotlib.pyplot"]
_READ_BY_IMPORTS = ("KERAS_BACKEND", "KERAS_HOME", "TF_USE_LEGACY_KERAS")
_OF_THE_SERVER = {name: os.environ.get(name) for name in _READ_BY_IMPORTS}
_TIMEOUT = 300  # seconds; below pytest's


def run(
    command: Sequence[str | os.PathLike],
    *,
    cwd: str | os.PathLike,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run one of our scripts, as `subprocess.run` does Python with it.

    Args:
        command: path of the script, absolute or from cwd, and its arguments.
        cwd: folder in which it runs.
        env: its environment; by default that of the tests.

    Returns:
        Exit status, and what it wrote into each stream.

    Raises:
        subprocess.TimeoutExpired: it takes longer than five minutes.
    """
    environment = dict(os.environ if env is None else env)
    for given in (environment, os.environ):  # the first command starts the server
        asked = {name: given.get(name) for name in _READ_BY_IMPORTS}
        assert asked == _OF_THE_SERVER, f"{asked}: needs a process of its own"
    arguments = [os.fspath(part) for part in command]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    # A command says no more of the machine than it would where TensorFlow was not imported yet.
    with mock.patch.dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3"):
        forkserver.ensure_running()
    with tempfile.TemporaryDirectory() as folder:
        streams = [pathlib.Path(folder) / name for name in ("stdout", "stderr")]
        for stream in streams:
            stream.touch()
        process = context.Process(
            target=_become, args=(arguments, os.fspath(cwd), environment, streams)
        )
        process.start()
        try:
            process.join(_TIMEOUT)
            status = process.exitcode
        finally:  # also where the test is interrupted
            if process.is_alive() and process.pid is not None:
                os.killpg(process.pid, signal.SIGKILL)
                process.join()
        texts = [stream.read_text(errors="replace") for stream in streams]
    if status is None:
        raise subprocess.TimeoutExpired(arguments, _TIMEOUT, *texts)
    return subprocess.CompletedProcess(arguments, status, *texts)


def _become(
    arguments: list[str], cwd: str, environment: dict[str, str], streams: list[pathlib.Path]
) -> None:
    """Be the script's process, from here to its end."""
    os.setsid()  # that its own processes end with it
    for number, stream in enumerate(streams, start=1):
        with stream.open("wb") as opened:
            os.dup2(opened.fileno(), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    first = [os.path.dirname(os.path.abspath(arguments[0]))]
    first += filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [*first, *sys.path[1:]]
    if "coverage" in sys.modules and "COVERAGE_PROCESS_CONFIG" not in environment:
        traced = sys.modules["coverage"].Coverage.current()  # since the server was
        if traced is not None:
            traced.stop()
    np.random.seed()  # another one each time  # noqa: NPY002
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        sys.stdout.flush()
        atexit._run_exitfuncs()  # which processes of multiprocessing leave out
