"""A server on the loopback that answers as the hosts of weights and the hub do, and as they should not."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class WeightServer:
    """What is served, and what was asked for.

    Attributes:
        files: path with its slash -> content.
        kind: Content-Type.
        breaks: for each GET in turn the bytes after which it breaks off; then none does.
        headers: sent in place of its own.
        redirects: path -> address that it leads to.
        asked: path and Range of every GET.
        secrets: what requests had in the headers that say who asks.
        address: of the server.
        commit: what was pushed last.
    """

    files: dict[str, bytes]
    kind: str = "application/octet-stream"
    breaks: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)
    address: str = ""
    commit: str = COMMIT

    def push(
        self,
        files: Mapping[str, bytes],
        *,
        name: str = "org/name",
        revision: str = "main",
        commit: str = COMMIT,
        kind: str = "model",
    ) -> None:
        """Let a repository of the hub have files."""
        siblings, tree = [], []
        prefix = "" if kind == "model" else f"/{kind}s"
        for file, data in files.items():
            sha256 = hashlib.sha256(data).hexdigest()
            siblings.append({"rfilename": file, "size": len(data)})
            lfs = {"oid": sha256, "size": len(data), "pointerSize": 1}
            tree.append(
                {"type": "file", "path": file, "size": len(data), "oid": sha256, "lfs": lfs}
            )
            for at in (commit, revision):
                self.files[f"{prefix}/{name}/resolve/{at}/{file}"] = data
        self.commit = commit
        content = {"id": name, "sha": commit, "siblings": siblings}
        self.files[f"/api/{kind}s/{name}/revision/{revision}"] = json.dumps(content).encode()
        self.files[f"/api/{kind}s/{name}/tree/{commit}"] = json.dumps(tree).encode()


@contextlib.contextmanager
def serving(**files: bytes) -> Iterator[WeightServer]:
    """Serves bytes under the names of the keywords, with "_" for the dot."""
    served = WeightServer({f"/{name.replace('_', '.')}": data for name, data in files.items()})

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            served.asked.append((self.path, self.headers.get("Range")))
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            names = ("Authorization", "Cookie")
            served.secrets += [self.headers[name] for name in names if name in self.headers]
            path = self.path.partition("?")[0]
            data = served.files.get(path, b"")
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
            if "/resolve/" in path:
                headers |= {"X-Repo-Commit": served.commit, "X-Linked-Size": str(len(data))}
            if path in served.redirects:
                self.send(302, headers | {"Location": served.redirects[path]})
                return
            if path not in served.files:
                self.send(404, {"X-Error-Code": "EntryNotFound"} if "/resolve/" in path else {})
                return
            wanted = self.headers.get("Range")
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
            headers |= {"Content-Type": served.kind, "Content-Length": str(len(data) - start)}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            # before the headers: who has read them may have asked again by the next line
            size = served.breaks.pop(0) if body and served.breaks else len(data)
            self.send(206 if start else 200, headers | served.headers)
            if body:
                self.wfile.write(data[start:][:size])

        def send(self, status: int, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    served.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
