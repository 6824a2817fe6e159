"""The server refuses clearly, waits for nobody long and gives nothing to pages of others; models have turns."""

import asyncio
import contextlib
import functools
import json
import re
import socket
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from types import SimpleNamespace

import numpy as np
import pytest

from clipself_seg.commands import serve
from clipself_seg.errors import InputError
from clipself_seg.explore.answers import Answers, Limits
from clipself_seg.explore.content import jpeg_address
from clipself_seg.prediction.load import load
from tests.explore.test_answers import SCENE, png, request

testclient = pytest.importorskip("starlette.testclient", reason="the extra demo is not installed")
pytest.importorskip("httpx", reason="what the test client asks with is not installed")
FastAPI = pytest.importorskip("fastapi", reason="the extra demo is not installed").FastAPI
uvicorn = pytest.importorskip("uvicorn", reason="the extra demo is not installed")
from clipself_seg.explore import server  # noqa: E402
from clipself_seg.explore.server import Turns  # noqa: E402

WORDS = "</script>\"'<b>"
EXAMPLES = [{"name": "<i>", "jpeg": jpeg_address(np.zeros((8, 8, 3), np.uint8), 8)}]
JSON = {"content-type": "application/json"}


def names(task, asked):
    return {"said": list(asked.words.first_names)}


def app(say=names, token="", words="", examples=(), public=False, **options):
    """A server whose models say what they are told."""
    limits = Limits(**{"size": 5000, "seconds": 20, "waiting": 1, **options})
    stub = SimpleNamespace(
        predictors={"semantic": None}, answer=say, weights={"semantic": "0123456789ab"}
    )
    return server.make_app(stub, limits, words=words, examples=examples, token=token, public=public)


def client(say=names, **options):
    """Asks that server."""
    made = app(say, **options)
    return testclient.TestClient(made, base_url="http://127.0.0.1", raise_server_exceptions=False)


def test_the_page_escapes_and_lets_nothing_from_elsewhere_in():
    answer = client(words=WORDS, examples=EXAMPLES).get("/")
    assert answer.status_code == 200 and "<b>" not in answer.text and "<i>" not in answer.text
    assert answer.text.count("</script>") == answer.text.count("<script") == 2
    rule = answer.headers["content-security-policy"]
    assert rule.startswith("default-src 'none'; img-src data:;") and "connect-src 'self'" in rule
    assert rule.endswith("; frame-ancestors 'none'") and "unsafe" not in rule and "http" not in rule
    for name, value in server.HEADERS.items():
        assert name == "Content-Security-Policy" or answer.headers[name] == value


def test_the_page_opens_with_the_answers_to_the_first_example():
    asked = []
    page = client(lambda *given: asked.append(given) or {}, words=WORDS, examples=EXAMPLES).get("/")
    block = page.text.partition('id="server">')[2].partition("</script>")[0]
    assert json.loads(block)["first"] == {"maps": {}, "semantic": {}}
    assert [task for task, _ in asked] == ["maps", "semantic"]
    assert all(list(one.words.first_names) == [WORDS] for _, one in asked)
    with pytest.raises(InputError, match="give 1 at most"):
        server.make_app(
            SimpleNamespace(predictors={}, weights={}),
            Limits(words=1),
            words="a, b",
            examples=EXAMPLES,
        )


def test_a_model_answers():
    answer = client().post("/api/semantic", content=request(), headers=JSON)
    assert answer.json() == {"said": ["dog", "grass"]} and answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("path", "content", "headers", "status", "says"),
    [
        ("/api/detection", b"{}", JSON, 404, "no such model"),
        ("/api/semantic", b"{}", {"content-type": "text/plain"}, 415, "send JSON"),
        ("/api/semantic", b"x" * 5001, JSON, 413, "more than 0.005 MB"),
        ("/api/semantic", b"x", JSON, 400, "Invalid JSON"),
        ("/api/semantic", b"x", {"content-type": "Application/JSON;q=1"}, 400, "Invalid JSON"),
        ("/api/semantic", request(words="<b>, <b>"), JSON, 400, "'<b>' is there twice"),
        ("/api/../../etc/passwd", b"", JSON, 404, "Not Found"),
        ("/redoc", b"", JSON, 404, "Not Found"),
    ],
)
def test_what_does_not_go_is_said_in_a_sentence(path, content, headers, status, says):
    answer = client().post(path, content=content, headers=headers)
    assert answer.status_code == status
    said = answer.json()["error"] if path.startswith("/api/") and ".." not in path else answer.text
    assert says in said and answer.headers["x-content-type-options"] == "nosniff"


