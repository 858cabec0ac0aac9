"""Small changes to the product, each tried against the tests of its room: are they noticed?

    python -m tests.support.mutants --output=mutants.jsonl --count=300 --minutes=60
    python -m tests.support.mutants --output=mutants.jsonl --listed

Changes are operators, constants, comparisons and left out statements of the files that
`mutants.toml` names, drawn with a fixed seed, or those that it lists itself. A room's tests run
once with coverage; each change is then tried against those of them that reach its line, the quick
ones first, in a copy of the repository; a drawn change that the table lists is tried against the
tests that stand there. The results are appended to the output as they come: what is there already
is not tried again. Each runs in a fork of a process that has imported all but the product and its
tests, which takes a fifth of a second.
"""

import argparse
import ast
import collections
import contextlib
import gc
import hashlib
import importlib
import io
import itertools
import json
import math
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TABLE = pathlib.Path(__file__).with_suffix(".toml")
# Imported once: each change is tried in a fork of this process, none of them has run anything.
_PRELOADED = ("numpy", "scipy.stats", "h5py", "safetensors.numpy", "tensorflow", "keras", "pytest")
# For one change, of a processor and of waiting; what takes longer hangs, which is noticed.
_MOST_SECONDS, _MOST_WAITING_SECONDS, _MOST_BYTES = 240, 2400, 12 << 30
_STAMPS = itertools.count(10**9)  # seconds
# Arguments that check only, or change how fast or how small something becomes.
_OF_NO_CONSEQUENCE = ("strict", "stacklevel", "validate", "compresslevel", "num_parallel_calls")
_OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


class Change(NamedTuple):
    """One change of a file: the text at a place is replaced."""

    file: str
    line: int
    column: int
    old: str
    new: str

    @property
    def name(self) -> str:
        """What it is called in results."""
        return f"{self.file}:{self.line}:{self.column}: {self.old!r} -> {self.new!r}"

    def applied(self, text: str) -> str:
        """Return the file's text with the change."""
        data = text.encode()
        start = sum(map(len, data.splitlines(keepends=True)[: self.line - 1])) + self.column
        assert data[start:].startswith(self.old.encode()), self.name
        return (data[:start] + self.new.encode() + data[start + len(self.old.encode()) :]).decode()


# === Changes ===


def changes_of(file: str, text: str) -> list[Change]:
    """Return every change of a file, in the order of its lines."""
    found, data = set(), text.encode()
    starts = [0, *itertools.accumulate(map(len, data.splitlines(keepends=True)))]
    for node in _changeable(ast.parse(text)):
        for new in _others(node):
            begin = starts[node.lineno - 1] + node.col_offset
            old = data[begin : starts[node.end_lineno - 1] + node.end_col_offset].decode()
            if not _is_same_constant(old, new):
                found.add(Change(file, node.lineno, node.col_offset, old, new))
    return sorted(found)


def _is_same_constant(old: str, new: str) -> bool:
    with contextlib.suppress(Exception):
        return eval(old, {"__builtins__": {}}) == eval(new, {"__builtins__": {}})
    return False


def _changeable(node: ast.AST) -> Iterator[Any]:
    """Yield the nodes that decide results: not messages, types, decorators or docstrings."""
    if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)):
        return
    if isinstance(node, ast.keyword) and node.arg in _OF_NO_CONSEQUENCE:
        return
    if isinstance(node, ast.Call):
        function = ast.unparse(node.func)
        if function.startswith(("_log.", "logging.")):
            return
        if function.endswith(".reshape"):  # NumPy's: any number below 0 is the same
            arguments = [x for x in node.args if not isinstance(x, ast.UnaryOp)]
            node = ast.copy_location(_copy(node, args=arguments), node)
    if hasattr(node, "lineno"):
        yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _changeable(child)


