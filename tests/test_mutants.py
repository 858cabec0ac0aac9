"""The list of changes that tests must notice."""

import tomllib

from tests.support import mutants


def test_listed_changes_are_of_text_that_is_there():
    table = tomllib.loads(mutants.TABLE.read_text(encoding="utf-8"))
    assert len(mutants.listed_changes(table)) == len(table["listed"])
