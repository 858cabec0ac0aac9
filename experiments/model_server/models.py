"""SavedModels of the development server: loading, signatures, and the versions of each model.

A model is a folder with a subfolder for each version, named by its number, as TF Serving reads it.
The newest is served; one that appears while the server runs is loaded, and takes over once it is.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import logging
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef, TensorInfo
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus

from bert_tf.records.files import read_records
from bert_tf.serving.options import MODEL_CARD_NAME
from experiments.model_server.batching import Arrays
from experiments.model_server.options import VersionPolicy
from experiments.model_server.status import (
    ServingError,
    as_serving_error,
    invalid_argument,
    not_found,
)

DEFAULT_SIGNATURE = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
# Where TF Serving looks for requests to run before a version takes any, and how many it allows.
WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
MAX_WARMUP_RECORDS = 1000
_MAX_NAMES_SHOWN = 5
_MAX_CARD_BYTES = 1 << 20

_LOG = logging.getLogger("serving")


def _has_dense_tensors(definition: SignatureDef) -> bool:
    """Whether it can be run; sparse tensors cannot, and the initializer is no tensor at all."""
    tensors = [*definition.inputs.values(), *definition.outputs.values()]
    return bool(definition.outputs) and all(":" in tensor.name for tensor in tensors)


class Signature:
    """One signature of a loaded SavedModel: NumPy arrays in and out, in any thread.

    Args:
        model_name: the model's name, for metrics.
        definition: the signature as the SavedModel has it.
        session: what the SavedModel was loaded into.
        timeout_seconds: how long a run may take; 0 for any time.
    """

    def __init__(
        self,
        model_name: str,
        definition: SignatureDef,
        session: tf.compat.v1.Session,
        timeout_seconds: float = 0,
    ):
        self.model_name, self.batchable = model_name, True
        self.inputs: dict[str, TensorInfo] = dict(definition.inputs)
        self.outputs: dict[str, TensorInfo] = dict(definition.outputs)
        self._input_names, self._output_names = [*self.inputs], [*self.outputs]
        options = config_pb2.CallableOptions()
        options.feed.extend(info.name for info in self.inputs.values())
        options.fetch.extend(info.name for info in self.outputs.values())
        # Ends the computation itself, of which a client that is gone knows nothing.
        options.run_options.timeout_in_ms = math.ceil(timeout_seconds * 1000)
        # Session.run and make_callable would hold an input to its static shape, which TF Serving
        # does not: half_plus_two of its documentation has [-1, 1] and is sent [1.0, 2.0, 5.0].
        self._call = session._make_callable_from_options(options)

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run it.

        Args:
            inputs: an array for each input; strings are arrays of objects, of bytes.

        Returns:
            An array for each output.

        Raises:
            ServingError: with TensorFlow's code and reason.
        """
        try:
            values = self._call(*(inputs[name] for name in self._input_names))
        except tf.errors.OpError as error:
            raise as_serving_error(error) from error
        return dict(zip(self._output_names, map(np.asarray, values), strict=True))

    def checked(self, inputs: Arrays) -> Arrays:
        """Return the inputs, once names and types are known to be the signature's.

        Raises:
            ServingError: INVALID_ARGUMENT, naming what is missing, too much or of another type.
        """
        missing, extra = set(self.inputs) - set(inputs), set(inputs) - set(self.inputs)
        if missing or extra:
            raise invalid_argument(
                f"inputs: expected {sorted(self.inputs)}; "
                f"missing {sorted(missing)}, unknown {sorted(extra)}"
            )
        for name, array in inputs.items():
            expected = tf.as_dtype(self.inputs[name].dtype)
            if array.dtype != expected.as_numpy_dtype:
                kind = "string" if array.dtype == object else array.dtype.name
                raise invalid_argument(f"inputs: {name}: expected {expected.name}, got {kind}")
        return inputs


