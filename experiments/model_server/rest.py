"""Shapes of TF Serving's REST API: paths, requests and responses, as pure functions.

Reference: TF Serving's api_rest.md; where it is silent, json_tensor.cc and http_rest_api_util.cc.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from google.protobuf.message import Message
from tensorflow.core.protobuf.meta_graph_pb2 import TensorInfo
from tensorflow_serving.apis.classification_pb2 import ClassificationResult
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataResponse, SignatureDefMap
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusResponse
from tensorflow_serving.apis.input_pb2 import Input
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.regression_pb2 import RegressionResult

from experiments.model_server.batching import Arrays
from experiments.model_server.status import ServingError, invalid_argument

BASE64_KEY, BYTES_SUFFIX = "b64", "_bytes"

_VERSION = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_POST = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){_VERSION}:(?P<method>classify|explain|predict|regress)",
    re.IGNORECASE | re.ASCII,
)
_GET = re.compile(
    rf"/v1/models(?:/(?P<name>[^/:]+))?{_VERSION}(?P<metadata>/metadata)?", re.IGNORECASE | re.ASCII
)
_JSON = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")
_BRACKET_OR_STRING = re.compile(r'[][{}]|"(?:[^"\\]|\\.)*"', re.DOTALL)
_READ_KEYS = ("signature_name", "instances", "inputs", "examples", "context")
_MAX_DIMENSIONS = 32
_MAX_SHOWN = 80
_INT64_DIGITS = 19
# Types that have a form in JSON; the others are refused both ways.
_INTEGERS = {tf.int8, tf.uint8, tf.int16, tf.int32, tf.uint32, tf.int64, tf.uint64}
_FLOATS = {tf.float32, tf.float64}


@dataclasses.dataclass(frozen=True)
class Call:
    """What method and path of a request ask for."""

    method: str  # "predict", "classify", "regress", "explain", "status" or "metadata".
    spec: ModelSpec


def parse_path(http_method: str, path: str) -> Call:
    """Return what a request asks for.

    Args:
        http_method: "GET" and so on.
        path: as it came, percent-encoded, without the query.

    Raises:
        ServingError: INVALID_ARGUMENT, the API has no such request.
    """
    pattern = {"POST": _POST, "GET": _GET}.get(http_method)
    match = pattern.fullmatch(path) if pattern else None
    if not match:
        raise invalid_argument(f"Malformed request: {http_method} {path}")
    if not match["name"]:
        raise invalid_argument("Missing model name in request.")
    spec = ModelSpec(name=urllib.parse.unquote(match["name"]))
    if match["version"]:
        version = match["version"].lstrip("0") or "0"
        # By length first: int() refuses thousands of digits.
        if len(version) > _INT64_DIGITS or int(version) >= 2**63:
            shown = version if len(version) <= _MAX_SHOWN else version[:_MAX_SHOWN] + "..."
            raise invalid_argument(f"Failed to convert version: {shown} to numeric.")
        spec.version.value = int(version)
    if match["label"]:
        spec.version_label = urllib.parse.unquote(match["label"])
    if http_method == "POST":
        return Call(match["method"].lower(), spec)
    return Call("metadata" if match["metadata"] else "status", spec)


def shown_kind(value: Any) -> str:
    """Return what a JSON value is, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    if value is None:
        return "null"
    shown = json.dumps(value, ensure_ascii=False)
    shown = shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + "..."
    return f"{names.get(type(value), 'a number')}: {shown}"


