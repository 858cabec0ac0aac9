"""Commands in forks: they run what, where and as they would in a process of their own."""

import os
import pathlib
import subprocess
import time

import pytest

from tests.support import warm_commands
from tests.support.code_blocks import REPOSITORY

SCRIPT = """
import os, pathlib, random, sys
import numpy
import bert_tf, only_there
print(sys.argv[1:], os.getcwd(), os.environ.get("GIVEN"), __name__)
print(bert_tf.__file__)
print(numpy.random.rand(), file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


def script(folder, text):
    path = folder / "script.py"
    path.write_text(text)
    return path


def test_a_command_is_as_in_a_process_of_its_own(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "only_there.py").write_text("")
    folders = os.pathsep.join([str(tmp_path / "more"), str(REPOSITORY)])
    environment = {**os.environ, "PYTHONPATH": folders, "GIVEN": "yes"}
    command = [script(tmp_path, SCRIPT), "3", "a b"]
    first, second = (warm_commands.run(command, cwd=tmp_path, env=environment) for _ in "ab")
    assert "Traceback" not in first.stderr, first.stderr
    said, place = first.stdout.splitlines()
    assert said == f"['3', 'a b'] {tmp_path} yes __main__" and first.returncode == 3
    assert pathlib.Path(place).is_relative_to(REPOSITORY), "another checkout's code"
    assert first.stderr != second.stderr, "one seed for all commands"
    assert os.getcwd() != str(tmp_path) and "GIVEN" not in os.environ


def test_what_it_raises_is_its_own(tmp_path):
    path = script(tmp_path, "import sys\nif len(sys.argv) > 1:\n    sys.exit('no')\n1 / 0\n")
    failed = warm_commands.run([path], cwd=tmp_path)
    assert failed.returncode == 1 and "ZeroDivisionError" in failed.stderr
    refused = warm_commands.run([path, "x"], cwd=tmp_path)
    assert (refused.returncode, refused.stderr) == (1, "no\n")
    with pytest.raises(AssertionError, match="needs a process of its own"):
        warm_commands.run([path], cwd=tmp_path, env={**os.environ, "KERAS_BACKEND": "other"})


def test_what_tensorflow_says_of_the_machine_is_not_in_its_output(tmp_path):
    text = "from absl import app\napp.run(lambda _: 'no')\n"  # asks for the devices, once imported
    done = warm_commands.run([script(tmp_path, text)], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "no\n")


def test_one_that_does_not_end_ends_with_its_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(warm_commands, "_TIMEOUT", 2)
    path = script(
        tmp_path,
        "import subprocess, time\nchild = subprocess.Popen(['sleep', '600'])\n"
        "print(child.pid, flush=True)\ntime.sleep(600)\n",
    )
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        warm_commands.run([path], cwd=tmp_path)
    child = pathlib.Path("/proc") / caught.value.output.strip() / "cmdline"
    for _ in range(100):  # what is killed takes a moment to go
        if not child.exists() or not child.read_bytes():
            return
        time.sleep(0.05)
    pytest.fail("its own process is still there")
