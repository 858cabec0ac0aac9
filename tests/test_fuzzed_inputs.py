"""Readers refuse whatever bytes they get by the exceptions that they document, and by no others."""

import pathlib

import pytest

from tests.support.fuzz_targets import TARGETS, mutations

FOUND = pathlib.Path(__file__).parent / "golden" / "fuzz"
# Keras of itself reads its variables in a way that NumPy is about to give up.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
COUNT = 150
FEWER = {"keras": 15}  # each makes a model


@pytest.mark.parametrize("name", TARGETS)
def test_altered_inputs_end_in_documented_exceptions(name, tmp_path):
    target = TARGETS[name]
    seeds = target.seeds(tmp_path)
    refused = [
        target.run(data, tmp_path) for data in mutations(seeds, FEWER.get(name, COUNT), seed=1)
    ]
    assert any(refused)


@pytest.mark.parametrize("path", sorted(FOUND.glob("*/*")), ids=lambda path: path.name)
def test_inputs_that_were_found_once(path, tmp_path):
    TARGETS[path.parent.name].run(path.read_bytes(), tmp_path)
