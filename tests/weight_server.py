"""A server on the loopback that answers as the hosts of weights do, and as they should not."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class WeightServer:
    """What is served, and what was asked for.

    Attributes:
        files: path with its slash -> content.
        tag: ETag of every file; empty for none.
        kind: Content-Type.
        breaks: for each answer in turn the bytes after which it breaks off; then none does.
        careless: answers with a range whatever If-Range says.
        longest: bytes of a range at most.
        headers: sent in place of its own.
        redirects: path -> address that it leads to.
        asked: path and Range of every request.
    """

    files: dict[str, bytes]
    tag: str = '"one"'
    kind: str = "application/octet-stream"
    breaks: list[int] = field(default_factory=list)
    careless: bool = False
    longest: int = 1 << 30
    headers: dict[str, str] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    address: str = ""


@contextlib.contextmanager
def serving(**files: bytes) -> Iterator[WeightServer]:
    """Serves bytes under the names of the keywords, with "_" for the dot."""
    served = WeightServer({f"/{name.replace('_', '.')}": data for name, data in files.items()})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            served.asked.append((self.path, wanted))
            if self.path in served.redirects:
                self.send_response(302)
                self.send_header("Location", served.redirects[self.path])
                self.end_headers()
                return
            path = self.path.partition("?")[0]
            if path not in served.files:
                self.send_error(404)
                return
            data = served.files[path]
            start = 0
            if wanted and (served.careless or self.headers.get("If-Range") == served.tag):
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                self.send_error(416)
                return
            end = min(len(data), start + served.longest) if start else len(data)
            headers = {"Content-Type": served.kind, "Content-Length": str(end - start)}
            if start:
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            headers |= ({"ETag": served.tag} if served.tag else {}) | served.headers
            # before the headers: who has read them may have asked again by the next line
            size = served.breaks.pop(0) if served.breaks else len(data)
            self.send_response(206 if start else 200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[start:end][:size])

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
