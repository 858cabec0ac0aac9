"""A development server with TF Serving's APIs, for SavedModels of this package or any other.

    python experiments/serve.py --model_base_path=exported/mini

answers TF Serving's REST API on port 8501 and its gRPC API on port 8500, and has a page to try the
models on at http://127.0.0.1:8501/. Each --model_base_path is a folder of versions
(exported/mini/1/saved_model.pb); its last part is the model's name, unless --model_name, given as
often, says another. A newer version that appears there takes over once it is loaded.

    curl -d '{"instances": ["Return the [MASK] of the list."]}' \
      http://127.0.0.1:8501/v1/models/mini:predict

It is for one's own machine: no encryption, no users. In production run TF Serving itself, which the
same clients can talk to. It needs the extra `serving`.
"""

import asyncio
import importlib.util
import logging
import pathlib
import signal
import sys

from absl import app, flags

from experiments.model_server.server import (
    NEEDED,
    SERVER_FIELDS,
    Ports,
    ServerOptions,
    address_of,
    check_folders,
    serve,
)


def main(argv: list[str]) -> None:
    """Run the script; bad input ends it with one line on standard error and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: use --model_base_path")
    values = flags.FLAGS
    for module in NEEDED:
        if importlib.util.find_spec(module) is None:
            sys.exit(f"serve: {module} is missing: pip install -e '.[serving]'")
    paths, names = values.model_base_path, values.model_name or []
    if names and len(names) != len(paths):
        sys.exit(f"serve: --model_name: expected {len(paths)}, one for each path, got {len(names)}")
    names = names or [pathlib.Path(path).resolve().name for path in paths]
    options = ServerOptions(
        models=tuple(zip(names, paths, strict=True)),
        **{field.name: getattr(values, field.name) for field in SERVER_FIELDS},
    )
    try:
        check_folders(options)  # Before TensorFlow, whose import takes seconds.
    except OSError as error:
        sys.exit(f"serve: --{error}")
    logging.basicConfig(format="serve: %(message)s", level=logging.WARNING, force=True)
    logging.getLogger("serving").setLevel(logging.INFO)
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")
    if values.tensorflow_text:
        import tensorflow_text  # noqa: F401  (registers the operations of the tokenizer)

    def listening(ports: Ports) -> None:
        if ports.rest is not None:
            print(f"REST API and page: http://{address_of(options.host, ports.rest)}/", flush=True)
        if ports.grpc is not None:
            print(f"gRPC API: {address_of(options.host, ports.grpc)}", flush=True)

    async def run() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def end(number: signal.Signals) -> None:
            loop.remove_signal_handler(number)  # The second one does not wait.
            logging.getLogger("serving").info("%s: finishing what was accepted", number.name)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end, number)
        await serve(options, stop, listening)

    try:
        asyncio.run(run())
    except (ValueError, OSError) as error:
        sys.exit(f"serve: {error}")


if __name__ == "__main__":
    flags.DEFINE_multi_string(
        "model_base_path",
        None,
        "Folder of a model's versions; may be given several times.",
        required=True,
    )
    flags.DEFINE_multi_string(
        "model_name", None, "Name of each model; by default the last part of its path."
    )
    flags.DEFINE_bool("tensorflow_text", True, "Load the operations of tensorflow_text.")
    for field in SERVER_FIELDS:
        define = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float}
        define[type(field.default)](field.name, field.default, field.metadata["help"])
    app.run(main)
