"""The command `bert-tf`: it lists the commands of this package, and runs one by its name."""

import ast
import difflib
import importlib.machinery
import importlib.util
import pathlib
import runpy
import sys

import bert_tf
from bert_tf.command_help import show

PACKAGES = ("data_prep", "experiments")
# Heading -> commands, in the order in which a user meets them.
COMMANDS = {
    "text and records": (
        *("extract_corpus", "python_docs", "learn_vocab", "extend_vocab"),
        *("create_pretraining_data", "create_finetuning_data"),
    ),
    "training": (
        *("quickstart", "run_pretraining", "run_classifier", "run_squad", "run_swag", "run_ner"),
        *("run_embeddings", "run_feature_based", "extract_features", "paper"),
    ),
    "pictures": ("plot_curves", "plot_attention"),
    "weights and serving": ("convert_checkpoint", "export_model", "serve", "fill_mask"),
}
NAMES = tuple(name for names in COMMANDS.values() for name in names)


def main() -> None:
    """Run the command that the first argument names, or list them all."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        show(listing())
    elif arguments[0] == "--version":
        print(bert_tf.__version__)
    elif arguments[0] in NAMES:
        sys.argv[:] = arguments
        runpy.run_module(module_of(arguments[0]).name, run_name="__main__", alter_sys=True)
    else:
        alike = difflib.get_close_matches(arguments[0], NAMES, 1)
        hint = f"did you mean {alike[0]}?" if alike else "bert-tf lists them"
        sys.exit(f"bert-tf: no command {arguments[0]}; {hint}")


def listing() -> str:
    """Return the commands by heading, each with the first line of its script."""
    lines = ["bert-tf COMMAND --flag=value ...    (bert-tf COMMAND --help tells its flags)"]
    for heading, names in COMMANDS.items():
        lines += ["", heading, *(f"  {name:<24}  {_summary(name)}" for name in names)]
    return "\n".join(lines)


def module_of(name: str) -> importlib.machinery.ModuleSpec:
    """Return the script of a command, which is not imported."""
    found = (importlib.util.find_spec(f"{package}.{name}") for package in PACKAGES)
    return next(spec for spec in found if spec is not None)


def _summary(name: str) -> str:
    source = pathlib.Path(str(module_of(name).origin)).read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


if __name__ == "__main__":
    main()
