"""Record files that several tests of pre-training batches read."""

import pytest

from tests.support import synthetic_records as synthetic


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Two files of `RECORD_COUNTS` masked records, the second one in gzip."""
    folder = tmp_path_factory.mktemp("records")
    names = ("a.tfrecord", "b.tfrecord.gz")
    return [
        synthetic.write(folder / name, count, seed)
        for seed, (name, count) in enumerate(zip(names, synthetic.RECORD_COUNTS, strict=True), 1)
    ]


@pytest.fixture(scope="session")
def unmasked(tmp_path_factory):
    """A file of 59 unmasked records, in a list."""
    return [synthetic.write(tmp_path_factory.mktemp("u") / "u.tfrecord", 59, 4, masked=False)]
