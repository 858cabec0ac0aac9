"""Imports point downward, and the light modules stay light."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("bert_tf", "data_prep", "experiments")

LEVELS = {
    "config": 0,
    "distribution": 0,
    "tokenization": 0,
    "losses": 0,
    "metrics": 0,
    "squad_metrics": 0,
    "optimization": 1,
    "tensorflow_kernels": 0,
    "tensor_files": 0,
    "records": 1,
    "tensor_bundle": 1,
    "uninitialized": 0,
    "weight_names": 1,
    "layers": 2,
    "character_tables": 1,
    "text_words": 2,
    "preprocessing": 3,
    "dynamic_masking": 2,
    "span_decoding": 2,
    "tasks": 2,
    "modeling": 3,
    "training_state": 4,
    "input_pipeline": 4,
    "finetuning_pipeline": 4,
    "heads": 4,
    "bilstm": 4,
    "training_log": 0,
    "training_progress": 1,
    "training": 5,
    "finetuning": 5,
    "checkpoint_formats": 5,
    "features": 6,
    "checkpoints": 6,
    "checkpoint_writers": 6,
    "lora": 6,
    "serving": 7,
    "serving_windows": 1,
    "serving_spans": 8,
    "serving_entities": 8,
    "served_checkpoints": 9,
    "predictor": 10,
    "export": 8,
    "export_formats": 9,
    "lite_text": 4,
    "serving_weights": 0,
}
DATA_PREP_MAY_USE = {"config", "tokenization", "records", "tasks", "span_decoding"}
BACKEND_NEUTRAL = ("config", "losses", "optimization", "layers", "modeling", "heads") + (
    "bilstm",
    "features",
    "weight_names",
    "checkpoint_formats",
    "checkpoints",
    "checkpoint_writers",
    "lora",
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


def own_modules(path: pathlib.Path) -> set[str]:
    """Names of bert_tf modules that a file imports."""
    modules = set()
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "bert_tf" and len(parts) > 1:
            modules.add(parts[1])
    return modules


def library_files():
    return [p for p in sorted((REPOSITORY / "bert_tf").glob("*.py")) if p.stem != "__init__"]


@pytest.mark.parametrize("path", library_files(), ids=lambda p: p.stem)
def test_library_imports_point_downward(path):
    assert path.stem in LEVELS, f"give {path.stem} its level in DESIGN order"
    for module in own_modules(path):
        assert LEVELS[module] < LEVELS[path.stem], (
            f"{path.stem} imports {module}, which is not below"
        )
    for name in imports_of(path):
        assert name.split(".")[0] not in ("data_prep", "experiments"), f"{path.stem} imports {name}"


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
    for path in sorted((REPOSITORY / package).glob("*.py")):
        for name in imports_of(path):
            module, _, wanted = name.rpartition(".")
            file = REPOSITORY / (module.replace(".", "/") + ".py")
            if not file.exists():  # not ours, or a module of a package
                first = name.split(".")[0]
                if first in PACKAGES and module == first and first != "bert_tf":
                    assert (REPOSITORY / first / f"{wanted}.py").exists(), f"{path.name}: {name}"
                continue
            if module not in known:
                known[module] = names_defined_in(file)
            assert wanted in known[module], f"{path.name}: {module} has no {wanted}"


def test_data_prep_uses_the_light_modules_only():
    for path in sorted((REPOSITORY / "data_prep").glob("*.py")):
        assert own_modules(path) <= DATA_PREP_MAY_USE, path.name
        for name in imports_of(path):
            assert name.split(".")[0] not in ("experiments", "tensorflow", "keras"), path.name


@pytest.mark.parametrize("module", BACKEND_NEUTRAL)
def test_backend_neutral_modules_do_not_name_tensorflow(module):
    names = imports_of(REPOSITORY / "bert_tf" / f"{module}.py")
    assert not [n for n in names if n.split(".")[0] in ("tensorflow", "tensorflow_text", "jax")]


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_light_imports_load_neither_tensorflow_nor_keras():
    code = (
        "import sys, bert_tf, bert_tf.tokenization, bert_tf.records, bert_tf.metrics\n"
        "import data_prep.create_pretraining_data, data_prep.extract_corpus\n"
        "import data_prep.learn_vocab, data_prep.create_finetuning_data\n"
        "import bert_tf.squad_metrics, bert_tf.tasks, data_prep.ner, data_prep.squad\n"
        "print(sorted({'tensorflow', 'keras', 'keras_hub', 'torch'} & set(sys.modules)))"
    )
    assert python(code).strip() == "[]"


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


def test_type_checkers_see_the_same_names_as_a_program():
    import bert_tf

    tree = ast.parse((REPOSITORY / "bert_tf/__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    seen = {
        name.asname: (node.module, name.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert seen == {name: (f"bert_tf.{m}", name) for name, m in bert_tf._MODULE_OF.items()}
