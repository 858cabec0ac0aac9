"""The help of commands, what is said of a flag that is wrong, and the one command `bert-tf`."""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags

from bert_tf.command_help import COLUMNS, CommandHelp
from bert_tf.options import flag_aliases, flag_groups
from experiments import __main__ as entry_point
from tests.support.code_blocks import REPOSITORY, flags_of

SCREEN = 50
MODULES = sorted(
    entry_point.module_of(name).name for name in set(entry_point.NAMES) - {"fill_mask"}
)


def help_of(module: str) -> tuple[CommandHelp, flags.FlagValues]:
    """Return the help of a command, and its flags."""
    values, options = flags_of(module.replace(".", "/") + ".py")
    if options is None:  # of a command that has two of them
        package = importlib.import_module("data_prep.pretraining.options")
        dataclasses = (package.CommandOptions, package.Options)
    else:
        dataclasses = (options,)
    text = importlib.import_module(module).__doc__ or ""
    return CommandHelp(module.partition(".")[2], text, dataclasses), values


def run(*arguments: str) -> subprocess.CompletedProcess:
    """Run `bert-tf` as the one that is installed does."""
    code = "import sys; sys.orig_argv[1:] = ['bert-tf']; import experiments.__main__ as x; x.main()"
    return subprocess.run(  # noqa: S603
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("module", MODULES)
def test_help_fits_a_screen_and_has_two_examples_and_all_flags(module):
    command_help, values = help_of(module)
    lines = command_help.screen(values).splitlines()
    assert len(lines) <= SCREEN and max(map(len, lines)) <= COLUMNS
    assert sum(line.startswith("  python ") for line in lines) == 2
    names = [name for one in command_help.options for x in flag_groups(one).values() for name in x]
    below = "\n".join(lines[lines.index("") + 1 :])
    assert {*re.findall(r"--(\w+)", below)} >= set(names)
    in_full = command_help.all_of_it(values)
    for name in names:
        assert re.search(rf"^  --{name}\b", in_full, re.MULTILINE), name


def test_examples_are_as_they_are_typed():
    command = [sys.executable, "-m", "experiments", "plot_curves", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)  # noqa: S603
    for text, typed in (
        (done.stdout, "python -m experiments plot_curves "),
        (run("plot_curves", "--help").stdout, "bert-tf plot_curves "),
    ):
        assert text.count(f"  {typed}") == 2 and "experiments/" not in text


@pytest.mark.parametrize("name", ["run_pretraining", "run_classifier", "run_squad", "run_ner"])
def test_flags_of_training_are_grouped(name):
    command_help, values = help_of(f"experiments.{name}")
    lines = command_help.screen(values).splitlines()
    headings = [line for line in lines if re.fullmatch(r"[a-z ]+", line)]
    assert headings[:4] == ["data", "model", "training", "output"]


@pytest.mark.parametrize("flag", ["--help", "--help=all"])
def test_fill_mask_which_stands_alone_fits_a_screen_too(flag):
    done = run("fill_mask", flag)
    lines = done.stdout.splitlines()
    assert len(lines) <= SCREEN and max(map(len, lines)) <= COLUMNS
    assert sum(line.startswith("    bert-tf fill_mask ") for line in lines) == 2
    assert [x for x in lines if re.fullmatch("[a-z]+", x)] == ["data", "model", "output"]
    assert all(f"  --{name} " in done.stdout for name in ("text", "saved_model", "model_dir"))
    assert done.returncode == 0 and not done.stderr


def test_fill_mask_says_in_one_line_which_flag_is_wrong():
    done = run("fill_mask", "--epochs=3")
    assert done.returncode == 1 and not done.stdout
    assert re.fullmatch("fill_mask: Unknown command line flag 'epochs'.*\n", done.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--trian_file=x"],
            "unknown flag --trian_file; did you mean --train_file?",
        ),
        (["--epochs=3"], "unknown flag --epochs; did you mean --num_train_epochs?"),
        (["--zzz"], "unknown flag --zzz; --help lists the flags"),
        (["--do_train"], "run_classifier: missing: --output_dir; --help has examples"),
        (["--output_dir=x", "--max_seq_length=a"], "flag --max_seq_length=a: invalid literal"),
    ],
)
def test_what_is_said_of_wrong_flags(arguments, message):
    command_help, values = help_of("experiments.run_classifier")
    with pytest.raises(SystemExit, match=f"^(run_classifier: )?{re.escape(message)}"):
        command_help.parse(["run_classifier", *arguments], values)


