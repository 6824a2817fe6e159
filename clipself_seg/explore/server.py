"""HTTP server of the page, for words and images of its users: routes, limits and errors.

Nothing that is sent becomes a path or reaches the disk. Images and words are in memory for as long as they
are answered.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import ipaddress
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from clipself_seg import __version__
from clipself_seg.errors import InputError
from clipself_seg.explore.answers import Answers, Limits, read_request
from clipself_seg.explore.page import SERVER_SCRIPTS, inlined
from clipself_seg.pages import render

T = TypeVar("T")
Images = Sequence[
    Mapping[str, str]
]  # to begin with, see `content.button_of`; their "jpeg" is the image itself


class Busy(HTTPException):
    """The queue is full."""

    def __init__(self) -> None:
        super().__init__(503, "too many requests wait for this model: try again in a moment")


class TooSlow(HTTPException):
    """A request was not answered within its time."""

    def __init__(self) -> None:
        said = "the models took too long: try a smaller image or fewer words"
        super().__init__(504, said)


class Turns:
    """The queue of one model."""

    def __init__(self, most_waiting: int, seconds: float) -> None:
        """
        Args:
            most_waiting: number of pieces of work that may wait while one is done.
            seconds: time from when work comes until it is given up.
        """
        self.most_waiting = most_waiting
        self.seconds = seconds
        self._lock = asyncio.Lock()  # lets in who waits longest
        self._inside = 0

    async def run(self, work: Callable[[], T]) -> T:
        """The result of work that is done in a thread, in its turn.

        A thread cannot be stopped: work that has begun is done to its end before the next turn, whether
        somebody still waits for it or not. Work that has not begun is then left out.

        Raises:
            Busy: too many wait.
            TooSlow: it was not done in its time.
        """
        if self._inside > self.most_waiting:
            raise Busy
        self._inside += 1
        wanted = asyncio.Event()
        wanted.set()
        task = asyncio.create_task(self._in_turn(work, wanted))
        task.add_done_callback(self._leave)
        try:
            return await asyncio.wait_for(asyncio.shield(task), self.seconds)
        except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
            if task.done():
                raise  # the work's own
            raise TooSlow from None
        finally:
            wanted.clear()

    async def _in_turn(self, work: Callable[[], T], wanted: asyncio.Event) -> T:
        async with self._lock:
            if not wanted.is_set():
                raise TooSlow
            return await asyncio.to_thread(work)

    def _leave(self, task: asyncio.Task[T]) -> None:
        self._inside -= 1
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits any more


logger = logging.getLogger(__name__)

READ_AT_ONCE = 2  # images
READING_SECONDS = 30  # until a request has to be there
OPEN_SECONDS = READING_SECONDS + 5  # until a connection without one is closed
# What each address asks, and of which model it is the turn.
TASKS = {
    "maps": "maps",
    "view": "panoptic",
    "semantic": "semantic",
    "panoptic": "panoptic",
    "boxes": "boxes",
}
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
FAILED = "something went wrong here: the server's log says what"
ENDS = "the server is stopped: ask again when it runs"
NO_NAME = "this server is not called by that name (who runs it can add one with --allow-host)"
NO_TOKEN = "open the whole address that the server printed when it began: its token is missing here, or wrong"


def make_app(
    answers: Answers,
    limits: Limits,
    *,
    words: str = "",
    stuff: str = "",
    examples: Images = (),
    hosts: Sequence[str] = ("localhost",),
    token: str = "",
) -> FastAPI:
    """The application.

    Args:
        answers: the models.
        limits: limits of a request.
        words: first content of the field of words.
        stuff: the same of those that are stuff.
        examples: images to begin with. The first one is answered here, and shown when the page opens.
        hosts: names that the server is called by, besides IP addresses. Another one is a page of somebody else's,
            whose name leads here.
        token: token that every address has to have as ``?token=``; "" for none.

    Raises:
        InputError: the words do not fit the limits or a model.
    """
    # No pages about the interface: they load scripts from elsewhere.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    turns = {name: Turns(limits.waiting, limits.seconds) for name in ("maps", *answers.predictors)}
    page, rule = _page(answers, limits, words, stuff, examples)
    # Requests that have come whole and are not answered yet, and those whose images are decoded.
    room = asyncio.Semaphore((limits.waiting + 1) * len(turns))
    reading = asyncio.Semaphore(READ_AT_ONCE)

    @app.get("/")
    async def show() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": rule})

    @app.post("/api/{task}")
    async def answer(task: str, request: Request) -> Response:
        if TASKS.get(task) not in turns:
            raise HTTPException(404, "this server has no such model")
        media_type = request.headers.get("content-type", "").partition(";")[0]
        if media_type.strip().lower() != "application/json":
            raise HTTPException(415, "send JSON")
        body = await _body(request, limits)
        if room.locked():
            raise Busy
        async with room:
            async with reading:
                asked = await asyncio.to_thread(read_request, body, limits)
            del body
            work = functools.partial(answers.answer, task, asked)
            said = await turns[TASKS[task]].run(work)
        return _json(200, said)

    _add_errors(app)
    app.add_middleware(Guard, hosts=hosts, token=token)
    return app


class Guard:
    """Lets in who calls the server by its name and has its token; its headers keep browsers careful."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str], token: str) -> None:
        self.app = app
        self.hosts = {host.lower() for host in hosts}
        self.token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it before its body is read."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope)

        async def careful(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await (self._refusal(request) or self.app)(scope, receive, careful)
        except asyncio.CancelledError:  # the server ends, and waits no longer
            await _problem(request, 503, ENDS)(scope, receive, careful)
        except Exception as error:
            logger.error("a request fails", exc_info=error)
            await _problem(request, 500, FAILED)(scope, receive, careful)

    def _refusal(self, request: Request) -> Response | None:
        named = re.sub(r":\d+$", "", request.headers.get("host", "").lower()).strip("[]")
        if named not in self.hosts and not _is_address(named):
            return _problem(request, 421, NO_NAME)
        given = request.query_params.get("token", "").encode()
        if self.token and not hmac.compare_digest(given, self.token):
            return _problem(request, 401, NO_TOKEN)
        return None


def _is_address(host: str) -> bool:
    """True for an IP address, which no page of somebody else's can make lead here."""
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


class Connection(H11Protocol):
    """A connection that is closed if no whole request comes or its answer is not taken: uvicorn has no limit for that.

    Where there are as many as uvicorn's limit_concurrency, the one is closed that the server has waited for longest.
    """

    _last: object = None  # the newest request when the server last looked
    _since = 0.0  # when the server began to wait for the client

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Makes room for it."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._look()
        there: list[Any] = [c for c in self.connections if not c.transport.is_closing()]
        if self.limit_concurrency is not None and len(there) >= self.limit_concurrency:
            min((c for c in there if c._waits()), key=lambda c: c._since).transport.abort()

    def shutdown(self) -> None:
        """Ends it when its request is answered, or at once where none has come whole."""
        super().shutdown()
        if self.cycle and self.cycle.more_body:
            self.transport.abort()

    def _waits(self) -> bool:
        """True if it is the client's turn: to send the rest of a request, to take an answer, or to ask again."""
        cycle = self.cycle
        return not cycle or cycle.more_body or cycle.response_complete or self.flow.write_paused

    def _look(self) -> None:
        """Closes it if the client has had its time, else looks again in about a second."""
        if not self._waits() or self._last is not self.cycle:
            self._last = self.cycle
            self._since = self.loop.time()
        if self.loop.time() - self._since > OPEN_SECONDS:
            self.transport.abort()
        elif not self.transport.is_closing():
            self.loop.call_later(OPEN_SECONDS / 32, self._look)


def _add_errors(app: FastAPI) -> None:
    """Says in a sentence what goes wrong, as JSON or as a page."""

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        return _problem(request, error.status_code, error.detail)

    @app.exception_handler(InputError)
    async def unusable(request: Request, error: InputError) -> Response:
        return _problem(request, 400, str(error))


async def _body(request: Request, limits: Limits) -> bytes:
    """The body of a request, given up as soon as it is too large or takes too long."""
    too_large = HTTPException(413, f"more than {limits.size / 1e6:g} MB: send a smaller image")
    stated = request.headers.get("content-length", "0")
    if not stated.isdecimal() or int(stated) > limits.size:
        raise too_large

    async def read() -> bytes:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > limits.size:
                raise too_large
        return bytes(body)

    try:
        return await asyncio.wait_for(read(), READING_SECONDS)
    except (TimeoutError, asyncio.TimeoutError):
        raise HTTPException(408, "the request did not come in time: send it again") from None
    except ClientDisconnect:  # a page that was closed, which is no failure here
        raise HTTPException(400, "the request ended before its end") from None


def _page(
    answers: Answers, limits: Limits, words: str, stuff: str, examples: Images
) -> tuple[str, str]:
    """The page with the answers to the first example, and the rule (CSP) of what may run and load in it."""
    values = inlined(SERVER_SCRIPTS)
    rule = f"{values.pop('rule')}; connect-src 'self'; frame-ancestors 'none'"
    tasks = [task for task, model in TASKS.items() if model in ("maps", *answers.predictors)]
    first = {}
    if examples:
        image = examples[0]["jpeg"].partition(",")[2]
        body = json.dumps({"image": image, "words": words, "stuff": stuff}).encode()
        asked = read_request(body, limits)
        first = {task: answers.answer(task, asked) for task in tasks}
    page = render(
        "serve.html",
        **values,
        first=first,
        tasks=list(answers.predictors),
        limits=limits._asdict(),
        words=words,
        stuff=stuff,
        examples=list(examples),
        version=__version__,
    )
    return page, rule


def _json(status: int, value: Mapping[str, object]) -> Response:
    # Escaped letters: nobody can take the answer for a page.
    return Response(json.dumps(value), status, media_type="application/json")


def _problem(request: Request, status: int, text: str) -> Response:
    if request.url.path.startswith("/api/"):
        return _json(status, {"error": text})
    style = inlined(())
    page = render("problem.html", **style, text=text, version=__version__)
    return HTMLResponse(page, status, headers={"Content-Security-Policy": str(style["rule"])})