def _others(node: Any) -> list[str]:
    """Return what may stand in place of a node."""
    match node:
        case ast.Constant(value=bool()):
            return [repr(not node.value)]
        case ast.Constant(value=int()):
            return [repr(node.value + 1), *([repr(node.value - 1)] if node.value else [])]
        case ast.Constant(value=float()):
            return [repr(node.value * 2 if node.value else 1.0)]
        case ast.BinOp() | ast.BoolOp() if type(node.op) in _OPERATORS:
            return [f"({ast.unparse(_copy(node, op=_OPERATORS[type(node.op)]()))})"]
        case ast.Compare(ops=[op]):
            return [f"({ast.unparse(_copy(node, ops=[_OPERATORS[type(op)]()]))})"]
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            return [f"({ast.unparse(node.operand)})"]
        case ast.IfExp():
            return [f"({ast.unparse(node.orelse)})"]
        case ast.Expr(value=ast.Call()) | ast.AugAssign():
            return ["pass"]
        case ast.Call(func=ast.Name(id="min" | "max" as name), args=[_, _, *_]):
            other = ast.Name({"min": "max", "max": "min"}[name])
            return [ast.unparse(_copy(node, func=other))]
    return []


def _copy(node: Any, **fields: Any) -> Any:
    return type(node)(**{**dict(ast.iter_fields(node)), **fields})


def drawn_changes(table: dict, rooms: list[str], count: int, seed: int) -> list[tuple[str, Change]]:
    """Draw changes (room, change) of the rooms, of each as many as its share of all."""
    found = []
    for room in rooms:
        for pattern in table["rooms"][room]["files"]:
            for path in sorted(REPOSITORY.glob(pattern)):
                file = path.relative_to(REPOSITORY).as_posix()
                found += [(room, change) for change in changes_of(file, path.read_text())]
    random.Random(seed).shuffle(found)
    return found[:count]


def listed_changes(table: dict) -> list[tuple[list[str], Change]]:
    """Return the changes (tests, change) that the table lists; tell those of text that is gone."""
    found = []
    for entry in table["listed"]:
        text = (REPOSITORY / entry["file"]).read_text()
        if text.count(entry["old"]) != 1:
            print(f"not once in {entry['file']}, so not tried: {entry['old']!r}")
            continue
        before = text[: text.index(entry["old"])]
        line = before.count("\n") + 1
        column = len(before[before.rfind("\n") + 1 :].encode())
        change = Change(entry["file"], line, column, entry["old"], entry["new"])
        found.append((entry["tests"], change))
    return found


def is_same(change: Change, other: Change) -> bool:
    """Tell whether two changes make the same of a file, whatever parts of it they name."""
    if change.file != other.file or not 0 <= change.line - other.line <= other.old.count("\n"):
        return False
    text = (REPOSITORY / change.file).read_text()
    return len({ast.dump(ast.parse(each.applied(text))) for each in (change, other)}) == 1


# === Tests ===


