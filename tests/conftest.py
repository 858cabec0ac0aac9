"""What the tests share: where real data lies, where it is present."""

import os
import pathlib

import pytest

# Several pytest processes share the cores: more threads in each would only wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Folder of real data (vocabularies, corpus, tasks); skips the test where it is absent."""
    folder = pathlib.Path(os.environ.get("BERT_TF_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data is not at {folder}; set BERT_TF_DATA to its folder")
    return folder
