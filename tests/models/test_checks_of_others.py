"""Our layers and models pass the checks that Keras and KerasHub have for theirs."""

import os
import re
import subprocess
import sys

import pytest

from tests.test_layering import REPOSITORY


@pytest.mark.slow
@pytest.mark.timeout(840)
@pytest.mark.parametrize(
    "backend",
    [
        "tensorflow",
        pytest.param("jax", marks=pytest.mark.jax),
        pytest.param("torch", marks=pytest.mark.torch),
    ],
)
def test_checks_of_keras_and_kerashub(backend):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "unittest", "-v", "tests.support.keras_checks"],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert int(re.findall(r"Ran (\d+) tests", done.stderr)[0]) >= 5