def test_what_parsing_leaves():
    command_help, values = help_of("data_prep.create_pretraining_data")
    given = "--input_file=a --output_file=b --vocab_file=c --seed=7".split()
    assert command_help.parse(["x", *given, "d"], values) == ["x", "d"]
    assert values.random_seed == 7
    beam = ["x", *given, "--flink_master=h"]
    assert command_help.parse(beam, values, known_only=True) == ["x", "--flink_master=h"]


@pytest.mark.parametrize(
    ("name", "flag", "value"),
    [
        ("run_classifier", "seeds", [3]),
        ("run_feature_based", "seeds", ["3"]),
        ("run_pretraining", "seed", 3),
    ],
)
def test_one_seed_has_one_name(name, flag, value):
    command_help, values = help_of(f"experiments.{name}")
    needed = [x for x in values if values[x].validators and values[x].value is None]
    command_help.parse([name, "--seed=3", *(f"--{x}=y" for x in needed)], values)
    assert list(map(str, _listed(values[flag].value))) == list(map(str, _listed(value)))


def test_a_second_name_is_the_first_of_no_other_command():
    """The same thing has one name in --help of every command; a run may have several seeds."""
    first, second = set(), {}
    for module in MODULES:
        command_help, _ = help_of(module)
        for options in command_help.options:
            first |= {name for names in flag_groups(options).values() for name in names}
            second |= {name: f"{module} --{of}" for name, of in flag_aliases(options).items()}
    assert {name: of for name, of in second.items() if name in first} == {"seed": second["seed"]}


def _listed(value):
    return value if isinstance(value, list) else [value]


def test_bert_tf_lists_every_command():
    done = run()
    scripts = {
        path.stem
        for folder in ("data_prep", "experiments")
        for path in (REPOSITORY / folder).glob("*.py")
        if not path.stem.startswith("__")
    }
    assert set(re.findall(r"^  (\w+)  ", done.stdout, re.MULTILINE)) == scripts
    assert scripts == set(entry_point.NAMES) and done.returncode == 0


def test_bert_tf_runs_a_command(tmp_path):
    text = tmp_path / "docs.txt"
    done = run("python_docs", f"--output_file={text}", "--heldout_fraction=0")
    assert done.returncode == 0, done.stderr
    assert len(text.read_text(encoding="utf-8").splitlines()) > 1000


def test_help_may_be_read_in_part():
    script = f"{sys.executable} experiments/run_classifier.py --help=all | head -1"
    done = subprocess.run(  # noqa: S602
        script,
        shell=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("run_classifier: ") and not done.stderr


def test_bert_tf_shows_examples_as_they_are_typed_with_it():
    done = run("export_model", "--help")
    assert "  bert-tf export_model --model_dir=runs/mrpc" in done.stdout and done.returncode == 0
    assert "python experiments" not in done.stdout
    assert re.search(r"--format=saved_model  +What to write\.\n", done.stdout)


def test_bert_tf_knows_what_was_meant():
    done = run("run_clasifier")
    assert done.returncode == 1
    assert done.stderr == "bert-tf: no command run_clasifier; did you mean run_classifier?\n"
    assert run("--version").stdout.strip() == importlib.import_module("bert_tf").__version__


def test_a_script_answers_help_without_tensorflow():
    script = pathlib.Path("experiments/run_squad.py")
    done = subprocess.run(  # noqa: S603
        [sys.executable, str(script), "--help"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.startswith("run_squad: Fine-tunes BERT on SQuAD")
    assert len(done.stdout.splitlines()) <= SCREEN
