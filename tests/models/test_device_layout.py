"""Models split over devices by Keras' distribution on JAX train as on one device."""

import types

import numpy as np
import pytest

from bert_tf.models import layout_map
from tests.support import jax_devices
from tests.support import synthetic_records as synthetic
from tests.support.distributed_runs import free_addresses
from tests.support.jax_devices import CASES, STEPS

SPLIT = (  # what a device holds a part of, in each layer
    *(
        f"attention/self/{name}/{part}"
        for name in ("query", "key", "value")
        for part in ("kernel", "bias")
    ),
    *("attention/output/dense/kernel", "intermediate/dense/kernel", "intermediate/dense/bias"),
    "output/dense/kernel",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of the results of all cases, each on eight devices of one process."""
    pytest.importorskip("jax", reason="jax is not installed")
    folder = tmp_path_factory.mktemp("devices")
    assert jax_devices.start(folder, CASES).wait(timeout=500) == 0
    return folder


def check(folder, case, expected):
    """Compare losses and variables, with the moments of Adam and the states of dropout."""
    with np.load(folder / f"{case}.npz") as found, np.load(expected / "one.npz") as one:
        assert found["losses"].shape == (STEPS,)
        names = [name for name in one if not name.startswith("held/")]
        names = [name for name in names if name in found or "encoder/" != name[:8]]
        assert len(names) > 100
        for name in names:
            np.testing.assert_allclose(found[name], one[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.thorough
@pytest.mark.jax
@pytest.mark.parametrize("case", [case for case in CASES if case != "one"])
def test_eight_devices_train_as_one(folder, case):
    check(folder, case, folder)
    with np.load(folder / f"{case}.npz") as found, np.load(folder / "initial.npz") as initial:
        parts = CASES[case][1] if len(CASES[case]) > 1 else 1
        split = {f"bert/encoder/layer_{i}/{path}" for i in range(2) for path in SPLIT}
        for name in initial:
            share = 1 / parts if name in split else 1
            assert found[f"held/{name}"] == share, name
            moment = f"held/adam_weight_decay/{name.replace('/', '_')}_adam_m"
            assert name.endswith("seed_generator_state") or found[moment] == share, name
        moved = max(np.abs(found[name] - initial[name]).max() for name in split)
        assert moved > 1e-3


@pytest.mark.jax
@pytest.mark.slow
@pytest.mark.parametrize("case", ["data", "model"])
def test_two_processes_train_as_one(folder, tmp_path, case):
    (tmp_path / "initial.npz").write_bytes((folder / "initial.npz").read_bytes())
    (address,) = free_addresses(1)
    processes = [jax_devices.start(tmp_path, [case], 2, i, address) for i in range(2)]
    assert [process.wait(timeout=500) for process in processes] == [0, 0]
    check(tmp_path, case, folder)


@pytest.mark.jax
@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_split_model_goes_on_from_orbax(folder, tmp_path, processes):
    """As one that was never interrupted; in one process to the bit."""
    pytest.importorskip("orbax.checkpoint", reason="orbax-checkpoint is not installed")
    (tmp_path / "initial.npz").write_bytes((folder / "initial.npz").read_bytes())
    found = []
    for _ in range(2):
        (address,) = free_addresses(1)
        started = [
            jax_devices.start(tmp_path, ["model"], processes, i, address, orbax=3)
            for i in range(processes)
        ]
        assert [process.wait(timeout=500) for process in started] == [0] * processes
        with np.load(tmp_path / "model.npz") as results:
            found.append(dict(results))
    first, rest = found
    tolerance = 0 if processes == 1 else 1e-5
    with np.load(folder / "model.npz") as expected:
        losses = expected["losses"][: len(first["losses"])]
        np.testing.assert_allclose(first["losses"], losses, rtol=0, atol=tolerance)
        assert len(losses) + len(rest.pop("losses")) == STEPS
        assert rest.keys() == {n for n in expected if n[:8] != "encoder/"} - {"losses"}
        for name, value in rest.items():
            np.testing.assert_allclose(value, expected[name], 0, tolerance, err_msg=name)
    split = [name for name in rest if name.startswith("held/") and rest[name] < 1]
    assert len(split) == 3 * 2 * len(SPLIT)  # of two layers, with their moments


def test_where_it_cannot_work(monkeypatch):
    config = synthetic.small_config()
    mesh = types.SimpleNamespace(axis_names=["data", "model"], shape=(2, 3))
    with pytest.raises(ValueError, match="layout_map: .* KERAS_BACKEND=jax .*; this is tensorflow"):
        layout_map(config, mesh)
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    with pytest.raises(ValueError, match="device_mesh: 3 devices along 'model' cannot share the 2"):
        layout_map(config, mesh)
    mesh.axis_names = ["batch", "heads"]
    with pytest.raises(ValueError, match="device_mesh: expected an axis 'model', got batch, heads"):
        layout_map(config, mesh)