class Servable:
    """One loaded version of a model.

    Args:
        model_name: the model's name.
        version: number of the version.
        folder: the SavedModel.
        session: what it was loaded into.
        definitions: its signatures by name.
        timeout_seconds: see `Signature`.
    """

    def __init__(
        self,
        model_name: str,
        version: int,
        folder: pathlib.Path,
        session: tf.compat.v1.Session,
        definitions: dict[str, SignatureDef],
        timeout_seconds: float = 0,
    ):
        self.model_name, self.version, self._folder = model_name, version, folder
        self.definitions = definitions
        self._session, self._users = session, 0
        self._signatures = {
            name: Signature(model_name, definition, session, timeout_seconds)
            for name, definition in definitions.items()
            if _has_dense_tensors(definition)
        }

    def signature(self, name: str) -> Signature:
        """Return the signature of a name; "" stands for the default one.

        Raises:
            ServingError: INVALID_ARGUMENT, there is none of that name.
        """
        name = name or DEFAULT_SIGNATURE
        if name not in self._signatures:
            raise invalid_argument(
                f'Serving signature name: "{name}" not found in signature def; '
                f"there are {sorted(self._signatures)}"
            )
        return self._signatures[name]

    def card(self) -> bytes | None:
        """Return the beginning of the model card beside it; None where there is none."""
        try:
            with open(self._folder / MODEL_CARD_NAME, "rb") as file:
                return file.read(_MAX_CARD_BYTES)
        except OSError:
            return None

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep it loaded for the time of a request; for the event loop alone."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1

    async def unused(self) -> None:
        """Wait for the requests that are under way."""
        while self._users:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Give its memory back; no request may be under way."""
        self._signatures.clear()
        self._session.close()


def load_servable(
    model_name: str, version: int, folder: pathlib.Path, timeout_seconds: float = 0
) -> Servable:
    """Load a SavedModel as TF Serving does: its graph into a session, then the warm-up requests.

    Args:
        model_name: the model's name.
        version: number of the version.
        folder: the SavedModel.
        timeout_seconds: see `Signature`.

    Returns:
        The version, ready to answer.

    Raises:
        ServingError: a warm-up request fails.
        OSError, ValueError, RuntimeError, tf.errors.OpError: it is not a SavedModel that loads.
    """
    graph = tf.Graph()
    session = tf.compat.v1.Session(
        graph=graph, config=tf.compat.v1.ConfigProto(allow_soft_placement=True)
    )
    try:
        with graph.as_default():
            meta_graph = tf.compat.v1.saved_model.load(
                session, [tf.saved_model.SERVING], str(folder)
            )
        definitions = dict(meta_graph.signature_def)
        # Loading may take longer than a request.
        _warm_up(Servable(model_name, version, folder, session, definitions), folder / WARMUP_FILE)
        servable = Servable(model_name, version, folder, session, definitions, timeout_seconds)
    except BaseException:
        session.close()
        raise
    return servable


def _warm_up(servable: Servable, path: pathlib.Path) -> None:
    """Run the Predict requests of a file of warm-up requests, where there is one."""
    if not path.is_file():
        return
    for number, record in enumerate(read_records(path)):
        if number >= MAX_WARMUP_RECORDS:
            raise ValueError(f"{path}: more than {MAX_WARMUP_RECORDS} warm-up requests")
        log = prediction_log_pb2.PredictionLog.FromString(record)
        if log.WhichOneof("log_type") != "predict_log":
            continue
        request = log.predict_log.request
        inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        signature = servable.signature(request.model_spec.signature_name)
        signature(signature.checked(inputs))


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A model to serve: its name in requests, the folder of its versions, and which are loaded."""

    name: str
    base_path: pathlib.Path
    policy: VersionPolicy = VersionPolicy()

    def wanted(self, folders: Mapping[int, pathlib.Path]) -> list[int]:
        """Return which of the versions that lie there are to be loaded, newest first."""
        newest = sorted(folders, reverse=True)
        if self.policy.numbers:
            return [version for version in newest if version in self.policy.numbers]
        return newest[: self.policy.newest or None]

    def versions(self) -> dict[int, pathlib.Path]:
        """Return the folders of the versions that lie there, by number.

        A folder without saved_model.pb is left out: it may be one that is being written. So is a
        number beyond int64, which no request can name.
        """
        try:
            folders = [p for p in self.base_path.iterdir() if p.name.isascii()]
        except OSError:
            return {}
        return {
            int(p.name): p
            for p in folders
            if p.name.isdecimal() and int(p.name) < 2**63 and (p / "saved_model.pb").is_file()
        }

    def contents(self) -> str:
        """Return what lies in the folder, for messages."""
        try:
            names = sorted(path.name for path in self.base_path.iterdir())
        except OSError as error:
            return error.strerror or str(error)
        more = [] if len(names) <= _MAX_NAMES_SHOWN else [f"{len(names)} in all"]
        return ", ".join([*map(repr, names[:_MAX_NAMES_SHOWN]), *more]) or "an empty folder"


