"""A stand-in for an object store, whose objects lie in a folder of this machine.

As in S3 or Google Cloud Storage an object appears when its upload is complete, there are no folders
but what stands before a "/" in a name, and nothing is renamed. Other than `memory://` it is the
same for all processes.
"""

import io
import os
import pathlib
import urllib.parse

import fsspec
from fsspec.spec import AbstractFileSystem

from bert_tf import files

SCHEME = "bucket"
_ROOT = "BERT_TF_TEST_STORE"  # environment variable: the folder


class _Upload(io.BytesIO):
    """What is written to an object, before the object is there."""

    def __init__(self, path: pathlib.Path, autocommit: bool):
        super().__init__()
        self._path, self._autocommit, self._content = path, autocommit, b""

    def close(self):
        if not self.closed:
            self._content = self.getvalue()
            super().close()
            if self._autocommit:
                self.commit()

    def commit(self):
        temporary = self._path.with_name(f".{os.getpid()}")
        temporary.write_bytes(self._content)
        os.replace(temporary, self._path)

    def discard(self):
        pass


class ObjectStore(AbstractFileSystem):
    """Objects of bucket://..., each a file whose name is the object's, quoted."""

    protocol = SCHEME
    cachable = False

    def _file(self, path):
        return pathlib.Path(os.environ[_ROOT], urllib.parse.quote(path, safe=""))

    def ls(self, path, detail=True, **kwargs):
        path = self._strip_protocol(path)
        found = {}
        for name in os.listdir(os.environ[_ROOT]):
            key = urllib.parse.unquote(name)
            if key == path:
                stat = self._file(key).stat()
                changed = stat.st_mtime_ns
                found[key] = {"name": key, "size": stat.st_size, "type": "file", "time": changed}
            elif key.startswith(f"{path}/" if path else ""):
                within, *more = key[len(path) :].strip("/").split("/")
                child = f"{path}/{within}".strip("/")
                if more:
                    found[child] = {"name": child, "size": 0, "type": "directory"}
                else:
                    found |= {entry["name"]: entry for entry in self.ls(child)}
        if not found:
            raise FileNotFoundError(path)
        return [found[key] for key in sorted(found)] if detail else sorted(found)

    def _open(self, path, mode="rb", block_size=None, autocommit=True, **kwargs):
        if mode == "rb":
            try:
                return open(self._file(path), "rb")
            except FileNotFoundError:
                raise FileNotFoundError(path) from None
        return _Upload(self._file(path), autocommit)

    def _rm(self, path):
        self._file(path).unlink()

    def cp_file(self, path1, path2, **kwargs):
        raise NotImplementedError("nothing is renamed in an object store")


def use(folder: pathlib.Path, monkeypatch) -> None:
    """Keep the objects in a folder, for this process and those that it starts.

    Args:
        folder: an empty folder; beside it comes one by which other processes find this module.
        monkeypatch: of pytest.
    """
    files._copies.cache_clear()  # of objects of other tests
    fsspec.register_implementation(SCHEME, ObjectStore, clobber=True)
    found = folder.with_name("stand_in") / "stand_in-0.dist-info"
    found.mkdir(parents=True)
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: stand-in\nVersion: 0\n")
    (found / "entry_points.txt").write_text(f"[fsspec.specs]\n{SCHEME} = {__name__}:ObjectStore\n")
    root = pathlib.Path(__file__).parents[2]
    monkeypatch.setenv(_ROOT, str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(found.parent)]))


def put(path: str, content: bytes | str) -> str:
    """Put an object; return its path, bucket://..."""
    content = content.encode() if isinstance(content, str) else content
    ObjectStore().pipe_file(path, content)
    return f"{SCHEME}://{path}"


def names() -> list[str]:
    """Return the names of all objects."""
    return sorted(map(urllib.parse.unquote, os.listdir(os.environ[_ROOT])))


def get(path: str) -> bytes:
    """Return the content of an object."""
    return ObjectStore().cat_file(path)