def parse_body(body: bytes) -> dict[str, Any]:
    """Return a request's JSON object; NaN and Infinity are numbers, what follows it is not read.

    Raises:
        ServingError: INVALID_ARGUMENT, it is not one.
    """
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    try:
        text = body.decode("utf-8-sig")
        start = _SPACE.match(text)
        try:
            value, _ = _JSON.raw_decode(text, start.end() if start else 0)
        except RecursionError:
            value, _ = _JSON.raw_decode(_without_unread_values(text))
    except UnicodeDecodeError as error:
        raise invalid_argument(
            f"JSON Parse error: not UTF-8 at offset: {error.start}; "
            'send other bytes in base64, as {"b64": "..."}'
        ) from error
    except json.JSONDecodeError as error:
        raise invalid_argument(
            f"JSON Parse error: Invalid value. {error.msg} at offset: {error.pos}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise invalid_argument(f"JSON Parse error: {error}") from error
    if not isinstance(value, dict):
        raise invalid_argument(f"JSON Value: expected an object, got {shown_kind(value)}")
    return value


def _without_unread_values(text: str) -> str:
    """Return an object's text with null for lists and objects of keys that no request has.

    They may be nested deeper than Python's parser can follow.
    """
    parts, copied, depth, key, begin = [], 0, 0, "", -1
    for match in _BRACKET_OR_STRING.finditer(text):
        token = match[0]
        if token in "[{":
            depth += 1
            if depth == 2 and key not in _READ_KEYS:
                begin = match.start()
        elif token in "]}":
            depth -= 1
            if depth == 1 and begin >= 0:
                parts += [text[copied:begin], "null"]
                copied, begin = match.end(), -1
            if depth == 0:
                break
        elif depth == 1:
            key = json.loads(token, strict=False)
    return "".join([*parts, text[copied:]]).lstrip(" \t\n\r")


def signature_name(request: Mapping[str, Any]) -> str:
    """Return the signature that a request names, or "".

    Raises:
        ServingError: INVALID_ARGUMENT, it is not a string.
    """
    name = request.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid_argument(
            f"'signature_name' key must be a string value. Got {shown_kind(name)}"
        )
    return name


class _Misfit(Exception):
    """A value that does not fit, and the indices that lead to it."""

    def __init__(self, message: str):
        super().__init__(message)
        self.message, self.path = message, ""


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and [*value] == [BASE64_KEY] and isinstance(value["b64"], str)


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise _Misfit(f"half of a surrogate pair at character {error.start}") from error


def _string(value: Any) -> bytes:
    if isinstance(value, str):
        return _encoded(value)
    if not _is_base64(value):
        raise _Misfit(f"not of expected type: string: got {shown_kind(value)}")
    text = "".join(value[BASE64_KEY].split())
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _Misfit(f"Unable to base64 decode: {error}") from error


def _float(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is not int:
        raise _Misfit(f"not of expected type: float: got {shown_kind(value)}")
    try:
        return float(value)
    except OverflowError as error:
        raise _Misfit("not of expected type: float: the number is too large") from error


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise _Misfit(f"not of expected type: bool: got {shown_kind(value)}")
    return value


def _converter(dtype: tf.DType):
    """Return a function from a JSON value to one of the type."""
    if dtype == tf.string:
        return _string
    if dtype in _FLOATS:
        return _float
    if dtype == tf.bool:
        return _bool
    if dtype not in _INTEGERS:
        raise ServingError(
            grpc.StatusCode.UNIMPLEMENTED, f"JSON has no form for values of type {dtype.name}"
        )
    low, high = dtype.min, dtype.max

    def integer(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise _Misfit(f"not of expected type: {dtype.name}: got {shown_kind(value)}")
        return value

    return integer


def _shape(value: Any) -> list[int]:
    """Return the shape of nested lists, as their first items tell."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if len(shape) > _MAX_DIMENSIONS:
            raise _Misfit(f"lists nest deeper than {_MAX_DIMENSIONS}")
        if not value:
            break
        value = value[0]
    return shape


def _collect(value: Any, shape: Sequence[int], convert, out: list) -> None:
    """Append the values of nested lists of a shape, converted."""
    if not shape:
        if isinstance(value, list):
            raise _Misfit(f"expected a single value as elsewhere, got {shown_kind(value)}")
        out.append(convert(value))
        return
    if not isinstance(value, list) or len(value) != shape[0]:
        size = f"{len(value)}" if isinstance(value, list) else shown_kind(value)
        raise _Misfit(f"expected a list of {shape[0]} as elsewhere, got {size}")
    for i, item in enumerate(value):
        try:
            _collect(item, shape[1:], convert, out)
        except _Misfit as error:
            error.path = f"[{i}]{error.path}"
            raise


def tensor_from_json(value: Any, dtype: tf.DType) -> np.ndarray:
    """Return nested lists as an array.

    Args:
        value: lists in lists, or one value.
        dtype: the type it is to have; strings become an array of objects, of bytes.

    Raises:
        ServingError: INVALID_ARGUMENT, lists of different lengths, or values of another type;
            UNIMPLEMENTED, JSON has no values of that type.
    """
    convert, values = _converter(dtype), []
    try:
        shape = _shape(value)
        _collect(value, shape, convert, values)
    except _Misfit as error:
        raise invalid_argument(f"{error.path or 'value'}: {error.message}") from error
    if dtype == tf.string:
        array = np.empty(len(values), object)
        array[:] = values
    else:
        with np.errstate(over="ignore"):  # 1e39 is infinite as a float32, also in TF Serving.
            array = np.array(values, np.float64 if dtype in _FLOATS else dtype.as_numpy_dtype)
            array = array.astype(dtype.as_numpy_dtype)
    return array.reshape(shape)


def _named(name: str, value: Any, inputs: Mapping[str, TensorInfo]) -> np.ndarray:
    try:
        return tensor_from_json(value, tf.as_dtype(inputs[name].dtype))
    except ServingError as error:
        raise ServingError(error.code, f"{name}: {error.message}") from error


def _row_inputs(instances: Any, inputs: Mapping[str, TensorInfo]) -> Arrays:
    """Return the arrays of "instances": a list of values of the one input, or of objects."""
    if not isinstance(instances, list) or not instances:
        raise invalid_argument(
            f"'instances': expected a list of at least one, got {shown_kind(instances)}"
        )

    def is_object(value: Any) -> bool:
        return isinstance(value, dict) and not _is_base64(value)

    if not is_object(instances[0]):
        if len(inputs) > 1:
            raise invalid_argument(
                f"'instances': expected a list of objects with {sorted(inputs)}, "
                f"got at item 0 {shown_kind(instances[0])}"
            )
        for i, instance in enumerate(instances):
            if is_object(instance):
                raise invalid_argument(
                    f"'instances': expected values or lists as at item 0, "
                    f"got at item {i} {shown_kind(instance)}"
                )
        (name,) = inputs
        return {name: _named(name, instances, inputs)}
    for i, instance in enumerate(instances):
        if not is_object(instance) or set(instance) != set(inputs):
            raise invalid_argument(
                f"'instances': expected objects with keys {sorted(inputs)}, "
                f"got at item {i} {shown_kind(instance)}"
            )
    return {
        name: _named(name, [instance[name] for instance in instances], inputs) for name in inputs
    }


def _column_inputs(values: Any, inputs: Mapping[str, TensorInfo]) -> Arrays:
    """Return the arrays of "inputs": a value of the one input, or an object with all inputs."""
    if not isinstance(values, dict) or _is_base64(values):
        if len(inputs) > 1:
            raise invalid_argument(
                f"'inputs': expected an object with {sorted(inputs)}, got {shown_kind(values)}"
            )
        (name,) = inputs
        return {name: _named(name, values, inputs)}
    missing = sorted(set(inputs) - set(values))
    if missing:
        raise invalid_argument(f"'inputs': missing named inputs: {missing}")
    return {name: _named(name, values[name], inputs) for name in inputs}


def predict_inputs(
    request: Mapping[str, Any], inputs: Mapping[str, TensorInfo]
) -> tuple[Arrays, bool]:
    """Return the arrays of a :predict request.

    Args:
        request: the JSON object.
        inputs: the signature's inputs by name.

    Returns:
        Arrays by name, and whether they came in rows ("instances") rather than columns ("inputs").

    Raises:
        ServingError: INVALID_ARGUMENT, the request does not fit; see `tensor_from_json`.
    """
    if not inputs:
        raise invalid_argument("the signature has no inputs")
    if "instances" in request and "inputs" in request:
        raise invalid_argument("expected one of 'inputs' and 'instances', got both")
    if "instances" in request:
        return _row_inputs(request["instances"], inputs), True
    if "inputs" in request:
        return _column_inputs(request["inputs"], inputs), False
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def _feature(value: Any) -> tf.train.Feature:
    """Return a feature of a tf.train.Example of a JSON value or a list of values of one kind."""
    values = value if isinstance(value, list) else [value]
    kinds = {"bytes" if _is_base64(v) else type(v).__name__ for v in values}
    if kinds <= {"bytes", "str"}:
        try:
            return tf.train.Feature(
                bytes_list=tf.train.BytesList(value=[_string(v) for v in values])
            )
        except _Misfit as error:
            raise invalid_argument(error.message) from error
    if kinds == {"float"}:
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    if kinds <= {"int", "bool"}:
        if not all(-(2**63) <= v < 2**63 for v in values):
            raise invalid_argument("an integer does not fit int64")
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(v) for v in values]))
    raise invalid_argument(
        f"expected strings, numbers or booleans of one kind, got {shown_kind(value)}"
    )


def _example(value: Any, where: str) -> tf.train.Example:
    if not isinstance(value, dict):
        raise invalid_argument(f"{where}: Example must be JSON object but got {shown_kind(value)}")
    example = tf.train.Example()
    for name, content in value.items():
        try:
            if content == []:  # A feature that is there and has no kind.
                example.features.feature[name].SetInParent()
            else:
                example.features.feature[name].CopyFrom(_feature(content))
        except (ServingError, UnicodeEncodeError) as error:
            raise invalid_argument(f"{where}: Feature: {name!r}: {error}") from error
    return example


def example_input(request: Mapping[str, Any]) -> Input:
    """Return the examples of a :classify or :regress request, with the context that they share.

    Raises:
        ServingError: INVALID_ARGUMENT, no examples, or features of mixed or unknown kinds.
    """
    examples = request.get("examples")
    if not isinstance(examples, list) or not examples:
        raise invalid_argument(
            f"'examples': expected a list of at least one, got {shown_kind(examples)}"
        )
    parsed = [_example(value, f"'examples': item {i}") for i, value in enumerate(examples)]
    result = Input()
    if "context" in request:
        result.example_list_with_context.context.CopyFrom(_example(request["context"], "'context'"))
        result.example_list_with_context.examples.extend(parsed)
    else:
        result.example_list.examples.extend(parsed)
    return result


def _json_values(name: str, array: np.ndarray) -> Any:
    """Return an array as nested lists; floats with the fewest digits that give them back."""
    if array.dtype == object:
        if name.endswith(BYTES_SUFFIX):
            values = [{BASE64_KEY: base64.b64encode(v).decode()} for v in array.ravel()]
        else:
            values = [v.decode("utf-8", "surrogateescape") for v in array.ravel()]
        cells = np.empty(len(values), object)
        cells[:] = values
        return cells.reshape(array.shape).tolist()
    dtype = tf.as_dtype(array.dtype)
    if dtype not in _FLOATS and dtype not in _INTEGERS and dtype != tf.bool:
        raise invalid_argument(f"{name}: JSON has no form for values of type {dtype.name}")
    if dtype == tf.float32:
        array = array.astype(str).astype(np.float64)
    return array.tolist()


def json_bytes(value: Any) -> bytes:
    """Return JSON in UTF-8; strings that are no UTF-8 go out as they are, as in TF Serving."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogateescape")


def predict_response(outputs: Arrays, in_rows: bool) -> bytes:
    """Return the body of the answer to a :predict request.

    Args:
        outputs: arrays by name.
        in_rows: whether the request came in rows.

    Raises:
        ServingError: INVALID_ARGUMENT, outputs of different batch sizes cannot be cut into rows,
            or are of a type that JSON has not.
    """
    if in_rows:
        sizes = {name: array.shape[0] if array.ndim else None for name, array in outputs.items()}
        if len(set(sizes.values())) != 1 or None in sizes.values():
            raise invalid_argument(
                f"outputs have no common first dimension: {sizes}; ask with 'inputs' instead"
            )
    values = {name: _json_values(name, array) for name, array in sorted(outputs.items())}
    if len(values) == 1:
        (answer,) = values.values()
    elif in_rows:
        answer = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    else:
        answer = values
    return json_bytes({"predictions" if in_rows else "outputs": answer})


def _shortest(value: float) -> float:
    """Return a float32 as the float64 with the same digits."""
    return float(str(np.float32(value)))


def classify_response(result: ClassificationResult) -> bytes:
    """Return the body of the answer to a :classify request: for each example labels and scores."""
    rows = [
        [[label.label, _shortest(label.score)] for label in row.classes]
        for row in result.classifications
    ]
    return json_bytes({"results": rows})


def regress_response(result: RegressionResult) -> bytes:
    """Return the body of the answer to a :regress request: a value for each example."""
    return json_bytes({"results": [_shortest(row.value) for row in result.regressions]})


def _message(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(
        message, always_print_fields_with_no_presence=True, preserving_proto_field_name=True
    )


def status_response(response: GetModelStatusResponse) -> bytes:
    """Return the body of the answer to a request for a model's status."""
    return json_bytes(_message(response))


def metadata_response(response: GetModelMetadataResponse) -> bytes:
    """Return the body of the answer to a request for a model's metadata."""
    signatures = SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    metadata = {"signature_def": _message(signatures)}
    return json_bytes({"model_spec": _message(response.model_spec), "metadata": metadata})


def error_response(message: str) -> bytes:
    """Return the body of an answer that is an error."""
    return json.dumps({"error": message}).encode()
