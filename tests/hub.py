"""A hub of models and data sets in a thread: the part of the Hugging Face hub's HTTP interface that its clients use.

huggingface_hub reads HF_ENDPOINT when it is imported, so clients run in processes of their own: in forks that read it
again (``python(CODE, **hub.environment)``), or in interpreters (``new_python``, ``switch_distill``).
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

from tests.forked import ROOT, Forked

_API = re.compile(
    r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)"
    r"(/(?P<what>revision|tree|paths-info)/(?P<revision>[^/]+)(/(?P<path>.+))?)?"
)
_FILE = re.compile(r"(?P<kind>/datasets)?/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")

Files = dict[str, bytes]


class Repository:
    """The files of each commit, and the branches and tags that refer to commits."""

    def __init__(self, kind: str, name: str):
        self.kind, self.name = kind, name
        self.commits: dict[str, Files] = {}
        self.refs: dict[str, str] = {}

    def commit(self, files: Path | Mapping[str, str | bytes], *refs: str) -> str:
        """Commit the files of a directory, or a dict of files by path; move ``refs`` (default: ``main``) to it.

        Returns:
            The commit, in 40 hexadecimal digits.
        """
        if isinstance(files, Path):
            paths = [path for path in files.rglob("*") if path.is_file()]
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in paths}
        content = {path: data.encode() if isinstance(data, str) else data for path, data in sorted(files.items())}
        number = f"{self.kind} {self.name} {len(self.commits)}".encode()
        commit = hashlib.sha1(number + b"".join(content.values())).hexdigest()
        self.commits[commit] = content
        self.refs |= dict.fromkeys(refs or ("main",), commit)
        return commit

    def find(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


class Hub:
    """The server.

    Attributes:
        requests: the path of each request.
        tokens: the Authorization header of each request for a file.
        sent: bytes sent of each file, by its path in the repository.
        breaks: by path of a file, the bytes after which each of its next answers breaks off.
        ranges: whether range requests are answered with ranges.
        files_at: the server that has the files, if it is another one.
    """

    def __init__(self, cache: Path):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[str] = []
        self.tokens: list[str | None] = []
        self.sent: Counter[str] = Counter()
        self.breaks: dict[str, list[int]] = {}
        self.ranges = True
        self.files_at: str | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def model(self, name: str) -> Repository:
        return self.repositories.setdefault(("model", name), Repository("model", name))

    def dataset(self, name: str) -> Repository:
        return self.repositories.setdefault(("dataset", name), Repository("dataset", name))

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


# Makes a fork like a new interpreter: the settings of its environment, and the libraries' own messages.
_AS_NEW = """
import importlib, logging
from huggingface_hub import constants, hf_api
importlib.reload(constants)
hf_api.api.endpoint = constants.ENDPOINT
for name in "huggingface_hub", "transformers":
    logging.getLogger(name).setLevel(logging.WARNING)
"""


def start(code: str, *arguments: str, **environment: str) -> Forked:
    """Start ``code`` in a fork whose huggingface_hub has read ``environment``."""
    return Forked(_AS_NEW + code, arguments, environment)


def process(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run ``code`` in such a fork, which must succeed."""
    running = start(code, *arguments, **environment)
    stdout, stderr = running.communicate()
    assert running.returncode == 0, stderr
    return subprocess.CompletedProcess(arguments, running.returncode, stdout, stderr)


def python(code: str, *arguments: str, **environment: str) -> str:
    """The output of ``code`` in such a fork, which must succeed."""
    return process(code, *arguments, **environment).stdout


def new_python(code: str, *arguments: str, **environment: str) -> str:
    """``python`` in a new interpreter, which has imported nothing before."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = urlsplit(self.path).path  # quoted: a revision such as refs/pr/1 is one part
        self.server.hub.requests.append(path)
        length = int(self.headers.get("Content-Length") or 0)
        form = parse_qs(self.rfile.read(length).decode())
        if match := _API.fullmatch(path):
            self._api(match, form)
        elif match := _FILE.fullmatch(path):
            self._file(match)
        else:
            self._refuse("NotFound")

    do_HEAD = do_POST = do_GET

    def _api(self, match: re.Match, form: dict[str, list[str]]) -> None:
        if (found := self._find(match["kind"], match["name"], match["revision"] or "main")) is None:
            return
        commit, files = found
        if match["what"] == "tree":
            folder = f"{unquote(match['path'])}/" if match["path"] else ""
            deep = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
            self._send(json.dumps(_entries(files, folder, deep)).encode())
        elif match["what"] == "paths-info":
            known = {entry["path"]: entry for entry in _entries(files, "", deep=True)}
            self._send(json.dumps([known[path] for path in form.get("paths", []) if path in known]).encode())
        else:
            entries = _entries(files, "", deep=True)
            files = [entry for entry in entries if entry["type"] == "file"]
            siblings = [{"rfilename": one["path"], "size": one["size"], "blobId": one["oid"]} for one in files]
            self._send(json.dumps({"id": unquote(match["name"]), "sha": commit, "siblings": siblings}).encode())

    def _file(self, match: re.Match) -> None:
        kind = "dataset" if match["kind"] else "model"
        if (found := self._find(kind, match["name"], match["revision"])) is None:
            return
        commit, files = found
        self.server.hub.tokens.append(self.headers.get("Authorization"))
        if (place := self.server.hub.files_at) and self.command == "GET":
            self._send(b"", 302, {"Location": place + self.path})
            return
        if (content := files.get(unquote(match["path"]))) is None:
            self._refuse("EntryNotFound", commit)
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_oid(content)}"', "Accept-Ranges": "bytes"}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part and self.server.hub.ranges:
            first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self._send(content[first : last + 1], 206, headers, unquote(match["path"]))
        else:
            self._send(content, 200, headers, unquote(match["path"]))

    def _find(self, kind: str, name: str, revision: str) -> tuple[str, Files] | None:
        """A commit and its files; if there is none, an error response is sent."""
        repository = self.server.hub.repositories.get((kind, unquote(name)))
        commit = repository.find(unquote(revision)) if repository else None
        if commit is None:
            self._refuse("RevisionNotFound" if repository else "RepoNotFound")
            return None
        return commit, repository.commits[commit]

    def _refuse(self, code: str, commit: str | None = None) -> None:
        self._send(b"{}", 404, {"X-Error-Code": code, **({"X-Repo-Commit": commit} if commit else {})})

    def _send(
        self, content: bytes, status: int = 200, headers: Mapping[str, str] | None = None, file: str | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if file is not None:
            if breaks := self.server.hub.breaks.get(file):
                content, self.close_connection = content[: breaks.pop(0)], True
            self.server.hub.sent[file] += len(content)
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def _entries(files: Files, folder: str, deep: bool) -> list[dict]:
    """The hub's listing of a folder (``a/b/``): files and folders, with ``deep`` also those below."""
    below = {path: content for path, content in files.items() if path.startswith(folder)}
    entries = [
        {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
        for path, content in below.items()
        if deep or "/" not in path.removeprefix(folder)
    ]
    folders = {str(parent) for path in below for parent in Path(path).parents} - {".", folder.rstrip("/")}
    for path in sorted(folders):
        if path.startswith(folder) and (deep or "/" not in path.removeprefix(folder)):
            entries.append({"type": "directory", "path": path, "oid": _oid(path.encode())})
    return entries


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
