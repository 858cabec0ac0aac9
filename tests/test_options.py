"""Options made of a dataclass: their flags, what is read from them, and their bounds."""

import dataclasses

import pytest
from absl import flags

from bert_tf.options import check, define, error_message, option, read, same, to_dict


@dataclasses.dataclass(frozen=True)
class Group:
    rate: float = option(0.5, "A rate.", above=0, below=1)
    seeds: tuple[int, ...] = option((1, 2), "Some seeds.", minimum=0)


@dataclasses.dataclass(frozen=True)
class Options:
    kind: str = option("a", "Which.", choices=("a", "b"))
    count: int | None = option(None, "How many.", minimum=1, maximum=7)
    bold: bool = option(False, "Whether.")
    paths: tuple[str, ...] = option((), "Files.", repeated=True)
    group: Group = Group()
    steps: int = 3  # no flag


def parsed(*arguments, **defaults):
    values = flags.FlagValues()
    define(Options, values, **defaults)
    values(["program", *arguments])
    return read(Options, values, steps=5)


def test_defaults():
    assert parsed() == Options(steps=5)
    assert parsed(rate=0.25, bold=True) == Options(steps=5, bold=True, group=Group(rate=0.25))
    with pytest.raises(ValueError, match="defaults: Options has no option ratio"):
        parsed(ratio=1)


def test_what_is_given():
    found = parsed("--kind=b", "--count=7", "--bold", "--paths=x", "--paths=y,z", "--seeds=5,0")
    assert found == Options("b", 7, True, ("x", "y,z"), Group(seeds=(5, 0)), 5)


def test_others_take_the_place_of_flags():
    values = flags.FlagValues()
    define(Options, values, count=None)
    values(["program", "--count=0", "--rate=1"])
    assert read(Options, values, count=2, group=Group()) == Options(count=2)
    with pytest.raises(ValueError, match="count: expected at least 1 and at most 7, got 8"):
        read(Options, values, count=8, group=Group())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--rate=1", "rate: expected above 0 and below 1, got 1.0"),
        ("--rate=nan", "rate: expected above 0 and below 1, got nan"),
        ("--count=0", "count: expected at least 1 and at most 7, got 0"),
        ("--seeds=1,-1", "seeds: expected at least 0, got -1"),
        ("--seeds=1,x", "seeds: expected int values, got 1,x"),
    ],
)
def test_bad_values_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        parsed(given)


def test_choices():
    with pytest.raises(flags.IllegalFlagValueError, match="kind"):
        parsed("--kind=c")
    with pytest.raises(ValueError, match="kind: expected one of a, b, got 'c'"):
        check(Options("c"))


def test_an_option_of_another_dataclass():
    @dataclasses.dataclass(frozen=True)
    class Other:
        count: int | None = same(Options, "count")

    values = flags.FlagValues()
    define(Other, values)
    values(["program", "--count=5"])
    assert read(Other, values) == Other(5) and Other() == Other(None)
    assert values["count"].help == "How many."
    with pytest.raises(ValueError, match="count: expected at least 1 and at most 7, got 8"):
        check(Other(8))


def test_required():
    @dataclasses.dataclass(frozen=True)
    class Needs:
        path: str = option(None, "A path.", required=True)

    values = flags.FlagValues()
    define(Needs, values)
    with pytest.raises(flags.IllegalFlagValueError, match="path"):
        values(["program"])


def test_flags_are_those_of_the_module_that_defines_them():
    """Not of bert_tf.options: --help shows the flags of a command's own module."""
    values = flags.FlagValues()
    define(Options, values)
    assert "kind" in {flag.name for flag in values.get_key_flags_for_module(__name__)}


def test_other_names_of_a_flag():
    @dataclasses.dataclass(frozen=True)
    class Conversion:
        source: str = option(None, "What is read.", flag="from", alias="source_dir")
        steps: tuple[int, ...] = option((1,), "Steps.", minimum=0, flag="in")

    for name in ("from", "source_dir"):
        values = flags.FlagValues()
        define(Conversion, values)
        values(["program", f"--{name}=here", "--in=3,5"])
        assert read(Conversion, values) == Conversion("here", (3, 5))
    assert to_dict(Conversion("here")) == {"from": "here", "in": [1]}
    with pytest.raises(ValueError, match="^in: expected at least 0"):
        check(Conversion("here", (-1,)))


def test_values_by_name():
    assert to_dict(Options(group=Group(seeds=(5,)))) == {
        **{"kind": "a", "count": None, "bold": False, "paths": []},
        **{"rate": 0.5, "seeds": [5]},
    }


def test_a_file_that_cannot_be_opened_is_told_with_its_flag(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Files:
        bert_config_file: str | None = option(None, "One.", path="local", alias="config")
        files: tuple[str, ...] = option((), "Several.", repeated=True)

    values = flags.FlagValues()
    define(Files, values)
    missing, folder = str(tmp_path / "none.json"), str(tmp_path)
    values(["x", f"--bert_config_file={missing}", f"--files={folder}"])

    def message(path):
        with pytest.raises(OSError) as caught:
            open(path)
        return error_message(caught.value, values)

    assert message(missing) == f"bert_config_file: no such file or directory: {missing}"
    assert message(folder) == f"files: is a directory: {folder}"
    assert message(f"{folder}/x") == f"no such file or directory: {folder}/x"
    assert error_message(OSError("disk full"), values) == "disk full"
    both = OSError(2, "No such file or directory", "a", None, "b")
    assert error_message(both, values) == str(both)
    assert error_message(ValueError("x"), values) == "x"
    values(["x", f"--bert_config_file={folder}"])
    assert message(folder) == f"bert_config_file, files: is a directory: {folder}"
