"""Our commands in processes that need not import TensorFlow first, which takes seconds.

A server process imports it once and forks for each command (`multiprocessing`'s forkserver). The
command gets its own arguments, folder, environment and output, as in a process that a shell starts;
what TensorFlow and Keras read when they are imported is that of the tests.
"""

import atexit
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

_PRELOADED = ["tensorflow", "tensorflow_text", "keras", "matplotlib.pyplot"]
_READ_BY_IMPORTS = ("KERAS_BACKEND", "KERAS_HOME", "TF_USE_LEGACY_KERAS")
_TIMEOUT = 600  # seconds


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
    """
    environment = dict(os.environ if env is None else env)
    for name in _READ_BY_IMPORTS:
        assert environment.get(name) == os.environ.get(name), f"{name}: needs a process of its own"
    arguments = [os.fspath(part) for part in command]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        streams = [pathlib.Path(folder) / name for name in ("stdout", "stderr")]
        process = context.Process(
            target=_become, args=(arguments, os.fspath(cwd), environment, streams)
        )
        process.start()
        process.join(_TIMEOUT)
        if process.exitcode is None:
            process.kill()
            process.join()
        texts = [stream.read_text(errors="replace") for stream in streams]
    return subprocess.CompletedProcess(arguments, process.exitcode or 0, *texts)


def _become(
    arguments: list[str], cwd: str, environment: dict[str, str], streams: list[pathlib.Path]
) -> None:
    """Be the script's process, from here to its end."""
    for number, stream in enumerate(streams, start=1):
        with stream.open("wb") as opened:
            os.dup2(opened.fileno(), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        sys.stdout.flush()
        atexit._run_exitfuncs()  # which processes of multiprocessing leave out