class _InOrder:
    """Runs tests in the order of their names, which pytest forgets where one name holds others."""

    def __init__(self, names: Sequence[str]):
        self._names = names

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Sort what pytest has found."""
        items.sort(key=lambda item: self._place(item.nodeid))

    def _place(self, test: str) -> int:
        parts = ("[", "::", "/")  # that follow the name of a test, a file or a folder
        for place, name in enumerate(self._names):
            if test == name or test.startswith(tuple(name + part for part in parts)):
                return place
        return len(self._names)


def run_tests(
    folder: pathlib.Path,
    arguments: list[str],
    log: pathlib.Path,
    times: int = 1,
    order: Sequence[str] = (),
) -> int:
    """Run pytest in a fork of this process; return its status, -1 where it took too long.

    Args:
        folder: where the tests lie.
        arguments: of pytest.
        log: file for what it prints.
        times: as much longer it may take as a change may.
        order: tests, files or folders to run first, in this order.
    """
    child = os.fork()
    if not child:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (times * _MOST_SECONDS,) * 2)
        resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES,) * 2)  # of a loop that does not end
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(folder)
        sys.path[:] = [str(folder), *(path for path in sys.path if path != str(REPOSITORY))]
        for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "bert_tf")]:
            del sys.modules[name]
        os.environ["PYTHONPATH"] = str(folder)
        status = 70
        try:
            options = ["-q", "-p", "no:cacheprovider", "--timeout=0", "--assert=plain", "--tb=line"]
            options += ["-m", "not slow"]  # thorough ones too
            arguments = [*options, *arguments]
            status = int(importlib.import_module("pytest").main(arguments, [_InOrder(order)]))
        finally:
            sys.stdout.flush()
            os._exit(status)
    end = time.monotonic() + times * _MOST_WAITING_SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(status)
            return -1 if status in (-signal.SIGXCPU, -signal.SIGKILL) else status
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


class Reach:
    """Which tests of a room reach which lines, and how long each takes."""

    def __init__(self, folder: pathlib.Path, room: str, files: list[str], tests: list[str]):
        """Run the tests once, with coverage; those that fail without any change are left out.

        What comes is kept in the folder for as long as neither files nor tests change.

        Raises:
            RuntimeError: they cannot be run.
        """
        import coverage

        content = hashlib.sha256()
        for pattern in (*files, *(test.partition("::")[0] for test in tests)):
            for path in sorted(folder.glob(pattern if "." in pattern else f"{pattern}/*.py")):
                content.update(path.read_bytes())
        stem = folder / "reach" / f"{room}-{content.hexdigest()[:16]}"
        data, times, log = (stem.with_suffix(f".{name}") for name in ("coverage", "xml", "log"))
        if not times.exists():
            stem.parent.mkdir(exist_ok=True)
            os.environ["COVERAGE_FILE"] = str(data)
            sources = [f"--cov={name}" for name in ("bert_tf", "data_prep", "experiments")]
            report = ["--cov-context=test", "--cov-report=", f"--junitxml={times}"]
            if run_tests(folder, [*tests, *sources, *report], log, times=10) not in (0, 1):
                raise RuntimeError(f"{room}: its tests cannot be run: {log.read_text()[-3000:]}")
        self._folder, self._data = folder, coverage.CoverageData(str(data))
        self._data.read()
        self._seconds: dict[str, float] = collections.defaultdict(float)
        for case in xml.etree.ElementTree.parse(times).iter("testcase"):
            path = case.get("classname", "").replace(".", "/") + ".py"
            if not {"failure", "error", "skipped"} & {part.tag for part in case}:
                self._seconds[f"{path}::{case.get('name')}"] += float(case.get("time", 0))

    def tests_of(self, change: Change, most_seconds: float) -> list[str]:
        """Return the tests that reach a change: the quick files first, in each the quick tests.

        Args:
            change: the change.
            most_seconds: those that come after so many are left out.
        """
        contexts = self._data.contexts_by_lineno(str(self._folder / change.file))
        lines = range(change.line, change.line + change.old.count("\n") + 1)
        names = {name for line in lines for name in contexts.get(line, ())}
        tests = {name.rpartition("|")[0] for name in names if name} & set(self._seconds)
        if "" in names:  # of a module's own lines, which its import runs
            tests = set(self._seconds)
        seconds = collections.Counter()
        for test in tests:
            seconds[test.partition("::")[0]] += self._seconds[test]
        tests = sorted(tests, key=lambda t: (seconds[t.partition("::")[0]], self._seconds[t], t))
        ends = itertools.accumulate(self._seconds[test] for test in tests)
        return [t for t, end in zip(tests, ends, strict=True) if end <= most_seconds] or tests[:1]


def try_change(folder: pathlib.Path, change: Change, tests: list[str]) -> dict[str, Any]:
    """Try one change; return what became of it."""
    path, begin = folder / change.file, time.monotonic()
    text, modified = path.read_text(), path.stat().st_mtime_ns
    listed, log = folder / "tests.txt", folder / "change.log"
    listed.write_text("\n".join(tests))
    path.write_text(change.applied(text))
    os.utime(path, (stamp := next(_STAMPS), stamp))  # so that no other's bytecode is taken
    os.environ.pop("COVERAGE_FILE", None)
    try:
        status = run_tests(folder, ["-x", f"@{listed}"], log, order=tests) if tests else 0
    finally:
        path.write_text(text)
        os.utime(path, ns=(modified, modified))
    lines = log.read_text(errors="replace").splitlines() if tests else []
    if status == 5:
        raise RuntimeError(f"{change.name}: no test was run: {lines[-3:]}")
    told = [line for line in lines if line.startswith(("FAILED", "ERROR"))][:1]
    return {
        "name": change.name,
        "source": f"{change.file}: {text.splitlines()[change.line - 1].strip()}",
        "outcome": {0: "survived", -1: "hung"}.get(status, "noticed"),
        "by": told[0].split(" - ")[0] if told else "",
        "tests": len(tests),
        "seconds": round(time.monotonic() - begin, 1),
    }


def copy_repository(folder: pathlib.Path) -> None:
    """Copy what git knows of, and what is new, to another folder, unless it is there already."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout  # noqa: S603
    command = ["cp", "-u", "--preserve=timestamps", "--parents", "-t", str(folder)]
    command += names.decode().splitlines()
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(command, cwd=REPOSITORY, check=True)  # noqa: S603


