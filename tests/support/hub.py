"""A stand-in of the Hugging Face Hub that answers what ``huggingface_hub`` asks in a commit.

It keeps repositories in memory: ``files`` is what a download would give.
"""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_a_test"
OWN_FILES = {".gitattributes": b"*.onnx filter=lfs diff=lfs merge=lfs -text\n"}
"""What the Hub puts into a new repository."""


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: dict(OWN_FILES))
    commits: list[str] = field(default_factory=lambda: ["0" * 40])


@dataclass
class Hub:
    """The server's state; ``fails`` maps a part of a path to the status that it is answered with,
    0: the connection is closed.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    fails: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub on a port of this machine."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Hub

    def log_message(self, *_: object) -> None:
        return

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.state.asked.append(f"{self.command} {path}")
        for part, status in self.state.fails.items():
            if part in path:
                if status:
                    return self._answer({"error": "as asked for"}, status)
                self.close_connection = True
                return None
        is_upload = path.startswith("/upload/")
        if not is_upload and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid credentials"}, 401)
        if is_upload:
            self.state.objects[path.rpartition("/")[2]] = body
            return self._answer({})
        if path.endswith("/info/lfs/objects/batch"):
            return self._answer(self._batch(json.loads(body)))
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        return self._of_repository("/".join(parts[2:4]), parts[4:], body)

    do_GET = do_POST = do_PUT = _handle  # noqa: N815 - names of the base class

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        is_private = asked.get("private", asked.get("visibility") == "private")
        self.state.repositories[name] = Repository(bool(is_private))
        self._answer({"url": f"{self.state.url}/{name}"})

    def _batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        objects = [
            {
                **one,
                "actions": {"upload": {"href": f"{self.state.url}/upload/{one['oid']}"}},
            }
            for one in asked["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def _of_repository(self, name: str, what: list[str], body: bytes) -> None:
        found = self.state.repositories.get(name)
        if found is None:
            return self._answer({"error": "not found"}, 404, "RepoNotFound")
        if not what:
            siblings = [{"rfilename": path} for path in found.files]
            told = {"id": name, "sha": found.commits[-1], "private": found.private}
            return self._answer({**told, "siblings": siblings})
        if what[0] == "preupload":
            modes = [
                {"path": one["path"], "uploadMode": _mode(one["path"]), "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self._answer({"files": modes})
        return self._commit(name, found, [json.loads(line) for line in body.splitlines()])

    def _commit(self, name: str, found: Repository, lines: list[dict[str, Any]]) -> None:
        files = dict(found.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                if value.get("parentCommit") not in (None, found.commits[-1]):
                    return self._answer({"error": "another commit came first"}, 412)
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.state.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        found.files = files
        found.commits.append(f"{len(found.commits):040x}")
        url = f"{self.state.url}/{name}/commit/{found.commits[-1]}"
        return self._answer({"commitUrl": url, "commitOid": found.commits[-1]})

    def _answer(self, value: Any, status: int = 200, code: str | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(data)


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".onnx", ".safetensors", ".png")) else "regular"
