"""Make bert_tf/serving/server_operations.txt.gz of the wheels of TensorFlow and TF Text.

    pip download --no-deps tensorflow-cpu==2.19.1      # and the others of RELEASES
    python make_server_operations.py WHEELS_FOLDER server_operations.txt.gz

The libraries are taken out of the wheels and asked through TensorFlow's C API, so that none of them
has to be installed; each pair in a process of its own. Needs some TensorFlow to read the answers.
"""

import ctypes
import gzip
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

# TF Serving's release -> TensorFlow's and TF Text's that it is built with. The latter is in
# tensorflow_serving/workspace.bzl of the release's tag: up to 2.19 the servers have TF Text 2.12.1.
RELEASES = {
    "2.16": ("2.16.2", "2.12.1"),
    "2.17": ("2.17.1", "2.12.1"),
    "2.18": ("2.18.1", "2.12.1"),
    "2.19": ("2.19.1", "2.12.1"),
    "2.20": ("2.20.0", "2.20.0"),
}
# TF Text's libraries load into the TensorFlow that they were built for alone.
TENSORFLOW_OF_TEXT = {"2.12.1": "2.12.1", "2.20.0": "2.20.0"}
LIBRARIES = ("libtensorflow_framework.so.2", "libtensorflow_cc.so.2")


class Buffer(ctypes.Structure):
    """TF_Buffer of the C API."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("deallocator", ctypes.c_void_p),
    )


def print_operations(folder: pathlib.Path) -> None:
    """Write the OpLists before and after TF Text is loaded to core.pb and all.pb."""
    framework, library = (
        ctypes.CDLL(str(folder / "tensorflow" / name), mode=ctypes.RTLD_GLOBAL)
        for name in LIBRARIES
    )
    library.TF_GetAllOpList.restype = ctypes.POINTER(Buffer)
    library.TF_NewStatus.restype = library.TF_LoadLibrary.restype = ctypes.c_void_p
    library.TF_Message.restype = ctypes.c_char_p
    status = ctypes.c_void_p(library.TF_NewStatus())

    def write(name: str) -> None:
        found = library.TF_GetAllOpList().contents
        (folder / name).write_bytes(ctypes.string_at(found.data, found.length))

    write("core.pb")
    for path in sorted((folder / "tensorflow_text").rglob("python/**/*.so")):
        library.TF_LoadLibrary(os.fsencode(path), status)
        if library.TF_GetCode(status):
            sys.exit(f"{path.name}: {library.TF_Message(status).decode()}")
    write("all.pb")


def operations(wheels: pathlib.Path, tensorflow: str, text: str | None) -> dict[str, str]:
    """Return operation -> its line, of a TensorFlow, or only those that a TF Text adds to it."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        names = [("tensorflow_cpu", tensorflow), ("tensorflow_text", text)]
        for package, version in names[: 1 + (text is not None)]:
            (wheel,) = wheels.glob(f"{package}-{version}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                members = [n for n in archive.namelist() if pathlib.Path(n).name in LIBRARIES]
                if package == "tensorflow_text":
                    members = [n for n in archive.namelist() if n.endswith(".so")]
                archive.extractall(folder, members)
        subprocess.run(
            [sys.executable, __file__, str(folder)],
            check=True,
            env={**os.environ, "LD_LIBRARY_PATH": str(folder / "tensorflow")},
        )
        core, everything = (lines_of((folder / n).read_bytes()) for n in ("core.pb", "all.pb"))
    return core if text is None else {n: v for n, v in everything.items() if n not in core}


def lines_of(content: bytes) -> dict[str, str]:
    """Return operation -> its name and its attributes with the values that they may have."""
    # Not at the top: the processes that ask a library have no other TensorFlow.
    from tensorflow.core.framework import op_def_pb2, types_pb2

    def attribute(attr: op_def_pb2.OpDef.AttrDef) -> str:
        """Return name, or name=value|value."""
        allowed = attr.allowed_values.list
        values = [types_pb2.DataType.Name(t) for t in allowed.type] + [
            s.decode() for s in allowed.s
        ]
        return f"{attr.name}={'|'.join(sorted(values))}" if values else attr.name

    found = op_def_pb2.OpList.FromString(content)
    return {op.name: " ".join([op.name, *sorted(map(attribute, op.attr))]) for op in found.op}


def main(wheels: pathlib.Path, target: pathlib.Path) -> None:
    """Write a line for each operation as some servers have it: which, then the operation."""
    servers: dict[str, list[str]] = {}
    cores = {v: operations(wheels, v, None) for v in {t for t, _ in RELEASES.values()}}
    texts = {t: operations(wheels, v, t) for t, v in TENSORFLOW_OF_TEXT.items()}
    for server, (tensorflow, text) in RELEASES.items():
        for line in (*cores[tensorflow].values(), *texts[text].values()):
            servers.setdefault(line, []).append(server)
    lines = sorted(f"{','.join(found)} {line}\n" for line, found in servers.items())
    # Without a time, so that the same wheels give the same bytes.
    target.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print_operations(pathlib.Path(sys.argv[1]))
    else:
        main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
