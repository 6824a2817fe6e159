"""HTTP server of the page and of the API that it asks: routes, limits and errors.

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
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBearer
from pydantic.json_schema import models_json_schema
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from clipself_seg import __version__
from clipself_seg.errors import InputError
from clipself_seg.explore.answers import Answer, Answers, Limits, Question, read_request
from clipself_seg.explore.page import SERVER_SCRIPTS, inlined
from clipself_seg.pages import render

T = TypeVar("T")
Images = Sequence[
    Mapping[str, str]
]  # to begin with, see `content.button_of`; their "jpeg" is the image itself


class Turns:
    """The queue of one model: a thread of its own, which does the work in the order of coming."""

    def __init__(self, most_waiting: int, seconds: float) -> None:
        """
        Args:
            most_waiting: number of pieces of work that may wait while one is done.
            seconds: time from when work comes until it is given up.
        """
        self.most_waiting = most_waiting
        self.seconds = seconds
        self._thread = ThreadPoolExecutor(1)
        self._inside = list[Future[Any]]()

    async def run(self, work: Callable[[], T]) -> T:
        """The result of work that is done in its turn.

        A thread cannot be stopped: work that has begun is done to its end before the next turn, whether
        somebody still waits for it or not. Work that has not begun is then left out.

        Raises:
            HTTPException: too many wait, or it was not done in its time.
        """
        self._inside = [one for one in self._inside if not one.done()]
        if len(self._inside) > self.most_waiting:
            raise HTTPException(503, BUSY)
        future = self._thread.submit(work)
        self._inside.append(future)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.seconds)
        except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
            raise HTTPException(504, TOO_SLOW) from None


logger = logging.getLogger(__name__)

READ_AT_ONCE = 2  # images
READING_SECONDS = 30  # until a request has to be there
OPEN_SECONDS = READING_SECONDS + 5  # until a connection without one is closed
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'",
}
# At the end of every Content-Security-Policy, but for --public.
UNFRAMED = "; frame-ancestors 'none'"
BUSY = "too many requests wait for this model: try again in a moment"
TOO_SLOW = "the models took too long: try a smaller image or fewer words"
FAILED = "something went wrong here: the server's log says what"
ENDS = "the server is stopped: ask again when it runs"
NO_NAME = "this server is not called by that name (who runs it can add one with --allow-host)"
NO_TOKEN = "open the whole address that the server printed when it began: its token is missing here, or wrong"
FOREIGN = "a page of another address may not ask this server"
ABOUT = (
    "Finds what words say in an image. Every request but that of /health needs the token that the server printed when "
    'it began, if there is one: "Authorization: Bearer TOKEN".'
)


def make_app(
    answers: Answers,
    limits: Limits,
    *,
    words: str = "",
    stuff: str = "",
    examples: Images = (),
    hosts: Sequence[str] = ("localhost",),
    token: str = "",
    public: bool = False,
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
        token: token that every request but that of /health has to have; "" for none.
        public: True to answer under every host name and to pages of others, which may show the page in a frame.

    Raises:
        InputError: the words do not fit the limits or a model.
    """
    # FastAPI's own pages about the API load scripts from elsewhere: without this address there are none.
    app = FastAPI(title="clipself_seg", version=__version__, description=ABOUT, openapi_url=None)
    turns = {name: Turns(limits.waiting, limits.seconds) for name in ("maps", *answers.predictors)}
    page, rule = _page(answers, limits, words, stuff, examples)
    # Requests that have come whole and are not answered yet, and those whose images are decoded.
    room = asyncio.Semaphore((limits.waiting + 1) * len(turns))
    reading = asyncio.Semaphore(READ_AT_ONCE)

    @app.get("/", include_in_schema=False)
    async def show() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": rule})

    running: dict[str, object] = {"status": "ok", "version": __version__, "tasks": answers.weights}

    @app.get("/health", summary="Says that the server runs, and which models it has")
    async def health() -> dict[str, object]:
        return running

    # FastAPI itself would read a body without limits, so that its content is described here.
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/Question"}}}

    @app.post(
        "/api/{task}",
        summary="Finds the segments of an image; the task is semantic, panoptic or detection",
        response_model=Answer,
        responses={"4XX": {"description": 'JSON {"error": "a sentence"}'}},
        dependencies=[Depends(HTTPBearer(auto_error=False))],
        openapi_extra={"requestBody": {"required": True, "content": body}},
    )
    async def answer(task: str, request: Request) -> Response:
        if task not in turns:
            raise HTTPException(404, "this server has no such model: /health says which it has")
        media_type = request.headers.get("content-type", "").partition(";")[0]
        if media_type.strip().lower() != "application/json":
            raise HTTPException(415, "send JSON")
        body = await _body(request, limits)
        if room.locked():
            raise HTTPException(503, BUSY)
        async with room:
            async with reading:
                asked = await asyncio.to_thread(read_request, body, limits)
            del body
            work = functools.partial(answers.answer, task, asked)
            said = await turns[task].run(work)
        return _json(200, said)

    _, models = models_json_schema(
        [(Question, "validation")], ref_template="#/components/schemas/{model}"
    )
    api = app.openapi()
    api["components"]["schemas"] |= models["$defs"]
    style = inlined(())
    docs = render("api.html", **style, api=api)

    @app.get("/openapi.json", include_in_schema=False)
    async def describe() -> Response:
        return _json(200, api)

    @app.get("/docs", include_in_schema=False)
    async def explain() -> Response:
        return HTMLResponse(docs, headers={"Content-Security-Policy": style["rule"]})

    _add_errors(app)
    app.add_middleware(Guard, hosts=hosts, token=token, public=public)
    return app


class Guard:
    """Lets in who calls the server by its name and has its token; its headers keep browsers careful."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str], token: str, public: bool) -> None:
        self.app = app
        self.hosts = {host.lower() for host in hosts}
        self.token = token.encode()
        self.public = public

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
                if not self.public:
                    headers["Content-Security-Policy"] += UNFRAMED
            await send(message)

        try:
            await (self._refusal(request) or self.app)(scope, receive, careful)
        except asyncio.CancelledError:  # the server ends, and waits no longer
            await _problem(request, 503, ENDS)(scope, receive, careful)
        except Exception as error:
            logger.error("a request fails", exc_info=error)
            await _problem(request, 500, FAILED)(scope, receive, careful)

    def _refusal(self, request: Request) -> Response | None:
        named = _name_in(request.headers.get("host", ""))
        origin = request.headers.get("origin")
        if not self.public and not (named in self.hosts or _is_address(named)):
            return _problem(request, 421, NO_NAME)
        # Without the port, which a server in front may change.
        if not self.public and origin is not None and _name_in(origin) != named:
            return _problem(request, 403, FOREIGN)
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = request.query_params.get("token", "")
        free = not self.token or request.scope["path"] == "/health"
        if not free and not hmac.compare_digest(given.encode(), self.token):
            return _problem(request, 401, NO_TOKEN)
        return None


def _name_in(address: str) -> str:
    """The host name in "http://localhost:8000" or "localhost:8000", in lower case."""
    return re.sub(r"^\w+://|:\d+$", "", address.lower()).strip("[]")


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
    rule = f"{values.pop('rule')}; connect-src 'self'"
    first = {}
    if examples:
        image = examples[0]["jpeg"].partition(",")[2]
        body = Question(image=image, words=words, stuff=stuff).model_dump_json().encode()
        asked = read_request(body, limits)
        first = {task: answers.answer(task, asked) for task in ("maps", *answers.predictors)}
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