def test_a_body_that_does_not_say_its_size_is_not_read_to_its_end():
    parts = (b"x" * 1000 for _ in range(1000))
    answer = client().post("/api/semantic", content=parts, headers=JSON)
    assert answer.status_code == 413


def test_a_page_that_is_closed_while_it_sends_is_no_failure():
    async def left_at_once():
        return {"type": "http.disconnect"}

    asked = server.Request({"type": "http", "headers": []}, left_at_once)
    with pytest.raises(server.HTTPException, match="ended before its end"):
        asyncio.run(server._body(asked, Limits()))


def test_a_page_for_people_and_an_address_that_is_escaped():
    answer = client().get("/<script>alert(1)</script>")
    assert answer.status_code == 404 and "<script" not in answer.text
    assert answer.headers["content-type"].startswith("text/html")
    assert client().get("/api/semantic").json() == {"error": "Method Not Allowed"}


def test_another_name_of_the_server_is_refused():
    own = ("localhost:8000", "[::1]:8000", "192.0.2.7")
    for host in (*own, "", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80"):
        status = 200 if host in own else 421
        assert client().get("/", headers={"host": host}).status_code == status


def test_a_page_of_another_address_may_not_ask():
    own = ("http://localhost:8000", "https://localhost")  # the second by a server in front
    foreign = ("http://evil.example", "http://localhost.evil.example", "http://127.0.0.1", "null")
    for origin in (*own, *foreign):
        headers = JSON | {"host": "localhost:8000", "origin": origin}
        answer = client().post("/api/semantic", content=request(), headers=headers)
        assert answer.status_code == (200 if origin in own else 403)
        assert "access-control" not in str(answer.headers)


def test_without_the_token_nothing_is_answered_and_no_body_is_read():
    def unread():
        pytest.fail("the body is read")
        yield b""

    token = "a" * 20
    asking = client(token=token)
    queries = ({"token": ""}, {"token": token[1:]}, {"token": "\u00e4"}, {"tokens": token})
    bearers = ({}, {"authorization": f"Bearer {token[1:]}"}, {"authorization": f"Basic {token}"})
    for wrong in (*({"params": own} for own in queries), *({"headers": own} for own in bearers)):
        for path in ("/", "/no/such/page", "/docs", "/openapi.json"):
            answer = asking.get(path, **wrong)
            assert answer.status_code == 401 and "whole address" in answer.text
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert "set-cookie" not in answer.headers
        assert asking.post("/api/maps", content=unread(), **wrong).status_code == 401
    for right in ({"params": {"token": token}}, {"headers": {"authorization": f"Bearer {token}"}}):
        assert asking.get("/", **right).status_code == 200
        assert asking.post("/api/maps", json=json.loads(request()), **right).status_code == 200
    assert asking.get("/health").json()["tasks"] == {"semantic": "0123456789ab"}


def test_the_api_is_described_without_anything_from_elsewhere():
    api = client().get("/openapi.json").json()
    post = json.dumps(api["paths"]["/api/{task}"]["post"])
    names = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(api)))
    assert all(f'schemas/{name}"' in post for name in ("Question", "Answer"))
    assert len(names) == 5 and names <= api["components"]["schemas"].keys()
    page = client().get("/docs").text
    assert all(f'id="{name}"' in page for name in names) and "<script" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_a_public_server_answers_whoever_comes_and_may_be_framed():
    foreign = JSON | {"host": "me-space.example", "origin": "https://other.example"}
    answer = client(public=True).post("/api/semantic", content=request(), headers=foreign)
    assert answer.status_code == 200 and "access-control" not in str(answer.headers)
    page = client(public=True).get("/", headers=foreign)
    assert page.status_code == 200 and "frame-ancestors" not in str(page.headers)


