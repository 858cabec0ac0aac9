"""Our layers and models pass the checks that Keras and KerasHub have for theirs."""

import re
import subprocess
import sys

import pytest

from tests.test_layering import REPOSITORY


@pytest.mark.slow
@pytest.mark.timeout(840)
def test_checks_of_keras_and_kerashub():
    done = subprocess.run(
        [sys.executable, "-m", "unittest", "-v", "tests.support.keras_checks"],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert int(re.findall(r"Ran (\d+) tests", done.stderr)[0]) >= 5