def summary(results: list[dict[str, Any]], accepted: dict[str, str]) -> str:
    """Say how many were noticed, room by room, and which survived."""
    lines, counts = [], collections.Counter()
    for result in results:
        counts[result["room"], result["outcome"] == "survived"] += 1
        if result["outcome"] == "survived":
            source = result["source"]
            whole = f"{source}: {result['name'].partition(': ')[2]}"
            reasons = [w for k, w in accepted.items() if k in (whole if "->" in k else source)]
            reason = "".join(reasons[:1])
            lines.append(f"survived: {result['name']}{reason and f' ({reason})'}")
    lines += ["| room | drawn | noticed | |", "|---|---:|---:|---:|"]
    for room in dict.fromkeys(result["room"] for result in results):
        noticed, drawn = counts[room, False], counts[room, False] + counts[room, True]
        lines.append(f"| {room} | {drawn} | {noticed} | {noticed / drawn:.0%} |")
    noticed = sum(number for (_, survived), number in counts.items() if not survived)
    return "\n".join([*lines, f"{noticed} of {len(results)} changes noticed"])


def import_all_but_the_product() -> None:
    """Import what tests need, so that no fork has to, nor has to look at it for garbage."""
    sys.dont_write_bytecode = False  # of the copy
    for name in _PRELOADED:
        importlib.import_module(name)
    with contextlib.redirect_stdout(io.StringIO()):
        importlib.import_module("pytest").main(["--version"])  # loads the plugins
    gc.collect()
    gc.freeze()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="mutants.jsonl", help="results, a line each")
    parser.add_argument("--folder", default="build/mutants", help="of the copy, kept for next time")
    parser.add_argument(
        "--rooms", default="", help="of mutants.toml, parted by commas; all if none"
    )
    parser.add_argument("--count", type=int, default=300, help="changes to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--minutes", type=float, default=60, help="begin no change after these")
    parser.add_argument(
        "--most_seconds", type=float, default=math.inf, help="of tests, begin no other for a change"
    )
    parser.add_argument(
        "--first",
        action="store_true",
        help="only the tests that the table names first for a file, which need no measuring; what "
        "they do not notice is tried again without this",
    )
    parser.add_argument("--listed", action="store_true", help="the changes of mutants.toml instead")
    options = parser.parse_args()
    table = tomllib.loads(TABLE.read_text())
    rooms = options.rooms.split(",") if options.rooms else list(table["rooms"])
    listed = listed_changes(table)
    if options.listed:
        chosen = [("listed", change) for _, change in listed]
    else:
        chosen = drawn_changes(table, rooms, options.count, options.seed)
        chosen.sort(key=lambda entry: rooms.index(entry[0]))
    output = pathlib.Path(options.output)
    results = (
        [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    )
    if not options.first:  # again with all tests that reach it
        results = [x for x in results if not (x.get("first") and x["outcome"] == "survived")]
    done, end = {result["name"] for result in results}, time.monotonic() + 60 * options.minutes
    left = [entry for entry in chosen if entry[1].name not in done]
    os.environ.setdefault("BERT_TF_DATA", str(REPOSITORY.parent / "shared" / "data"))
    import_all_but_the_product()
    folder = pathlib.Path(options.folder).resolve()
    copy_repository(folder)
    with output.open("a") as file:
        reaches: dict[str, Reach] = {}
        for room, change in left:
            if time.monotonic() > end:
                break
            tests = next((names for names, other in listed if is_same(change, other)), None)
            if tests is None and options.first:
                tests = table["first"].get(change.file, table["rooms"][room]["tests"])
            elif tests is None:
                if room not in reaches:
                    reaches[room] = Reach(folder, room, **table["rooms"][room])
                tests = reaches[room].tests_of(change, options.most_seconds)
            result = {"room": room, "first": options.first, **try_change(folder, change, tests)}
            results.append(result)
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(f"{result['outcome']:8} {result['seconds']:6.1f} s  {result['name']}", flush=True)
    print(summary(results, table.get("accepted", {})))


if __name__ == "__main__":
    main()