def real() -> FastAPI:
    """A server with a shipped model."""
    predictors = {"semantic": load("mini", device="cpu")}
    return server.make_app(Answers(clips={}, predictors=predictors), Limits())


def test_two_visitors_with_other_words_get_their_own_answers():
    words = ("grass, sand", "water, red star, bricks")
    asked = [request(image=png(SCENE), words=own) for own in words]
    with testclient.TestClient(real(), base_url="http://127.0.0.1") as asking:
        post = functools.partial(asking.post, "/api/semantic", headers=JSON)
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(lambda body: post(content=body).json(), 3 * asked))
        assert together == 3 * [post(content=body).json() for body in asked]
    for own, answer in zip(words, together):
        assert {one["name"] for one in answer["segments"]} <= {*own.split(", ")}
        assert answer["segments"]


def test_the_server_opens_no_connection(monkeypatch):
    asked = []
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo
    monkeypatch.setattr(
        socket.socket, "connect", lambda own, to: (asked.append(to[0]), connect(own, to))[1]
    )
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *how: (asked.append(host), getaddrinfo(host, *how))[1]
    )
    address = "http://192.0.2.1/secret.png"
    example = {"name": address, "image": address, "box": [0, 0, 1, 1]}
    asking = [
        sent(request(**values), path="/api/semantic")
        for values in ({"words": address, "absent": "mark"}, {"examples": [example]})
    ]
    with running(monkeypatch, real()) as connect_to:
        got = [status(connect_to(one)) for one in (*asking, sent(path="/"), sent(path="/docs"))]
    assert got == [b"200", b"400", b"200", b"200"]
    assert asked and set(asked) == {"127.0.0.1"}  # the test's own


def test_what_goes_wrong_here_says_nothing_of_it(caplog):
    def broken(task, asked):
        raise KeyError("a secret of the machine")

    asking = client(broken)
    for _ in range(3):  # none of them keeps its turn
        answer = asking.post("/api/maps", content=request(), headers=JSON)
        assert answer.status_code == 500 and "secret" not in answer.text
    assert "a request fails" in caplog.text
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_one_request_at_a_time_and_too_many_are_refused():
    go, inside = threading.Event(), threading.Semaphore(1)

    def slow(task, asked):
        assert inside.acquire(blocking=False)
        go.wait(20)
        inside.release()
        return {}

    with client(slow) as asking, ThreadPoolExecutor(4) as pool:
        send = {"content": request(), "headers": JSON}
        first = [pool.submit(asking.post, "/api/maps", **send) for _ in range(3)]
        (refused,), _ = wait(first, timeout=20, return_when=FIRST_COMPLETED)
        assert refused.result().status_code == 503
        assert "try again" in refused.result().json()["error"]
        go.set()
        assert sorted(answer.result().status_code for answer in first) == [200, 200, 503]
        assert asking.post("/api/maps", **send).status_code == 200  # room comes again


def test_an_answer_is_plain_letters():
    say = {"name": "</script>\u2028 كلب"}
    answer = client(lambda task, asked: say).post("/api/maps", content=request(), headers=JSON)
    assert answer.content.isascii() and json.loads(answer.content) == say


def test_work_is_done_in_the_order_of_coming():
    done = []

    async def ask() -> None:
        turns = Turns(9, 30)
        await asyncio.gather(*(turns.run(lambda n=n: done.append(n)) for n in range(8)))

    asyncio.run(ask())
    assert done == list(range(8))


def test_what_is_given_up_is_not_begun_and_what_has_begun_keeps_its_turn():
    go, begun = threading.Event(), []

    async def ask() -> None:
        turns = Turns(5, 0.02)
        with pytest.raises(server.HTTPException, match="504: .*too long"):
            await turns.run(go.wait)
        with pytest.raises(server.HTTPException, match="too long"):
            await turns.run(lambda: begun.append("late"))
        turns.seconds = 30
        go.set()
        assert await turns.run(lambda: 4) == 4

    asyncio.run(ask())
    assert begun == []


