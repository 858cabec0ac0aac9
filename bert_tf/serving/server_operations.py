"""Which operations the released TF Serving knows, and which a SavedModel needs.

A server refuses a graph with an operation, an attribute or a type that its TensorFlow and TF Text
do not have. What releases have is read from server_operations.txt.gz, a line an operation: the
servers that know it so, its name, and its attributes, with the values that they may have where
these are limited. The file was made of wheels, by tests/golden/server_operations.
"""

import functools
import gzip
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping

from tensorflow.core.framework import attr_value_pb2, node_def_pb2, types_pb2
from tensorflow.core.protobuf import saved_model_pb2

from bert_tf.serving.options import SERVERS

# Operation -> attribute -> the values that it may have, none where any will do.
Operations = Mapping[str, Mapping[str, frozenset[str]]]


@functools.cache
def operations_of(server: str) -> Operations:
    """Return the operations of a server.

    Args:
        server: one of SERVERS.

    Raises:
        ValueError: it is none of them.
    """
    if server not in SERVERS:
        raise ValueError(f"for_server: expected one of {', '.join(SERVERS)}, got {server!r}")
    content = pathlib.Path(__file__).with_name("server_operations.txt.gz").read_bytes()
    operations = {}
    for line in gzip.decompress(content).decode().splitlines():
        servers, name, *attributes = line.split(" ")
        if server in servers.split(","):
            pairs = (attribute.partition("=") for attribute in attributes)
            operations[name] = {key: frozenset(filter(None, v.split("|"))) for key, _, v in pairs}
    return operations


def nodes_of(folder: str | os.PathLike) -> Iterator[node_def_pb2.NodeDef]:
    """Read the nodes of a SavedModel's graph and functions that are no calls of its functions."""
    content = (pathlib.Path(folder) / "saved_model.pb").read_bytes()
    for graph in saved_model_pb2.SavedModel.FromString(content).meta_graphs:
        functions = graph.graph_def.library.function
        own = {function.signature.name for function in functions}
        for nodes in (graph.graph_def.node, *(function.node_def for function in functions)):
            yield from (node for node in nodes if node.op not in own)


def first_lacking(folder: str | os.PathLike, server: str) -> str | None:
    """Return what of a SavedModel a server does not know, in a few words; None for nothing."""
    operations = operations_of(server)
    for node in nodes_of(folder):
        if node.op not in operations:
            return f"the operation {node.op}"
        known = operations[node.op]
        for name, value in node.attr.items():
            if name.startswith("_"):  # hints, which every server passes over
                continue
            if name not in known:
                return f"the attribute {name} of the operation {node.op}"
            for each in _values(value) if known[name] else ():
                if each not in known[name]:
                    return f"the operation {node.op} with {name}={each.removeprefix('DT_')}"
    return None


def check_server(folder: str | os.PathLike, server: str) -> None:
    """Refuse a SavedModel that a server would refuse.

    Raises:
        ValueError: the server lacks an operation, or it is none of SERVERS.
    """
    if lacking := first_lacking(folder, server):
        raise ValueError(f"for_server: TF Serving {server} does not have {lacking}")


def server_note(folder: str | os.PathLike) -> str:
    """Return a sentence of the model card: from which server on all know what it needs."""
    able = list(itertools.takewhile(lambda s: not first_lacking(folder, s), reversed(SERVERS)))
    if not able:
        return f"It needs operations that TF Serving {SERVERS[-1]} does not have."
    return f"TF Serving {able[-1]} and later have all its operations."


def _values(value: attr_value_pb2.AttrValue) -> list[str]:
    """Return the types or strings of an attribute."""
    types, strings = [*value.list.type], [*value.list.s]
    if value.HasField("type"):
        types.append(value.type)
    if value.HasField("s"):
        strings.append(value.s)
    return [types_pb2.DataType.Name(t) for t in types] + [s.decode() for s in strings]
