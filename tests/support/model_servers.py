"""Stand-ins on this machine for the places that have models: the Hub, Kaggle, Google's storage.

Each answers the requests that the ecosystem's own libraries send, as far as downloads (and commits
to the Hub) need them. Files can be cut off on their way, or come damaged.
"""

import base64
import contextlib
import hashlib
import http.server
import io
import json
import pathlib
import re
import socket
import threading
import urllib.parse
import zipfile
from collections.abc import Iterator

import pytest
from huggingface_hub import constants

NOBODY = "http://127.0.0.1:9"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER_COMMIT = COMMIT[::-1]
_COMMITS = {"main": COMMIT, "older": OLDER_COMMIT, COMMIT: COMMIT, OLDER_COMMIT: OLDER_COMMIT}


class Server(http.server.ThreadingHTTPServer):
    """A server of files.

    Attributes:
        files: path -> content.
        cuts: path -> how many bytes to send before the connection ends, for each of the next
            answers.
        damaged: paths of files that come with a wrong byte.
        refused: status that every answer has, or None.
        requests: (method, path, headers) of what was asked.
        large: digest -> content of files that were sent apart from a commit.
    """

    daemon_threads = True

    def __init__(self, handler: type["Handler"]):
        super().__init__(("127.0.0.1", 0), handler)
        self.files: dict[str, bytes] = {}
        self.cuts: dict[str, list[int]] = {}
        self.damaged: set[str] = set()
        self.refused: int | None = None
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.large: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def ranges_asked(self) -> list[str]:
        """Return the ranges of files that were asked for, but for those from the beginning."""
        asked = [headers["Range"] for *_, headers in self.requests if "Range" in headers]
        return [text for text in asked if text != "bytes=0-"]


class Handler(http.server.BaseHTTPRequestHandler):
    """What all have in common."""

    server: Server

    def log_message(self, format, *arguments):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self):
        # A proxy is asked for the whole address.
        address = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(address.path)
        self.server.requests.append((self.command, path, dict(self.headers)))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.refused is not None:
            self.send(b"{}", self.server.refused)
        else:
            self.answer(path, body)

    do_HEAD = do_POST = do_GET

    def answer(self, path: str, body: bytes):
        self.send_file(path)

    def send(self, content: bytes, status: int = 200, **headers: str):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, value, status: int = 200, **headers: str):
        headers["Content-Type"] = "application/json"
        self.send(json.dumps(value).encode(), status, **headers)

    def send_file(self, path: str, **headers: str):
        if path not in self.server.files:
            self.send(b"", 404)
            return
        content = self.server.files[path]
        if path in self.server.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        size, status, headers = len(content), 200, {"Accept-Ranges": "bytes", **headers}
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
            if start >= size:
                self.send(b"", 416, Content_Range=f"bytes */{size}", **headers)
                return
            status, headers["Content-Range"] = 206, f"bytes {start}-{size - 1}/{size}"
            content = content[start:]
        headers["Content-Length"] = str(len(content))
        cuts = self.server.cuts.get(path)
        if cuts and self.command == "GET":
            content = content[: cuts.pop(0)]
        self.send(content, status, **headers)


