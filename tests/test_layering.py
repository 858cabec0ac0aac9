"""Imports point downward, and the light modules stay light."""

import ast
import os
import pathlib
import re
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("bert_tf", "data_prep", "experiments")

# Folders and files of bert_tf from the ground up: one imports what is below it, and no sibling.
LEVELS = {
    "files": -1,
    "config": 0,
    "options": 0,
    "command_help": 1,
    "tokenization": 1,
    "records": 1,
    "models": 2,
    "tasks": 2,
    "weights": 3,
    "input_pipeline": 3,
    "training": 4,
    "serving": 4,
    "keras_registration": 5,
    "__init__": 6,
}
# What each folder may import besides itself, `files` and `options`.
ARROWS: dict[str, set[str]] = {
    "keras_registration": set(),
    "config": set(),
    "files": set(),
    "options": set(),
    "command_help": set(),
    "tokenization": set(),
    "records": set(),
    "models": {"config"},
    "tasks": {"tokenization", "records"},
    "weights": {"config", "models", "tokenization"},
    "input_pipeline": {"records", "tasks", "tokenization"},
    "training": {"config", "models", "tasks", "weights"},
    "serving": {"config", "models", "tasks", "tokenization", "weights"},
    "data_prep": {"command_help", "config", "tokenization", "records", "tasks"},
}
# The same for the other two packages, whose commands lie above their folders.
# Of data_prep this file alone opens models; a command imports it when it is given one.
OPENS_MODELS = "data_prep/corpus/extended_model.py"
COMMANDS = "commands"
DATA_PREP_LEVELS = {
    "processes": 0,
    "cluster": 1,
    "corpus": 2,
    "pretraining": 3,
    "finetuning": 3,
    COMMANDS: 4,
}
EXPERIMENTS_LEVELS = {
    "command_line": 0,
    "plots": 1,
    "pretraining": 2,
    "finetuning": 2,
    "feature_based": 2,
    "conversion": 2,
    "model_server": 2,
    "paper_tables": 2,
    "benchmarks": 3,
    COMMANDS: 4,
}
LIGHT = (
    "command_help",
    "config",
    "files",
    "options",
    "records",
    "tasks",
)  # load neither TensorFlow nor Keras
NEUTRAL = ("models", "weights")  # use keras.ops only, so that they run on JAX and torch too
ON_TENSORFLOW = {  # files of such folders that need TensorFlow, imported on that backend alone
    "models/fused_kernels.py",
    "weights/bundle_index.py",
    "weights/tensor_bundle.py",
    "weights/uninitialized.py",
}
NEUTRAL_FILES = (
    "training/losses.py",
    "training/optimizers.py",
    "training/objectives.py",
    "training/finetuning.py",
    "training/distillation.py",
    "training/masked_lm_distillation.py",
)


