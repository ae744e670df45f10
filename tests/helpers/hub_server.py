"""A hub on the loopback address: it answers huggingface_hub, for repositories that a test makes up.

Like the real hub, it sends small files directly and large ones by a redirect to a storage on
another host, and it sends the commit of a branch in `X-Repo-Commit`. It records every request.
"""

import fcntl
import hashlib
import itertools
import os
import re
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import unquote

LARGE = (".safetensors", ".bin", ".msgpack", ".parquet", ".zip")  # files that the storage sends


class Request(NamedTuple):
    """A recorded request."""

    method: str  # HEAD or GET
    path: str  # without scheme and host
    start: int  # the first byte of its Range, 0 without one
    token: str  # the bearer token, "" without one


class Handler(BaseHTTPRequestHandler):
    """Record each HEAD and GET request, then call `answer` of the subclass."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> "HubServer":
        return self.server.hub

    def do_HEAD(self):
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.received = Request(self.command, self.path, int(start.group(1)) if start else 0, token)
        self.hub.requests.append(self.received)
        self.hub.after(self.received)
        if self.hub.silent(self.received):
            self.close_connection = True
            while not self.hub._stopping.wait(1):
                self.wfile.write(b"H" * self.hub.drips)
        elif not self.hub._stopping.wait(self.hub.delay):
            self.answer()

    do_GET = do_HEAD

    def respond(self, status: int, **headers: str):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def send_file(self, name: str, content: bytes, **headers: str):
        """Send a file from the start of the Range. If `cuts` has the file, stop early, once."""
        start, end = self.received.start, len(content)
        if start:
            headers["Content_Range"] = f"bytes {start}-{end - 1}/{end}"
        self.respond(206 if start else 200, Content_Length=str(end - start), **headers)
        if self.command == "HEAD":
            return
        if name not in self.hub.cuts:
            self.wfile.write(memoryview(content)[start:])
            return
        size, reset = self.hub.cuts.pop(name)
        self.wfile.write(memoryview(content)[start:size])
        self.close_connection = True
        if reset:  # the client gets an error, not a regular end of the connection
            while unsent_bytes(self.connection):  # they would be lost too
                time.sleep(0.001)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

    def log_message(self, *_):
        pass


def unsent_bytes(connection: socket.socket) -> int:
    """Return the number of bytes that the other side has not yet received."""
    return struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0]


class Hub(Handler):
    """Check the access to a file; send a small file, or redirect to the storage."""

    def answer(self):
        path = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if self.hub.status != 200:
            return self.respond(self.hub.status)
        if path is None:
            return self.respond(404)
        name, revision, file = map(unquote, path.groups())
        if name in self.hub.renamed:
            return self.respond(307, Location=self.path.replace(name, self.hub.renamed[name], 1))
        repository = self.hub.repositories.get(name)
        closed = repository is None or (
            repository.token and repository.token != self.received.token
        )
        if closed and repository and repository.gated:
            return self.respond(403 if self.received.token else 401, X_Error_Code="GatedRepo")
        if closed:
            return self.respond(404 if self.received.token else 401, X_Error_Code="RepoNotFound")
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            return self.respond(404, X_Error_Code="RevisionNotFound")
        content = repository.commits[commit].get(file)
        if content is None:
            return self.respond(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        if not file.endswith(LARGE):
            return self.send_file(
                file, content, X_Repo_Commit=commit, ETag=f'"{hashlib.sha1(content).hexdigest()}"'
            )
        digest = hashlib.sha256(content).hexdigest()
        self.respond(
            302,
            Location=f"{self.hub.storage}/{digest}/{file}",
            X_Repo_Commit=commit,
            X_Linked_Etag=f'"{digest}"',
            X_Linked_Size=str(len(content)),
            ETag='"of the redirect"',
        )


class Storage(Handler):
    """Send large files by their sha256, without a token."""

    def answer(self):
        _, digest, file = self.received.path.split("/", 2)
        commits = [
            files for each in self.hub.repositories.values() for files in each.commits.values()
        ]
        contents = [files[file] for files in commits if file in files]
        matching = [
            content for content in contents if hashlib.sha256(content).hexdigest() == digest
        ]
        if matching:
            self.send_file(file, matching[0], ETag='"of the storage"')
        else:
            self.respond(404)


@dataclass
class Repository:
    """A model or data set on the hub."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # the files of each commit
    refs: dict[str, str] = field(default_factory=dict)  # the commit of each branch and tag
    token: str = ""  # the token that a private or gated repository needs
    gated: bool = False  # whether its existence is public, but not its files


class HubServer:
    """The hub and its storage on the loopback address, as a context manager."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}  # datasets under "datasets/owner/name"
        self.renamed: dict[str, str] = {}  # old name: new name
        self.requests: list[Request] = []  # all requests, in order
        # called after each request is recorded
        self.after: Callable[[Request], None] = lambda request: None
        self.status = 200  # with any other value the hub answers only this status
        self.delay = 0.0  # seconds before each answer
        # whether a request is never answered
        self.silent: Callable[[Request], bool] = lambda request: False
        self.drips = 0  # bytes per second sent instead of such an answer
        # file: number of bytes after which its connection ends, once; and whether with an error
        self.cuts: dict[str, tuple[int, bool]] = {}
        self._stopping, self._numbers = threading.Event(), itertools.count(1)
        self._servers = [
            ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in (Hub, Storage)
        ]
        hub, storage = (server.server_port for server in self._servers)
        # Two names of the loopback address, so that the storage is another host.
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
        """Commit files to a branch and return the commit; a file that is None is removed."""
        repository = self.repositories.setdefault(name, Repository(**of_repository))
        merged = repository.commits.get(repository.refs.get(ref), {}) | files
        commit = hashlib.sha1(str(next(self._numbers)).encode()).hexdigest()
        repository.commits[commit] = {
            path: content for path, content in merged.items() if content is not None
        }
        repository.refs[ref] = commit
        return commit

    def requested(self, method: str = "GET") -> list[str]:
        """Return the paths requested with a method, in order, without revision and sha256."""
        paths = (request.path for request in self.requests if request.method == method)
        return [re.sub(r"/resolve/[^/]+/|^/[0-9a-f]{64}/", "/", path).lstrip("/") for path in paths]