@contextlib.contextmanager
def running(handler: type[Handler]) -> Iterator[Server]:
    with Server(handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Storage(Handler):
    """Google's storage, which tells the MD5 of each file."""

    def answer(self, path, body):
        digest = base64.b64encode(hashlib.md5(self.server.files.get(path, b"")).digest()).decode()
        self.send_file(path, x_goog_hash=f"crc32c=AAAAAA==,md5={digest}")


class PlainStorage(Handler):
    """One that tells no digest, and sends whole files alone."""

    def answer(self, path, body):
        del self.headers["Range"]
        self.send_file(path)


class Kaggle(Handler):
    """Kaggle's model service, asked as a proxy for http://localhost; files are OWNER/.../FILE."""

    def answer(self, path, body):
        if self.command == "GET":
            digest = hashlib.md5(self.server.files.get(path, b"")).digest()
            self.send_file(path, x_goog_hash=f"md5={base64.b64encode(digest).decode()}")
            return
        asked = json.loads(body)
        model = f"/{asked['ownerSlug']}/{asked['modelSlug']}/{asked['instanceSlug']}/"
        names = [p.removeprefix(model) for p in self.server.files if p.startswith(model)]
        if not names:
            self.send_json({}, 404)
        elif path.endswith("/GetModelInstance"):
            self.send_json({"versionNumber": 3})
        elif path.endswith("/ListModelInstanceVersionFiles"):
            self.send_json({"files": [{"name": name} for name in names], "nextPageToken": ""})
        else:
            self.send(b"", 302, Location=f"http://localhost{model}{asked['path']}")


class Hub(Handler):
    """The Hugging Face Hub: /OWNER/NAME/FILE are the files of a repository, at each commit."""

    GATED = "of/those-who-agree"

    OWNER = "me"  # whose token "hf_may-write" is; it may write to no other
    TOKENS = ("hf_may-write", "hf_may-read")

    def do_PUT(self):
        """Take a large file, or the beginning of one and then end the connection."""
        self.server.requests.append((self.command, self.path, dict(self.headers)))
        size, cuts = int(self.headers["Content-Length"]), self.server.cuts.get(self.path)
        if cuts:
            self.rfile.read(cuts.pop(0))
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.server.large[self.path.rpartition("/")[2]] = self.rfile.read(size)
        self.send(b"")

    def answer(self, path, body):
        if self.command == "POST":
            if not self.refuse_writing(path, body):
                self.take(path, body)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path):
            self.tell(match[1], match[2] == "tree", match[3] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if match[1] == self.GATED and "Authorization" not in self.headers:
                self.send(b"", 403, X_Error_Code="GatedRepo")
                return
            name = f"/{match[1]}/{match[3]}"
            if name not in self.server.files:
                self.send(b"", 404, X_Error_Code="EntryNotFound")
                return
            content = self.server.files[name]
            digest = hashlib.sha256(content).hexdigest()
            if not name.endswith("safetensors"):
                digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            self.send_file(name, ETag=f'"{digest}"', X_Repo_Commit=_COMMITS[match[2]])
        else:
            self.send(b"", 404)

    def tell(self, repository: str, tree: bool, revision: str):
        prefix = f"/{repository}/"
        names = [p.removeprefix(prefix) for p in self.server.files if p.startswith(prefix)]
        if not names:
            self.send(b"", 401, X_Error_Code="RepoNotFound")
        elif revision not in _COMMITS:
            self.send(b"", 404, X_Error_Code="RevisionNotFound")
        elif tree:
            sizes = {name: len(self.server.files[prefix + name]) for name in names}
            self.send_json(
                [{"type": "file", "path": n, "size": s, "oid": "0"} for n, s in sizes.items()]
            )
        else:
            siblings = [{"rfilename": name} for name in names]
            self.send_json({"id": repository, "sha": _COMMITS[revision], "siblings": siblings})

    def refuse_writing(self, path: str, body: bytes) -> bool:
        """Refuse who gives no token, an unknown one, or one that may not write; tell if so."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        owner = path.split("/models/")[-1].split("/")[0]
        if path == "/api/repos/create":
            owner = json.loads(body)["organization"]
        elif path.endswith("/objects/batch"):
            owner = path.split("/")[1]
        if path == "/api/validate-yaml":
            return False
        if token not in self.TOKENS:
            self.send_json({"error": "Invalid username or password."}, 401)
        elif owner != self.OWNER or token == "hf_may-read":
            right = f'create a model under the namespace "{owner}"'
            self.send_json({"error": f"You don't have the rights to {right}"}, 403)
        else:
            return False
        return True

    def take(self, path: str, body: bytes):
        """Take a commit: small files come within the request, large ones before it."""
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.send_json({"url": f"{self.server.url}/{asked['organization']}/{asked['name']}"})
        elif path == "/api/validate-yaml":
            error = {"message": '"license" must be one of [apache-2.0, mit]'}
            errors = [error] if "license: none-of-these" in json.loads(body)["content"] else []
            told = {"warnings": [], "errors": errors}
            self.send_json(told, 400 if errors else 200)
        elif "/preupload/" in path:
            files = []
            for file in json.loads(body)["files"]:
                mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
                told = {"uploadMode": mode, "shouldIgnore": False, "oid": None}
                files.append({"path": file["path"], **told})
            self.send_json({"files": files})
        elif path.endswith("/objects/batch"):
            objects = json.loads(body)["objects"]
            for each in objects:
                if each["oid"] not in self.server.large:
                    each["actions"] = {"upload": {"href": f"{self.server.url}/large/{each['oid']}"}}
            self.send_json({"transfer": "basic", "objects": objects})
        else:
            repository = path.split("/models/")[1].partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                told = line["value"]
                if line["key"] == "file":
                    content = base64.b64decode(told["content"])
                    self.server.files[f"/{repository}/{told['path']}"] = content
                elif line["key"] == "lfsFile":
                    content = self.server.large[told["oid"]]
                    self.server.files[f"/{repository}/{told['path']}"] = content
            url = f"{self.server.url}/{repository}/commit/{COMMIT}"
            self.send_json({"commitUrl": url, "commitOid": COMMIT})


# === What the tests do with them ===


def keep_apart(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """Keep all caches in a folder, and ask nobody until a stand-in is named."""
    monkeypatch.setenv("BERT_TF_CACHE", str(folder / "cache"))
    monkeypatch.setenv("BERT_TF_GOOGLE_MIRROR", NOBODY)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(folder / "kaggle"))
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(folder))
    proxies = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy")
    for name in ("HF_TOKEN", "KAGGLE_API_TOKEN", *proxies):
        monkeypatch.delenv(name, raising=False)
    use_hub(NOBODY, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its protocol has no stand-in
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # before huggingface_hub asks again


def use_hub(url: str, monkeypatch: pytest.MonkeyPatch):
    """Do what HF_ENDPOINT does, which is read once a process."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def contents(folder: str | pathlib.Path) -> dict[str, bytes]:
    """Return what the files of a folder hold, by their paths in it."""
    paths = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def zipped(files: dict[str, bytes], prefix: str = "") -> bytes:
    """Return a ZIP archive of files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(prefix + name, content)
    return stream.getvalue()
