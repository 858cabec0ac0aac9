"""The list of changes that tests must notice."""

import tomllib

from tests.support import mutants


def test_listed_changes_are_of_text_that_is_there():
    table = tomllib.loads(mutants.TABLE.read_text(encoding="utf-8"))
    assert len(mutants.listed_changes(table)) == len(table["listed"])


def test_files_and_tests_of_the_table_are_there():
    table = tomllib.loads(mutants.TABLE.read_text(encoding="utf-8"))
    patterns = [pattern for room in table["rooms"].values() for pattern in room["files"]]
    patterns += [test for room in table["rooms"].values() for test in room["tests"]]
    patterns += [*table["first"], *(test for tests in table["first"].values() for test in tests)]
    patterns += [test for entry in table["listed"] for test in entry["tests"]]
    for pattern in patterns:
        file, _, name = pattern.partition("::")
        paths = list(mutants.REPOSITORY.glob(file))
        assert paths, pattern
        assert not name or f"def {name.partition('[')[0]}(" in paths[0].read_text(), pattern


def test_changes_that_change_nothing_are_not_drawn():
    text = "x = 1 << 0\ny = rows.reshape(5, -1)\nz = zip(a, b, strict=True)\n"
    changes = mutants.changes_of("x.py", text)
    assert {change.new for change in changes if change.line == 1} == {"0", "2", "1"}
    assert [change.old for change in changes if change.line > 1] == ["5", "5"]
    texts = [change.applied(text) for change in changes]
    assert "x = 2 << 0" in texts[1] and len(set(texts)) == len(texts)
