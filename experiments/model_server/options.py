"""The options of serve.py."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bert_tf.options import option
from bert_tf.serving.like_lengths import MAX_ROW_PADDING

_ORIGIN = re.compile(r"https?://[^/\s?#]+")
_MAX_SECONDS = 10**6
_MAX_INT32 = 2**31 - 1  # gRPC's sizes are such


@dataclasses.dataclass(frozen=True)
class VersionPolicy:
    """Which versions of a model are loaded, and how requests may name them."""

    newest: int = 1  # How many of the newest; 0 for all.
    numbers: tuple[int, ...] = ()  # These alone, in place of the newest.
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """What is served, where and how.

    Attributes:
        models: name and folder of each model.
        policies: name of a model -> its versions, where num_versions does not say all.
        explained: name of a model of --model_dir -> the `ServedModel` that it was exported from, or
            in one line why its answers cannot be explained.

    Raises:
        ValueError: no port is open, or a cors_origin is no origin.
    """

    models: Sequence[tuple[str, str]] = ()
    policies: Mapping[str, VersionPolicy] = dataclasses.field(default_factory=dict)
    explained: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    host: str = option(
        "127.0.0.1", "Address to listen on; 0.0.0.0 lets other machines in.", group="addresses"
    )
    rest_api_port: int = option(
        8501, "Port of HTTP; 0 takes a free one, below 0 there is none.", maximum=65535
    )
    port: int = option(
        8500, "Port of gRPC; 0 takes a free one, below 0 there is none.", maximum=65535
    )
    num_versions: int = option(
        1, "How many of a model's newest versions are loaded; 0 for all.", minimum=0, group="models"
    )
    file_system_poll_wait_seconds: float = option(
        1.0, "Seconds between looks for new versions.", above=0, maximum=_MAX_SECONDS
    )
    max_batch_size: int = option(
        32, "Rows of a batch at most; a larger request runs alone.", minimum=1, group="batches"
    )
    max_row_padding: float = option(
        MAX_ROW_PADDING,
        "Part of a row that may be padding; texts of unlike lengths run apart. 1: no limit.",
        minimum=0,
        maximum=1,
    )
    batch_timeout_micros: int = option(
        1000,
        "How long a request waits for others to join it.",
        minimum=0,
        maximum=_MAX_SECONDS * 10**6,
    )
    num_batch_threads: int = option(2, "Batches that run at once.", minimum=1, maximum=1024)
    max_enqueued_requests: int = option(
        256, "Requests that wait; one more gets status 429.", minimum=1
    )
    max_request_bytes: int = option(
        1 << 24,
        "Size of a request, decompressed; a larger one gets status 413.",
        minimum=1,
        maximum=_MAX_INT32,
        group="limits",
    )
    max_request_rows: int = option(
        1024, "Rows of a request; one of more gets status 400.", minimum=1
    )
    max_text_bytes: int = option(
        1 << 17,
        "Size of one text, or other value of bytes, of a request; a longer one gets status 400.",
        minimum=1,
    )
    max_explain_steps: int = option(
        128,
        "Points of the integral of one explanation (:explain), each a run of the model forward and "
        "back; a request for more gets status 400.",
        minimum=1,
        maximum=_MAX_INT32,
    )
    request_timeout_seconds: float = option(
        120.0,
        "How long a request may wait and run; one that takes longer gets status 504.",
        above=0,
        maximum=_MAX_SECONDS,
    )
    max_header_bytes: int = option(
        1 << 16,
        "Size of a request's head, or of gRPC's metadata; a larger one is refused.",
        minimum=1024,
        maximum=_MAX_INT32,
    )
    max_connections: int = option(
        1000,
        "Connections of HTTP, and calls of gRPC, that are open at once; one more is refused.",
        minimum=1,
        maximum=_MAX_INT32,
    )
    read_timeout_seconds: float = option(
        60.0,
        "How long the head of a request may take to come, again its body, and each 64 KiB of an "
        "answer to be read.",
        above=0,
        maximum=_MAX_SECONDS,
    )
    shutdown_seconds: int = option(
        30, "How long requests under way may take at the end.", minimum=0, maximum=_MAX_SECONDS
    )
    cors_origin: tuple[str, ...] | None = option(
        None,
        "Origin whose pages may call the REST API from a browser, as https://app.example, or * for "
        "any; may be given several times.",
        repeated=True,
        group="addresses",
    )

    def __post_init__(self) -> None:
        if self.rest_api_port < 0 and self.port < 0:
            raise ValueError("port, rest_api_port: expected one of at least 0, got both below")
        for origin in self.cors_origin or ():
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"cors_origin: expected * or an origin as https://app.example, got {origin!r}"
                )


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """Options of the command."""

    model_base_path: tuple[str, ...] | None = option(
        None,
        "Folder of a model's versions; may be given several times.",
        repeated=True,
        path="local",
        group="models",
    )
    model_dir: tuple[str, ...] | None = option(
        None,
        "Model directory, checkpoint or name (tiny-wikipedia) to export and serve; may be given "
        "several times.",
        repeated=True,
        path="model",
    )
    explain: bool = option(
        True,
        "Keep each --model_dir in memory beside its SavedModel, so that its answers can be "
        "explained.",
    )
    model_config_file: str | None = option(
        None,
        "File of models in place of --model_base_path and --model_dir, as TF Serving's: text of a "
        "ModelServerConfig, with version_labels.",
        path="local",
    )
    model_name: tuple[str, ...] | None = option(
        None,
        "Name of the model of each --model_base_path; by default the last part of the path.",
        repeated=True,
    )
    tensorflow_text: bool = option(True, "Load the operations of tensorflow_text.")
    server: ServerOptions = ServerOptions()
