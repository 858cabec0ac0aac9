"""The command `bert-tf`: it lists the commands of this package, and runs one by its name."""

import ast
import difflib
import importlib.util
import pathlib
import runpy
import sys

import bert_tf
from bert_tf.command_help import show

# Heading -> commands, in the order in which a user meets them.
COMMANDS = {
    "text and records": (
        *("data_prep.extract_corpus", "data_prep.python_docs", "data_prep.learn_vocab"),
        *("data_prep.create_pretraining_data", "data_prep.create_finetuning_data"),
    ),
    "training": (
        *("experiments.quickstart", "experiments.run_pretraining", "experiments.run_classifier"),
        *("experiments.run_squad", "experiments.run_swag", "experiments.run_ner"),
        *("experiments.run_feature_based", "experiments.extract_features", "experiments.paper"),
    ),
    "pictures": ("experiments.plot_curves", "experiments.plot_attention"),
    "weights and serving": (
        *("experiments.convert_checkpoint", "experiments.export_model"),
        *("experiments.serve", "experiments.fill_mask"),
    ),
}
MODULES = {name.partition(".")[2]: name for names in COMMANDS.values() for name in names}


def main() -> None:
    """Run the command that the first argument names, or list them all."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        show(listing())
    elif arguments[0] == "--version":
        print(bert_tf.__version__)
    elif arguments[0] in MODULES:
        sys.argv[:] = [arguments[0], *arguments[1:]]
        runpy.run_module(MODULES[arguments[0]], run_name="__main__", alter_sys=True)
    else:
        alike = difflib.get_close_matches(arguments[0], MODULES, 1)
        hint = f"did you mean {alike[0]}?" if alike else "bert-tf lists them"
        sys.exit(f"bert-tf: no command {arguments[0]}; {hint}")


def listing() -> str:
    """Return the commands by heading, each with the first sentence of its script."""
    lines = ["bert-tf COMMAND --flag=value ...    (bert-tf COMMAND --help tells its flags)"]
    for heading, modules in COMMANDS.items():
        lines += ["", heading]
        lines += [f"  {name.partition('.')[2]:<24}  {_summary(name)}" for name in modules]
    return "\n".join(lines)


def _summary(module: str) -> str:
    """Return the first line of a module's docstring, without importing it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None  # noqa: S101
    source = pathlib.Path(spec.origin).read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


if __name__ == "__main__":
    main()
