"""What the tests share: where real data lies, and a bound on what may be skipped."""

import gc
import logging
import os
import pathlib

import pytest

from tests.support import object_store

# Several pytest processes share the cores: more threads in each would only wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")

# A full collection walks all that TensorFlow and Keras have made, and comes by default with every
# few models that tests build: 5% of their time.
gc.set_threshold(50_000, 20, 100)

# transformers asks the Hub about models of local folders too.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# In reasons to skip: what .ci/machine says before the tests begin.
LACKS_OF_THE_MACHINE = ("set BERT_TF_", "needs a C compiler")
REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption("--max-skips", type=int, help="fail where more tests are skipped than these")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """Fail where too many are skipped: a missing package would go unseen."""
    limit = session.config.getoption("--max-skips")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if limit is None or reporter is None or session.exitstatus:
        return
    skips = [
        skip
        for skip in reporter.stats.get("skipped", [])
        if not any(words in skip.longrepr[2] for words in LACKS_OF_THE_MACHINE)
    ]
    if len(skips) > limit:
        reporter.write_line(f"\n{len(skips)} tests skipped, at most {limit} may", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_collection_modifyitems(items):
    """Let thorough tests run untraced: others reach their lines, and tracing is dear."""
    for item in items:
        if any(not mark.kwargs.get("traced") for mark in item.iter_markers("thorough")):
            item.add_marker("no_cover")


@pytest.fixture(autouse=True)
def _commands_of_untraced_tests_run_untraced(request, monkeypatch):
    """What coverage has its processes begin with, see its option `patch`."""
    if request.node.get_closest_marker("no_cover"):
        monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture(autouse=True)
def _logging_stays_as_it_is(caplog):
    """What a library leaves changed is lost to whoever imports ours, and to later tests."""
    before = _levels(caplog)
    yield
    assert _levels(caplog) == before, "levels of the root logger and its handlers changed"


def _levels(caplog):
    root = logging.getLogger()
    return root.level, root.manager.disable, caplog.handler.level


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Folder of real data (vocabularies, corpus, tasks); skips the test where it is absent."""
    folder = pathlib.Path(os.environ.get("BERT_TF_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data is not at {folder}; set BERT_TF_DATA to its folder")
    return folder


@pytest.fixture
def store(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Folder of the objects of bucket://..., for this process and those that it starts."""
    folder = tmp_path / "store"
    folder.mkdir()
    object_store.use(folder, monkeypatch)
    return folder
