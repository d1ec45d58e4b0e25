"""A small stand-in for the Hugging Face hub on 127.0.0.1: enough of its interface to read data sets and model files,
and to push plain files in one commit."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    import datasets


@dataclass
class Repository:
    """A repository the server offers.

    Args:
        files: Path -> content.
        kind: "dataset" or "model".
        refuse: None serves it; 401 or 403 answers as a gated repository does.
        pause: Seconds before each quarter of a file of more than 100,000 bytes.
    """

    files: Mapping[str, bytes]
    kind: str = "dataset"
    refuse: int | None = None
    pause: float = 0.0

    @property
    def commit(self) -> str:
        """A commit hash that follows the content, as a real one does."""
        digest = hashlib.sha1()
        for path, content in sorted(self.files.items()):
            digest.update(path.encode() + b"\0" + content)
        return digest.hexdigest()


@dataclass
class HubServer:
    """A running server: its address, and the requests it has seen."""

    url: str
    requests: list[str] = field(default_factory=list)
    token: str | None = None  # that may write; None: nobody may
    private: dict[str, bool] = field(default_factory=dict)  # of each repository made here

    def environment(self, cache: Path) -> dict[str, str]:
        """Variables that send `datasets`, `huggingface_hub` and timm here; set them before those are imported."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",  # the other tests run with 1
        }


@contextmanager
def serve(repositories: Mapping[str, Repository], *, token: str | None = None) -> Iterator[HubServer]:
    """Serves repositories by their id ("owner/name") until the block ends; unknown ids are answered as missing.

    With the `token` models can be made and written.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = HubServer(f"http://127.0.0.1:{server.server_address[1]}", token=token)
    server.repositories, server.hub = dict(repositories), hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._route({})

    def do_GET(self) -> None:
        self._route({})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif self.path == "/api/repos/create" or "/preupload/" in self.path or "/commit/" in self.path:
            self._write(body)
        elif "json" in self.headers.get("Content-Type", ""):
            self._route(json.loads(body))
        else:
            self._route(parse_qs(body.decode()))

    def _write(self, body: bytes) -> None:
        """Make a repository, say how files are to be sent (whole, none by LFS), or take a commit."""
        hub, repositories = self.server.hub, self.server.repositories  # type: ignore[attr-defined]
        hub.requests.append(f"{self.command} {self.path}")
        if hub.token is None or self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._error(403, "Forbidden", "This token has no write access")
        lines = [json.loads(line) for line in body.splitlines()]
        if self.path == "/api/repos/create":
            name = f"{lines[0]['organization']}/{lines[0]['name']}"
            if name in repositories:
                told = {"error": "You already created this model repo", "url": f"{hub.url}/{name}"}
                return self._answer(409, json.dumps(told).encode(), {"Content-Type": "application/json"})
            repositories[name] = Repository({}, kind="model")
            hub.private[name] = bool(lines[0].get("private"))
            return self._json({"url": f"{hub.url}/{name}", "name": name, "id": "0"})
        name = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            told = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in lines[0]["files"]]
            return self._json({"files": told})
        sent = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
        files = {**repositories[name].files, **{path: base64.b64decode(content) for path, content in sent.items()}}
        repositories[name] = Repository(files, kind="model")
        commit = repositories[name].commit
        return self._json({"success": True, "commitOid": commit, "commitUrl": f"{hub.url}/{name}/commit/{commit}"})

    def _route(self, body: dict[str, Any]) -> None:
        address = urlsplit(self.path)
        self.server.hub.requests.append(f"{self.command} {self.path}")  # type: ignore[attr-defined]
        steps = [unquote(step) for step in address.path.strip("/").split("/")]
        is_api = steps[0] == "api"
        if is_api:
            kind, steps = steps[1].removesuffix("s"), steps[2:]
        else:
            kind = "dataset" if steps[0] == "datasets" else "model"
            steps = steps[1:] if kind == "dataset" else steps
        repository = self.server.repositories.get("/".join(steps[:2]))  # type: ignore[attr-defined]
        if repository is None or repository.kind != kind or len(steps) < 2:
            return self._error(401, "RepoNotFound", "Repository not found")
        if repository.refuse:
            return self._error(repository.refuse, "GatedRepo", "Access to this repository is restricted")
        rest = steps[2:]
        at_revision = len(rest) > 1 and rest[0] in ("resolve", "revision", "tree", "paths-info")
        if at_revision and rest[1] not in ("main", repository.commit):
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {rest[1]}")
        if is_api:
            return self._api("/".join(steps[:2]), repository, rest, body)
        if rest[:1] == ["resolve"]:
            return self._file(repository, "/".join(rest[2:]))
        return self._error(404, "EntryNotFound", "Entry not found")

    def _api(self, name: str, repository: Repository, rest: list[str], body: dict[str, Any]) -> None:
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": path} for path in sorted(repository.files)]
            return self._json(
                {
                    "id": name,
                    "sha": repository.commit,
                    "private": False,
                    "siblings": siblings,
                    "tags": [],
                    "downloads": 0,
                }
            )
        entries = _entries(repository.files)
        if rest[0] == "tree":
            inside = "/".join(rest[2:])
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
            if inside and inside not in entries:
                return self._error(404, "EntryNotFound", f"{inside} does not exist")
            prefix = f"{inside}/" if inside else ""
            below = [entry for path, entry in entries.items() if path.startswith(prefix)]
            return self._json([entry for entry in below if recursive or "/" not in entry["path"][len(prefix) :]])
        if rest[0] == "paths-info":
            return self._json([entries[path] for path in body.get("paths", []) if path in entries])
        return self._error(404, "EntryNotFound", "Entry not found")

    def _file(self, repository: Repository, path: str) -> None:
        content = repository.files.get(path)
        if content is None:
            return self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": repository.commit})
        headers = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Repo-Commit": repository.commit,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        asked = self.headers.get("Range")
        if asked and asked.startswith("bytes="):
            first, _, last = asked[6:].partition("-")
            start, end = int(first), min(int(last) if last else len(content) - 1, len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            return self._answer(206, content[start : end + 1], headers)
        return self._answer(200, content, headers, pause=repository.pause)

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        body = json.dumps({"error": message}).encode()
        self._answer(status, body, {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})})

    def _answer(self, status: int, body: bytes, headers: dict[str, str], *, pause: float = 0.0) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if len(body) <= 100_000 or not pause:
            self.wfile.write(body)
            return
        quarter = len(body) // 4 + 1
        for start in range(0, len(body), quarter):
            time.sleep(pause)
            self.wfile.write(body[start : start + quarter])


def _entries(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {}
    for path, content in sorted(files.items()):
        steps = path.split("/")
        for depth in range(1, len(steps)):
            folder = "/".join(steps[:depth])
            entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
        oid = hashlib.sha1(content).hexdigest()
        entries[path] = {"type": "file", "path": path, "oid": oid, "size": len(content)}
    return entries


def parquet(rows: datasets.Dataset) -> bytes:
    """The rows as the bytes of a parquet file."""
    stream = io.BytesIO()
    rows.to_parquet(stream)
    return stream.getvalue()
