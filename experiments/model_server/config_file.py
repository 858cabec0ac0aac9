"""A file of models, as TF Serving's --model_config_file: text of a ModelServerConfig.

Of its fields, name, base_path, model_version_policy and version_labels count.
"""

from __future__ import annotations

import os
import pathlib

from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig, ModelServerConfig

from experiments.model_server.options import VersionPolicy

_PLATFORM = "tensorflow"


def read_model_config(path: str | os.PathLike) -> list[tuple[str, str, VersionPolicy]]:
    """Read a file of models.

    Args:
        path: the file.

    Returns:
        Of each model its name, the folder of its versions, and which of them are loaded.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such configuration, or asks for what this server has not.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
        config = text_format.Parse(text, ModelServerConfig())
        models = list(config.model_config_list.config)
        if not models:
            raise ValueError("expected model_config_list { config { ... } }, got no model")
        return [(model.name, model.base_path, _policy(model)) for model in models]
    except (text_format.ParseError, ValueError) as error:
        raise ValueError(f"--model_config_file: {path}: {error}") from error


def _policy(model: ModelConfig) -> VersionPolicy:
    """Return which versions of a model are loaded, once its other fields are known to be good."""
    for field in ("name", "base_path"):
        if not getattr(model, field):
            raise ValueError(f"model {model.name!r}: expected a {field}, got none")
    if model.model_platform not in ("", _PLATFORM):
        raise ValueError(
            f'{model.name}: model_platform: expected "{_PLATFORM}", got "{model.model_platform}"'
        )
    policy, labels = model.model_version_policy, dict(model.version_labels)
    numbers = tuple(policy.specific.versions)
    kind = policy.WhichOneof("policy_choice")
    if kind == "specific" and not numbers:
        raise ValueError(f"{model.name}: specific: expected one version or more, got none")
    wrong = [number for number in (*numbers, *labels.values()) if number < 0]
    if wrong:
        raise ValueError(f"{model.name}: expected versions of at least 0, got {wrong[0]}")
    for label, number in labels.items():
        if numbers and number not in numbers:
            raise ValueError(
                f"{model.name}: version_labels: {label!r} is version {number}, and only "
                f"{', '.join(map(str, numbers))} are loaded"
            )
    newest = 0 if kind == "all" else policy.latest.num_versions or 1
    return VersionPolicy(newest, numbers, labels)
