"""The model and the optimizers train alike on every backend of Keras."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.support import backend_training
from tests.support.backend_training import CASES, STEPS
from tests.test_layering import REPOSITORY


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Folder of the initial values, and what TensorFlow makes of them."""
    folder, initial, results = tmp_path_factory.mktemp("backends"), {}, {}
    for case in CASES:
        model = backend_training.make_model(case)
        before = backend_training.values(model)
        initial |= {f"{case}:{index}": value for index, value in enumerate(before)}
        results[case] = (backend_training.train(model, case), before)
    np.savez(folder / "initial.npz", **initial)
    return folder, results


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("jax", marks=[pytest.mark.jax, pytest.mark.slow]),
        pytest.param("torch", marks=[pytest.mark.torch, pytest.mark.slow]),
    ],
)
def test_ten_steps_of_fit_equal_those_on_tensorflow(expected, backend):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    folder, of_tensorflow = expected
    subprocess.run(
        [sys.executable, "-m", "tests.support.backend_training", str(folder)],
        check=True,
        cwd=REPOSITORY,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    with np.load(folder / "results.npz") as results:
        for case, ((losses, after), before) in of_tensorflow.items():
            assert len(losses) == STEPS
            np.testing.assert_allclose(results[f"{case}:losses"], losses, atol=1e-5, err_msg=case)
            moved = 0.0
            for index, value in enumerate(after):
                found = results[f"{case}:{index}"]
                np.testing.assert_allclose(found, value, rtol=0, atol=1e-5, err_msg=case)
                moved = max(moved, np.abs(value - before[index]).max())
            assert moved > 1e-3, case
