"""The work of serve.py: what can be wrong is said before TensorFlow is loaded."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

from bert_tf.weights.locate import locate
from experiments.command_line import preemption
from experiments.model_server.options import ServeOptions, ServerOptions, VersionPolicy

_SAVED_MODEL = ("saved_model.pb", "saved_model.pbtxt")
NEEDED = (
    "starlette",
    "uvicorn",
    "prometheus_client",
    "tensorflow_serving",
    "grpc_health",
    "grpc_reflection",
)


def run(options: ServeOptions) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ImportError: the extra `serving` is not installed.
        ValueError: an option is wrong.
        OSError: a folder is not there, or a port cannot be had.
    """
    for module in NEEDED:
        if importlib.util.find_spec(module) is None:
            raise ImportError(f"{module} is missing: pip install -e '.[serving]'")
    models, model_dirs = _models(options), options.model_dir or ()
    server_options = dataclasses.replace(
        options.server,
        models=[(name, folder) for name, folder, _ in models],
        policies={name: policy for name, _, policy in models},
    )
    check_folders(server_options)
    names = [*(name for name, _, _ in models), *map(_name_of, model_dirs)]
    if len(set(names)) < len(names):
        raise ValueError(
            "model_dir: expected a name, the last part of a path, for each model alone, got "
            + ", ".join(names)
        )
    for path in model_dirs:
        locate(path)  # refuses what is none
    if options.tensorflow_text:
        # Its import registers the operations of the tokenizer.
        importlib.import_module("tensorflow_text")
    with tempfile.TemporaryDirectory(prefix="bert-tf-serve-") as folder, preemption.exiting():
        exported = export(model_dirs, folder, options.explain)
        server_options = dataclasses.replace(
            server_options,
            models=[*server_options.models, *((model.name, model.folder) for model in exported)],
            explained={model.name: model.explained for model in exported},
        )
        importlib.import_module("experiments.model_server.server").run(server_options)


def _name_of(path: str) -> str:
    return os.path.basename(os.path.abspath(path))


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """A model of --model_dir: its name, the folder of its versions, and see `explained`."""

    name: str
    folder: str
    explained: Any  # of ServerOptions


def export(model_dirs: Sequence[str], folder: str, explain: bool) -> list[ExportedModel]:
    """Export models as SavedModels, each for the task that it has a head for.

    Args:
        model_dirs: model directories, checkpoints or names.
        folder: where the folders of their versions go.
        explain: whether those that can be explained are kept for that.

    Raises:
        OSError, ValueError: a model cannot be read, or cannot be served.
    """
    serving = importlib.import_module("bert_tf.serving")
    why_not = importlib.import_module("bert_tf.serving.explanations").why_not
    models = []
    for path in model_dirs:
        name = _name_of(path)
        print(f"exporting {path}", flush=True)
        served = serving.load_served_model(path)
        target = os.path.join(folder, str(len(models)), name)
        serving.export_saved_model(served, target, description=f"read from {path}")
        refusal = why_not(served) if explain else "explain: turned off by --noexplain"
        models.append(ExportedModel(name, target, refusal or served))
    return models


def _models(options: ServeOptions) -> list[tuple[str, str, VersionPolicy]]:
    """Return name, folder and versions of each model that is a SavedModel already."""
    paths, names = options.model_base_path or (), options.model_name
    if bool(paths or options.model_dir) == bool(options.model_config_file):
        got = "both" if options.model_config_file else "none"
        raise ValueError(
            f"expected --model_base_path or --model_dir, or --model_config_file, got {got}"
        )
    if options.model_config_file:
        if names:
            raise ValueError("--model_name: the names are those of --model_config_file")
        if options.server.num_versions != 1:
            raise ValueError("--num_versions: --model_config_file says which versions are served")
        # Only where the extra is known to be there.
        config_file = importlib.import_module("experiments.model_server.config_file")
        return config_file.read_model_config(options.model_config_file)
    if not names:
        names = tuple(pathlib.Path(path).resolve().name for path in paths)
    if len(names) != len(paths):
        raise ValueError(
            f"--model_name: expected {len(paths)}, one for each path, got {len(names)}"
        )
    policy = VersionPolicy(options.server.num_versions)
    return [(name, path, policy) for name, path in zip(names, paths, strict=True)]


def check_folders(options: ServerOptions) -> None:
    """Refuse a folder of models that is not there, or that is a version itself."""
    for name, folder in options.models:
        path = pathlib.Path(folder)
        if not path.is_dir():
            raise NotADirectoryError(f"--model_base_path: {folder!r} of {name} is not a folder")
        if any((path / file).is_file() for file in _SAVED_MODEL):
            parent = path.resolve().parent
            remedy = (
                f"name {os.fspath(parent)!r}"
                if path.resolve().name.isdecimal()
                else f"move it to a subfolder, as {os.fspath(path / '1')!r}"
            )
            raise ValueError(
                f"--model_base_path: expected a folder of versions (1/saved_model.pb), got a "
                f"SavedModel itself, {folder!r} of {name}: {remedy}"
            )