def _fingerprint(folder: pathlib.Path) -> tuple:
    """Return what changes when the files of a folder do."""
    try:
        files = [(p, p.stat()) for p in sorted(folder.rglob("*"))]
    except OSError:
        return ()
    return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in files)


class ModelManager:
    """The loaded versions of all models, kept as their folders say.

    Methods are for the event loop alone; loading runs in a thread of its own.

    Args:
        sources: the models.
        timeout_seconds: how long a run of a model may take; 0 for any time.

    Raises:
        ValueError: two models have one name.
    """

    def __init__(self, sources: Sequence[ModelSource], timeout_seconds: float = 0):
        names = [source.name for source in sources]
        if len(set(names)) != len(names):
            raise ValueError(f"model_name: expected a different name for each, got {names}")
        self._sources = {source.name: source for source in sources}
        self._timeout_seconds = timeout_seconds
        self._servables: dict[str, dict[int, Servable]] = {name: {} for name in names}
        self._statuses: dict[str, dict[int, ModelVersionStatus]] = {name: {} for name in names}
        # Contents of versions that did not load: they are tried again when they change.
        self._failed: dict[tuple[str, int], tuple] = {}
        # Models of which it was said that no version lies there.
        self._empty: set[str] = set()
        # Likewise, labels of versions that are not loaded.
        self._unmet: set[tuple[str, str]] = set()
        self._loader = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="load")

    @property
    def names(self) -> list[str]:
        """Names of the models, loaded or not."""
        return [*self._servables]

    @property
    def ready(self) -> bool:
        """Whether every model has a version that answers."""
        return all(self._servables.values())

    def get(self, name: str, version: int | None = None) -> Servable:
        """Return a loaded version of a model, by default the newest.

        Raises:
            ServingError: NOT_FOUND, it is not loaded.
        """
        if not name:
            raise invalid_argument("ModelSpec has no name specified.")
        loaded = self._servables.get(name, {})
        if version is None and loaded:
            return loaded[max(loaded)]
        if version not in loaded:
            servable = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise not_found(f"Servable not found for request: {servable}")
        return loaded[version]

    def labelled(self, name: str, label: str) -> int:
        """Return the version of a model that has a label.

        Raises:
            ServingError: INVALID_ARGUMENT, none has.
        """
        source = self._sources.get(name)
        if not source or label not in source.policy.labels:
            raise invalid_argument(f"Unrecognized servable version label: {label}")
        return source.policy.labels[label]

    def statuses(self, name: str, version: int | None = None) -> list[ModelVersionStatus]:
        """Return the state of one version of a model, or of all, newest first.

        Raises:
            ServingError: NOT_FOUND, there is no such version or model.
        """
        known = self._statuses.get(name, {})
        if version is not None:
            if version not in known:
                raise not_found(f"Could not find version {version} of model {name}")
            return [known[version]]
        if not known:
            raise not_found(f"Could not find any versions of model {name}")
        return [known[number] for number in sorted(known, reverse=True)]

    async def refresh(self) -> None:
        """Load and unload until the versions are those of the folders.

        A version that fails to load says so in its status and the log, and leaves the older one.
        """
        for source in self._sources.values():
            folders = source.versions()
            newest = source.wanted(folders)
            loaded = self._servables[source.name]
            self._tell_if_empty(source, bool(newest or loaded))
            for version in newest:
                if version not in loaded:
                    await self._load(source.name, version, folders[version])
            # Nothing better came, or the folder is gone: then the old one goes on.
            if any(version in loaded for version in newest):
                for version in sorted(set(loaded) - set(newest)):
                    await self._unload(source.name, version)
            self._tell_unmet_labels(source)

    def _tell_unmet_labels(self, source: ModelSource) -> None:
        """Warn, once each, of labels whose version is not loaded; requests by them get 404."""
        loaded = self._servables[source.name]
        for label, version in source.policy.labels.items():
            if version in loaded:
                self._unmet.discard((source.name, label))
            elif (source.name, label) not in self._unmet:
                self._unmet.add((source.name, label))
                _LOG.warning(
                    "%s: label %r is version %d, which is not loaded; add it to the model's "
                    "folder and model_version_policy, or change the label",
                    source.name,
                    label,
                    version,
                )

    def _tell_if_empty(self, source: ModelSource, has_versions: bool) -> None:
        """Warn, once, that a model's folder has no version; it may come later."""
        if has_versions:
            self._empty.discard(source.name)
        elif source.name not in self._empty:
            self._empty.add(source.name)
            _LOG.warning(
                "no versions of %s under %s: expected NUMBER/saved_model.pb there, got %s; "
                "waiting for one",
                source.name,
                source.base_path,
                source.contents(),
            )

    async def watch(self, poll_seconds: float) -> None:
        """Refresh again and again, after so many seconds each."""
        while True:
            await self.refresh()
            await asyncio.sleep(poll_seconds)

    async def close(self) -> None:
        """Unload everything."""
        for name, loaded in self._servables.items():
            for version in [*loaded]:
                await self._unload(name, version)
        self._loader.shutdown()

    async def _load(self, name: str, version: int, folder: pathlib.Path) -> None:
        key, contents = (name, version), _fingerprint(folder)
        if self._failed.get(key) == contents:
            return
        self._set_status(name, version, ModelVersionStatus.LOADING)
        loop = asyncio.get_running_loop()
        try:
            servable = await loop.run_in_executor(
                self._loader, load_servable, name, version, folder, self._timeout_seconds
            )
        except Exception as error:  # A file of any kind may lie there; the server goes on.
            reason = as_serving_error(error)
            self._failed[key] = contents
            self._set_status(name, version, ModelVersionStatus.END, reason)
            _LOG.error("%s version %d does not load: %s", name, version, reason.message)
            return
        self._failed.pop(key, None)
        self._servables[name][version] = servable
        self._set_status(name, version, ModelVersionStatus.AVAILABLE)
        _LOG.info("%s version %d is loaded", name, version)

    async def _unload(self, name: str, version: int) -> None:
        servable = self._servables[name].pop(version)
        self._set_status(name, version, ModelVersionStatus.UNLOADING)
        await servable.unused()
        servable.close()
        self._set_status(name, version, ModelVersionStatus.END)
        _LOG.info("%s version %d is unloaded", name, version)

    def _set_status(
        self, name: str, version: int, state: int, error: ServingError | None = None
    ) -> None:
        status = ModelVersionStatus(version=version, state=state)
        if error:
            status.status.error_code = error.code.value[0]
            status.status.error_message = error.message
        else:
            status.status.error_code = 0
        self._statuses[name][version] = status
