"""A hub on the loopback: what huggingface_hub asks of the real one, for repositories that a test
makes up.

As on the real one, small files are answered at once, large ones by a redirect to a storage on
another host, and what stands behind a branch is named by `X-Repo-Commit`. Every request is written
down.
"""

import hashlib
import itertools
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import unquote

LARGE = (".safetensors", ".bin", ".msgpack", ".parquet", ".zip")  # what the storage holds


class Request(NamedTuple):
    """A request: HEAD or GET, the path without its origin, the first byte of a Range, the bearer's
    token."""

    method: str
    path: str
    start: int
    token: str


class Handler(BaseHTTPRequestHandler):
    """Answer HEAD and GET, one connection after another's request, as `answer` says."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> "HubServer":
        return self.server.hub

    def do_HEAD(self):
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.asked = Request(self.command, self.path, int(start.group(1)) if start else 0, token)
        self.hub.requests.append(self.asked)
        self.hub.after(self.asked)
        if self.hub.silent(self.asked):
            self.close_connection = True
            while not self.hub._stopping.wait(1):
                self.wfile.write(b"H" * self.hub.drips)
        elif not self.hub._stopping.wait(self.hub.delay):
            self.answer()

    do_GET = do_HEAD

    def say(self, status: int, **headers: str):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def give(self, name: str, content: bytes, **headers: str):
        """Send a file, from where its Range starts; or the first bytes of it, where a cut is
        due."""
        start, end = self.asked.start, len(content)
        if start:
            headers["Content_Range"] = f"bytes {start}-{end - 1}/{end}"
        self.say(206 if start else 200, Content_Length=str(end - start), **headers)
        if self.command == "HEAD":
            return
        if name not in self.hub.cuts:
            self.wfile.write(memoryview(content)[start:])
            return
        size, reset = self.hub.cuts.pop(name)
        self.wfile.write(memoryview(content)[start:size])
        self.close_connection = True
        if reset:  # the connection ends with an error on the other side, not in good order
            time.sleep(0.2)  # or the bytes before it are lost too
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

    def log_message(self, *_):
        pass


class Hub(Handler):
    """Who may read which file of which commit; small files, and where large ones are."""

    def answer(self):
        path = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if self.hub.status != 200:
            return self.say(self.hub.status)
        if path is None:
            return self.say(404)
        name, revision, file = map(unquote, path.groups())
        if name in self.hub.renamed:
            return self.say(307, Location=self.path.replace(name, self.hub.renamed[name], 1))
        repository = self.hub.repositories.get(name)
        closed = repository is None or (repository.token and repository.token != self.asked.token)
        if closed and repository and repository.gated:
            return self.say(403 if self.asked.token else 401, X_Error_Code="GatedRepo")
        if closed:
            return self.say(404 if self.asked.token else 401, X_Error_Code="RepoNotFound")
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            return self.say(404, X_Error_Code="RevisionNotFound")
        content = repository.commits[commit].get(file)
        if content is None:
            return self.say(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        if not file.endswith(LARGE):
            return self.give(
                file, content, X_Repo_Commit=commit, ETag=f'"{hashlib.sha1(content).hexdigest()}"'
            )
        digest = hashlib.sha256(content).hexdigest()
        self.say(
            302,
            Location=f"{self.hub.storage}/{digest}/{file}",
            X_Repo_Commit=commit,
            X_Linked_Etag=f'"{digest}"',
            X_Linked_Size=str(len(content)),
            ETag='"of the redirect"',
        )


class Storage(Handler):
    """Large files by their sha256, for whoever knows it."""

    def answer(self):
        _, digest, file = self.asked.path.split("/", 2)
        commits = [
            files for each in self.hub.repositories.values() for files in each.commits.values()
        ]
        contents = [files[file] for files in commits if file in files]
        held = [content for content in contents if hashlib.sha256(content).hexdigest() == digest]
        if held:
            self.give(file, held[0], ETag='"of the storage"')
        else:
            self.say(404)


@dataclass
class Repository:
    """The files of each commit, the commit of each branch and tag, and the token that opens a
    private or gated one."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str = ""
    gated: bool = False


class HubServer:
    """The hub and its storage, both on the loopback, from `with` to its end."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}  # datasets under "datasets/owner/name"
        self.renamed: dict[str, str] = {}
        self.requests: list[Request] = []
        # called when a request is written down
        self.after: Callable[[Request], None] = lambda request: None
        self.status = 200  # any other: the hub is out of order
        self.delay = 0.0  # seconds before each answer
        self.silent: Callable[[Request], bool] = lambda request: False  # what is never answered
        self.drips = 0  # bytes a second that come in place of such an answer
        self.cuts: dict[
            str, tuple[int, bool]
        ] = {}  # file: the bytes after which its connection ends once, and how
        self._stopping, self._numbers = threading.Event(), itertools.count(1)
        self._servers = [
            ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in (Hub, Storage)
        ]
        hub, storage = (server.server_port for server in self._servers)
        # Two names of the loopback: a redirect to the storage leaves the hub.
        self.endpoint, self.storage = f"http://127.0.0.1:{hub}", f"http://localhost:{storage}"

    def __enter__(self) -> "HubServer":
        for server in self._servers:
            server.hub, server.daemon_threads = self, True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._stopping.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def push(
        self, name: str, files: dict[str, bytes | None], ref: str = "main", **of_repository
    ) -> str:
        """Commit files on top of what a branch holds; one that is None goes. Return the commit."""
        repository = self.repositories.setdefault(name, Repository(**of_repository))
        held = repository.commits.get(repository.refs.get(ref), {}) | files
        commit = hashlib.sha1(str(next(self._numbers)).encode()).hexdigest()
        repository.commits[commit] = {
            path: content for path, content in held.items() if content is not None
        }
        repository.refs[ref] = commit
        return commit

    def asked(self, method: str = "GET") -> list[str]:
        """What was asked for by a method, in order: a path without its revision or its place in the
        storage."""
        paths = (request.path for request in self.requests if request.method == method)
        return [re.sub(r"/resolve/[^/]+/|^/[0-9a-f]{64}/", "/", path).lstrip("/") for path in paths]