def imports_of(path: pathlib.Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def own_folders(path: pathlib.Path) -> set[str]:
    """Folders and files of bert_tf that a file imports."""
    folders = set()
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "bert_tf" and len(parts) > 1:
            folders.add(parts[1])
    return folders


def files_of(package: str) -> list[pathlib.Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def folder_of(path: pathlib.Path) -> str:
    """Return the folder directly under the package that a file lies in, or its own name there."""
    return path.relative_to(REPOSITORY).parts[1].removesuffix(".py")


def relative(path: pathlib.Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("path", files_of("bert_tf"), ids=relative)
def test_library_imports_point_downward(path):
    folder = folder_of(path)
    assert folder in LEVELS, f"give {folder} its level"
    for other in own_folders(path) - {folder}:
        if folder == "__init__":
            continue  # the front door shows every room
        assert LEVELS[other] < LEVELS[folder], f"{folder} imports {other}, which is not below"
        assert other in ARROWS[folder] | {"files", "options"}, f"{folder} does not know {other}"
    for name in imports_of(path):
        assert name.split(".")[0] not in ("data_prep", "experiments"), f"{folder} imports {name}"


@pytest.mark.parametrize("path", [*files_of("data_prep"), *files_of("experiments")], ids=relative)
def test_imports_of_commands_and_their_work_point_downward(path):
    package = path.relative_to(REPOSITORY).parts[0]
    levels = DATA_PREP_LEVELS if package == "data_prep" else EXPERIMENTS_LEVELS

    def room_of(name: str) -> str:
        return name if (REPOSITORY / package / name).is_dir() else COMMANDS

    room = room_of(folder_of(path))
    assert room in levels, f"give {room} its level"
    for name in imports_of(path) | works_of(path):
        parts = name.split(".")
        if parts[0] != package or len(parts) == 1 or room_of(parts[1]) == room != COMMANDS:
            continue
        other = room_of(parts[1])
        assert levels[other] < levels[room], f"{room} imports {other}, which is not below"


def works_of(path: pathlib.Path) -> set[str]:
    """Modules that a file names as strings for `run_command` to import."""
    texts = (
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    return {text for text in texts if re.fullmatch(r"(data_prep|experiments)(\.\w+)+", text)}


def test_every_arrow_is_in_use():
    drawn = {
        (folder_of(path), other)
        for path in files_of("bert_tf")
        for other in own_folders(path) - {folder_of(path)}
    }
    for folder in set(ARROWS) - {"data_prep"}:
        unused = {other for other in ARROWS[folder] if (folder, other) not in drawn}
        assert not unused, f"{folder} does not import {unused} any more"


def names_defined_in(path: pathlib.Path) -> set[str]:
    """Names that a file binds anywhere at its top level, within if and try too."""
    names = set()
    waiting: list[ast.AST] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        waiting += ast.iter_child_nodes(node)
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_imported_is_there(package):
    """Imports within functions too, which no test of another thing may ever reach."""
    known: dict[str, set[str]] = {}
    for path in files_of(package):
        for name in imports_of(path):
            if name.split(".")[0] not in PACKAGES:
                continue
            module, _, wanted = name.rpartition(".")
            file = REPOSITORY / (module.replace(".", "/") + ".py")
            folder = REPOSITORY / module.replace(".", "/")
            if not file.exists():
                if (folder / f"{wanted}.py").exists() or (folder / wanted).is_dir():
                    continue  # a module, or a package
                file = folder / "__init__.py"
            if module not in known:
                known[module] = names_defined_in(file)
            assert wanted in known[module], f"{path.name}: {module} has no {wanted}"


@pytest.mark.parametrize("path", files_of("data_prep"), ids=relative)
def test_data_prep_uses_the_light_folders_only(path):
    known = ARROWS["data_prep"] | ({"weights"} if relative(path) == OPENS_MODELS else set())
    assert own_folders(path) <= known | {"files", "options"}
    for name in imports_of(path):
        assert name.split(".")[0] not in ("experiments", "tensorflow", "keras")


def neutral_files() -> list[pathlib.Path]:
    library = REPOSITORY / "bert_tf"
    files = [path for folder in NEUTRAL for path in files_of(f"bert_tf/{folder}")]
    files = [path for path in files if path.relative_to(library).as_posix() not in ON_TENSORFLOW]
    return [*files, *(library / name for name in NEUTRAL_FILES)]


@pytest.mark.parametrize("path", neutral_files(), ids=relative)
def test_backend_neutral_files_do_not_name_tensorflow(path):
    names = imports_of(path)
    assert not [n for n in names if n.split(".")[0] in ("tensorflow", "tensorflow_text", "jax")]


def python(code: str, **environment: str) -> str:
    """Return what a fresh interpreter prints."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def light_modules() -> list[str]:
    names = ["bert_tf", "bert_tf.tokenization.wordpiece"]
    names += ["bert_tf.training.errors", "bert_tf.training.options"]
    for package in (*(f"bert_tf/{folder}" for folder in LIGHT), "data_prep"):
        files = files_of(package) or [REPOSITORY / f"{package}.py"]
        files = [path for path in files if relative(path) != OPENS_MODELS]
        modules = (path.relative_to(REPOSITORY).with_suffix("") for path in files)
        names += [".".join(module.parts).removesuffix(".__init__") for module in modules]
    engines = (".beam_", ".spark_")  # they need Apache Beam and Apache Spark
    return [name for name in names if not any(engine in name for engine in engines)]


HEAVY = {"tensorflow", "keras", "keras_hub", "torch", "huggingface_hub", "kagglehub", "requests"}


def test_light_imports_load_neither_tensorflow_nor_keras():
    code = (
        f"import sys, importlib\nfor name in {light_modules()!r}: importlib.import_module(name)\n"
        f"print(sorted({HEAVY} & set(sys.modules)))"
    )
    assert python(code).strip() == "[]"


def commands() -> list[str]:
    """Return the modules of the commands: files directly in data_prep/ and experiments/."""
    folders = ("data_prep", "experiments")
    files = [path for folder in folders for path in (REPOSITORY / folder).glob("*.py")]
    return sorted(f"{path.parent.name}.{path.stem}" for path in files if path.stem != "__init__")


def test_commands_load_tensorflow_only_once_their_flags_are_read():
    """So that --help and a mistyped flag answer at once: their work is run by `run_command`."""
    code = (
        "import sys, importlib\n"
        f"for name in {commands()!r}:\n"
        "    importlib.import_module(name)\n"
        "    if loaded := {'tensorflow', 'keras', 'torch'} & set(sys.modules):\n"
        "        sys.exit(f'{name} loads {sorted(loaded)}')\n"
    )
    python(code)


SCRIPTS = [path for package in ("data_prep", "experiments") for path in files_of(package)]


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_help_shows_the_lines_of_its_examples(path):
    """A backslash at a line's end joins it with the next where the docstring is not raw."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstring = tree.body[0]
    assert isinstance(docstring, ast.Expr) and docstring.end_lineno
    text = ast.get_docstring(tree, clean=False)
    assert text and text.count("\n") == docstring.end_lineno - docstring.lineno


BLOCK_TENSORFLOW = (
    "import sys\n"
    "class Block:\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name.split('.')[0] in ('tensorflow', 'tensorflow_text', 'tensorboard'):\n"
    "            raise ModuleNotFoundError(name)\n"
    "sys.meta_path.insert(0, Block())\n"
)


@pytest.mark.jax
def test_model_runs_where_tensorflow_is_not_installed():
    pytest.importorskip("jax")
    code = BLOCK_TENSORFLOW + (
        "import numpy as np, bert_tf\n"
        "config = bert_tf.BertConfig(vocab_size=31, hidden_size=14, num_hidden_layers=2,"
        " num_attention_heads=2, intermediate_size=17, max_position_embeddings=13)\n"
        "model = bert_tf.bert_pretrainer(config)\n"
        "x = {k: np.ones((3, 11), 'int32') for k in ('input_ids', 'input_mask', 'segment_ids')}\n"
        "x['masked_lm_positions'] = np.ones((3, 5), 'int32')\n"
        "print({k: v.shape for k, v in sorted(model(x).items())})\n"
    )
    out = python(code, KERAS_BACKEND="jax")
    assert "'masked_lm_logits': (3, 5, 31)" in out and "'next_sentence_logits': (3, 2)" in out


def test_the_front_door_holds_what_it_says():
    code = (
        "import bert_tf\n"
        "print(sorted(name for name in dir(bert_tf) if not name.startswith('_')))\n"
        "print(all(getattr(bert_tf, name) is not None for name in dir(bert_tf)))"
    )
    names, all_there = python(code).splitlines()
    assert {"BertConfig", "load_bert", "Trainer", "models"} <= set(ast.literal_eval(names))
    assert all_there == "True"


REGISTERED = (
    "registered = keras.saving.get_registered_object\n"
    "names = ['Bert', 'Encoder', 'ClassificationHead', 'MaskedLMLoss', 'AdamWeightDecay', 'Lamb',"
    " 'BertPreprocessor']\n"
    "print([name for name in names if registered(f'bert_tf>{name}') is None])\n"
)


@pytest.mark.parametrize(
    "imports",
    [
        "import keras, bert_tf",
        pytest.param("import bert_tf, keras", marks=pytest.mark.thorough),
        pytest.param("import keras, bert_tf.models.layers", marks=pytest.mark.thorough),
        pytest.param("import keras, bert_tf.training.losses", marks=pytest.mark.thorough),
        pytest.param("import bert_tf.training.optimizers, keras", marks=pytest.mark.thorough),
        pytest.param(
            "import bert_tf.tokenization.keras_preprocessor, keras", marks=pytest.mark.thorough
        ),
    ],
)
def test_keras_knows_the_classes_however_they_are_imported(imports):
    assert python(f"{imports}\n{REGISTERED}").strip() == "[]"
