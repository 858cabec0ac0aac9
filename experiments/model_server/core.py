"""The methods of TF Serving's PredictionService and ModelService, whatever the protocol.

REST and gRPC both come here, so that they answer alike.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest, ClassificationResponse
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataResponse, SignatureDefMap
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusResponse
from tensorflow_serving.apis.input_pb2 import Input
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.regression_pb2 import RegressionRequest, RegressionResponse

from experiments.model_server.batching import Arrays, Batcher
from experiments.model_server.models import DEFAULT_SIGNATURE, ModelManager, Servable, Signature
from experiments.model_server.options import ServerOptions
from experiments.model_server.status import ServingError, invalid_argument

# Names that the Classify and Regress APIs fix (tf.saved_model.CLASSIFY_INPUTS and so on).
EXAMPLES = tf.saved_model.CLASSIFY_INPUTS
CLASSES, SCORES = tf.saved_model.CLASSIFY_OUTPUT_CLASSES, tf.saved_model.CLASSIFY_OUTPUT_SCORES
VALUES = tf.saved_model.REGRESS_OUTPUTS
SIGNATURE_DEF = "signature_def"

_FIELDS = {
    tf.float32: "float_val",
    tf.float64: "double_val",
    tf.int32: "int_val",
    tf.int16: "int_val",
    tf.int8: "int_val",
    tf.uint8: "int_val",
    tf.uint16: "int_val",
    tf.int64: "int64_val",
    tf.uint32: "uint32_val",
    tf.uint64: "uint64_val",
    tf.bool: "bool_val",
    tf.string: "string_val",
}


def tensor_proto(array: np.ndarray) -> TensorProto:
    """Return an array as TF Serving answers with it: values in the field of their type.

    `tf.make_tensor_proto` packs numbers into tensor_content, where a client that reads float_val
    finds nothing.
    """
    dtype = tf.string if array.dtype == object else tf.as_dtype(array.dtype)
    if dtype not in _FIELDS:
        return tf.make_tensor_proto(array)
    proto = TensorProto(dtype=dtype.as_datatype_enum)
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    getattr(proto, _FIELDS[dtype]).extend(array.ravel().tolist())
    return proto


def tensor_array(name: str, proto: TensorProto, max_bytes: int) -> np.ndarray:
    """Return the array of a tensor that a client sent.

    Args:
        name: the input's name.
        proto: the tensor.
        max_bytes: memory that it may take: a few bytes can ask for any shape.

    Raises:
        ServingError: INVALID_ARGUMENT, shape, type and values do not fit together.
    """
    try:
        dtype = tf.as_dtype(proto.dtype)
        size = math.prod(dim.size for dim in proto.tensor_shape.dim)
        if proto.tensor_shape.unknown_rank or any(d.size < 0 for d in proto.tensor_shape.dim):
            raise ValueError("its shape is not known")
        if size * max(dtype.size or 8, 1) > max_bytes:
            raise ValueError(f"{size} values need more than {max_bytes} bytes")
        return tf.make_ndarray(proto)
    except (ValueError, TypeError, KeyError) as error:
        raise invalid_argument(f"inputs: {name}: not a tensor: {error}") from error


def serialized_examples(examples: Input) -> np.ndarray:
    """Return serialized tf.train.Examples of a Classify or Regress request: objects of bytes [N].

    Raises:
        ServingError: INVALID_ARGUMENT, there are none.
    """
    # A message after another of its kind, serialized, is the two merged.
    context = examples.example_list_with_context.context.SerializeToString()
    listed = (
        examples.example_list_with_context.examples
        if examples.WhichOneof("kind") == "example_list_with_context"
        else examples.example_list.examples
    )
    if not listed:
        raise invalid_argument("Input is empty.")
    array = np.empty(len(listed), object)
    array[:] = [context + example.SerializeToString() for example in listed]
    return array


def _check_examples_signature(signature: Signature, outputs: Sequence[str], method: str) -> None:
    names = sorted(signature.outputs)
    if [*signature.inputs] != [EXAMPLES]:
        raise invalid_argument(
            f'{method}: expected a signature with one input, "{EXAMPLES}", '
            f"got {sorted(signature.inputs)}"
        )
    if not names or not set(names) <= set(outputs):
        raise invalid_argument(
            f"{method}: expected a signature with outputs {list(outputs)}, got {names}"
        )


def _check_output(name: str, array: np.ndarray, kind: type, shapes: Sequence[tuple]) -> None:
    if array.shape not in shapes or array.dtype != kind:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise invalid_argument(
            f"{name}: expected {np.dtype(kind).name} {expected} from the signature, "
            f"got {array.dtype.name} {list(array.shape)}"
        )


class ServingCore:
    """Answers requests; for one event loop.

    Args:
        models: the loaded models.
        batcher: what runs their signatures.
        options: the bounds on a request.
    """

    def __init__(self, models: ModelManager, batcher: Batcher, options: ServerOptions):
        self.models, self.batcher, self._options = models, batcher, options
        self.max_tensor_bytes = options.max_request_bytes  # memory of one input at most

    @property
    def ready(self) -> bool:
        """Whether every model has a version that answers, and the server does not end."""
        return self.models.ready and not self.batcher.draining

    def servable(self, spec: ModelSpec) -> Servable:
        """Return the loaded version that a request names.

        Raises:
            ServingError: NOT_FOUND, it is not loaded; INVALID_ARGUMENT, it names no model, or a
                label that none has.
        """
        return self.models.get(spec.name, self._version(spec))

    def _version(self, spec: ModelSpec) -> int | None:
        """Return the version that a request names, by number or label; None where it does not."""
        if spec.WhichOneof("version_choice") == "version_label":
            return self.models.labelled(spec.name, spec.version_label)
        return spec.version.value if spec.HasField("version") else None

    async def predict(
        self, servable: Servable, signature_name: str, inputs: Arrays, output_filter: Sequence = ()
    ) -> Arrays:
        """Return the outputs of a signature, all or those of the filter.

        Raises:
            ServingError: INVALID_ARGUMENT, names or types do not fit; what the model raises.
        """
        signature = servable.signature(signature_name)
        names = [*output_filter] or [*signature.outputs]
        for name in names:
            if name not in signature.outputs:
                raise invalid_argument(
                    f"output tensor alias not found in signature: {name} "
                    f"Outputs expected to be in the set {sorted(signature.outputs)}."
                )
        if len(set(names)) != len(names):
            raise invalid_argument(f"output_filter: expected each name once, got {names}")
        outputs = await self._run(servable, signature, signature.checked(inputs))
        return {name: outputs[name] for name in names}

    async def _run(self, servable: Servable, signature: Signature, inputs: Arrays) -> Arrays:
        for name, array in inputs.items():
            self.check_work(name, array)
        seconds = self._options.request_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                with servable.in_use():
                    return await self.batcher.run(signature, inputs)
        except TimeoutError:
            raise ServingError(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"the request took longer than --request_timeout_seconds={seconds:g}",
            ) from None

    def check_work(self, name: str, array: np.ndarray) -> None:
        """Refuse what would take too long: many rows, or a long text.

        Raises:
            ServingError: INVALID_ARGUMENT, naming the input and the flag.
        """
        rows, most = array.shape[0] if array.ndim else 1, self._options.max_request_rows
        if rows > most:
            raise invalid_argument(
                f"{name}: expected at most {most} rows (--max_request_rows), got {rows}; "
                "send several requests"
            )
        if array.dtype != object:
            return
        sizes, most = [len(value) for value in array.flat], self._options.max_text_bytes
        if sizes and max(sizes) > most:
            raise invalid_argument(
                f"{name}: expected at most {most} bytes a text (--max_text_bytes), "
                f"got {max(sizes)} at item {sizes.index(max(sizes))}"
            )
        # Of a tensor with one value for many rows, memory is needed for each of them.
        if sum(sizes) > self.max_tensor_bytes:
            raise invalid_argument(
                f"{name}: expected at most {self.max_tensor_bytes} bytes in all "
                f"(--max_request_bytes), got {sum(sizes)}"
            )

    async def classify(self, request: ClassificationRequest) -> ClassificationResponse:
        """Return labels with scores for each example; see TF Serving's classification.proto.

        Raises:
            ServingError: the signature is none of this API; see `servable` and `predict`.
        """
        servable = self.servable(request.model_spec)
        name = request.model_spec.signature_name
        signature = servable.signature(name)
        _check_examples_signature(signature, (CLASSES, SCORES), "Classify")
        examples = serialized_examples(request.input)
        # Not checked: half_plus_three of TF Serving's documentation calls this input a float.
        outputs = await self._run(servable, signature, {EXAMPLES: examples})
        size = (len(examples), *next(iter(outputs.values())).shape[1:2])
        if CLASSES in outputs:
            _check_output(CLASSES, outputs[CLASSES], object, [size] if len(size) == 2 else [])
        if SCORES in outputs:
            _check_output(SCORES, outputs[SCORES], np.float32, [size] if len(size) == 2 else [])
        response = ClassificationResponse(model_spec=answered_by(servable, name))
        for row in range(len(examples)):
            classes = response.result.classifications.add().classes
            for column in range(size[1]):
                label = classes.add()
                if CLASSES in outputs:
                    # The field is a string: bytes that are no UTF-8 cannot go out in it.
                    label.label = outputs[CLASSES][row, column].decode("utf-8", "replace")
                if SCORES in outputs:
                    label.score = outputs[SCORES][row, column]
        return response

    async def regress(self, request: RegressionRequest) -> RegressionResponse:
        """Return a value for each example; see TF Serving's regression.proto.

        Raises:
            ServingError: the signature is none of this API; see `servable` and `predict`.
        """
        servable = self.servable(request.model_spec)
        name = request.model_spec.signature_name
        signature = servable.signature(name)
        _check_examples_signature(signature, (VALUES,), "Regress")
        examples = serialized_examples(request.input)
        rows = len(examples)
        values = (await self._run(servable, signature, {EXAMPLES: examples}))[VALUES]
        _check_output(VALUES, values, np.float32, [(rows,), (rows, 1)])
        response = RegressionResponse(model_spec=answered_by(servable, name))
        for value in values.ravel():
            response.result.regressions.add().value = value
        return response

    def status(self, spec: ModelSpec) -> GetModelStatusResponse:
        """Return the state of a version, or of all versions, of a model.

        Raises:
            ServingError: NOT_FOUND; INVALID_ARGUMENT, it names a label that none has.
        """
        statuses = self.models.statuses(spec.name, self._version(spec))
        return GetModelStatusResponse(model_version_status=statuses)

    def metadata(self, spec: ModelSpec, fields: Sequence[str]) -> GetModelMetadataResponse:
        """Return the signatures of a version of a model.

        Raises:
            ServingError: NOT_FOUND; INVALID_ARGUMENT, other fields are asked for than
                "signature_def", the one there is.
        """
        if not fields:
            raise invalid_argument(
                "GetModelMetadataRequest must specify at least one metadata_field"
            )
        for field in fields:
            if field != SIGNATURE_DEF:
                raise invalid_argument(f"Metadata field {field} is not supported")
        servable = self.servable(spec)
        response = GetModelMetadataResponse()
        response.model_spec.name = servable.model_name
        response.model_spec.version.value = servable.version
        signatures = SignatureDefMap(signature_def=servable.definitions)
        response.metadata[SIGNATURE_DEF].Pack(signatures)
        return response


def answered_by(servable: Servable, signature_name: str) -> ModelSpec:
    """Return what a response says of the version and signature that it comes from."""
    spec = ModelSpec(name=servable.model_name, signature_name=signature_name or DEFAULT_SIGNATURE)
    spec.version.value = servable.version
    return spec