@contextlib.contextmanager
def running(monkeypatch, made, *, most=64, seconds=60.0, grace=1):
    """A real server with the limits of `serve`; yields what connects to it."""
    monkeypatch.setattr(serve, "MOST_CONNECTIONS", most)
    monkeypatch.setattr(serve, "GRACE", grace)
    monkeypatch.setattr(server, "OPEN_SECONDS", seconds)
    with contextlib.ExitStack() as opened:
        listening = opened.enter_context(serve._listening("127.0.0.1", 0))
        here = uvicorn.Server(serve._config(made))
        thread = threading.Thread(target=here.run, kwargs={"sockets": [listening]})
        thread.start()

        def connect(data: bytes = b"") -> socket.socket:
            made = opened.enter_context(socket.create_connection(listening.getsockname(), 10))
            made.sendall(data)
            return made

        try:
            yield connect
        finally:
            here.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def sent(body: bytes = b"", size: int | None = None, path: str = "/api/maps") -> bytes:
    """A request as it is on the wire, with a body that may say that more comes."""
    method, size = "POST" if body else "GET", len(body) if size is None else size
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {size}\r\n\r\n".encode() + body


def status(connection: socket.socket) -> bytes:
    return connection.recv(12)[9:]


def is_closed(connection: socket.socket) -> bool:
    """Whether the other end closes it, within seconds; what it sent before is read."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return True


def test_bodies_that_are_slow_take_nobody_s_room(monkeypatch):
    with running(monkeypatch, app(waiting=0)) as connect:
        slow = [connect(sent(b"{", 4000)) for _ in range(9)]
        time.sleep(0.1)
        assert status(connect(sent(request()))) == b"200"
        slow[0].sendall(b"}" * 3999)
        assert status(slow[0]) == b"400"


def test_a_connection_without_a_whole_request_is_closed(monkeypatch):
    starts = (b"", b"GET / HTTP/1.1\r\nX: ", sent(b"{", 4000), sent(path="/"))
    with running(monkeypatch, app(), seconds=0.3) as connect:
        slow = [connect(start) for start in starts]
        for _ in range(4):  # letters that come one by one change nothing
            time.sleep(0.05)
            for connection in slow[1:3]:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(b"a")
        assert all(map(is_closed, slow))


def test_a_client_that_takes_no_answer_is_left(monkeypatch):
    page = len(client().get("/").content)
    with running(monkeypatch, app(), seconds=0.3) as connect:
        asking = connect(sent(path="/") * 300)
        time.sleep(0.8)
        got = 0
        with contextlib.suppress(ConnectionError):
            while part := asking.recv(1 << 20):
                got += len(part)
    assert got < 200 * page


def test_an_answer_may_take_longer_than_a_request(monkeypatch):
    with running(monkeypatch, app(lambda *_: {"x": time.sleep(1.2)}), seconds=0.6) as connect:
        assert status(connect(sent(request()))) == b"200"


def test_where_too_many_are_open_the_longest_waited_for_goes_and_the_new_one_is_answered(
    monkeypatch,
):
    with running(monkeypatch, app(), most=4) as connect:
        slow = []
        for _ in range(9):
            slow.append(connect())
            time.sleep(0.01)
        assert status(connect(sent(request()))) == b"200"
        assert all(map(is_closed, slow[:6]))
        slow[8].sendall(sent(request()))
        assert status(slow[8]) == b"200"


def test_the_end_waits_for_no_open_body_and_tells_who_waits_for_a_model(monkeypatch, capsys):
    with running(monkeypatch, app(), grace=15) as connect:
        connect(sent(b"{", 4000))
        time.sleep(0.1)
        begun = time.monotonic()
    assert time.monotonic() - begun < 10
    asked = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        made = app(lambda *_: {"asked": asked.set(), "slept": time.sleep(1.5)})
        with running(monkeypatch, made) as connect:
            answer = pool.submit(connect(sent(request())).makefile("rb").read)
            assert asked.wait(10)
    assert answer.result()[9:12] == b"503" and b"the server is stopped" in answer.result()
    assert "Traceback" not in capsys.readouterr().err
