"""The work of serve.py: what can be wrong is said before TensorFlow is loaded."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import pathlib

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
    models = _models(options)
    server_options = dataclasses.replace(
        options.server,
        models=[(name, folder) for name, folder, _ in models],
        policies={name: policy for name, _, policy in models},
    )
    check_folders(server_options)
    if options.tensorflow_text:
        # Its import registers the operations of the tokenizer.
        importlib.import_module("tensorflow_text")
    importlib.import_module("experiments.model_server.server").run(server_options)


def _models(options: ServeOptions) -> list[tuple[str, str, VersionPolicy]]:
    """Return name, folder and versions of each model."""
    paths, names = options.model_base_path or (), options.model_name
    if bool(paths) == bool(options.model_config_file):
        got = "both" if paths else "neither"
        raise ValueError(f"expected --model_base_path or --model_config_file, got {got}")
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
