"""The server refuses clearly and gives nothing to pages of others; a model's turns come one at a time, in order."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from types import SimpleNamespace

import pytest

from clipself_seg.explore.answers import Limits
from tests.explore.test_answers import request

testclient = pytest.importorskip("starlette.testclient", reason="the extra demo is not installed")
pytest.importorskip("httpx", reason="what the test client asks with is not installed")
pytest.importorskip("fastapi", reason="the extra demo is not installed")
from clipself_seg.explore import server  # noqa: E402
from clipself_seg.explore.server import Busy, TooSlow, Turns  # noqa: E402

JSON = {"content-type": "application/json"}


def names(task, asked):
    return {"said": list(asked.words.names)}


def client(say=names, **options):
    """Asks a server whose models say what they are told."""
    limits = Limits(**{"size": 5000, "seconds": 20, "waiting": 1, **options})
    stub = SimpleNamespace(predictors={"semantic": None}, answer=say)
    made = server.make_app(
        stub, limits, words="</script>\"'<b>", examples=[{"name": "<i>", "jpeg": "data:,"}]
    )
    return testclient.TestClient(made, base_url="http://127.0.0.1", raise_server_exceptions=False)


def test_the_page_escapes_and_lets_nothing_from_elsewhere_in():
    answer = client().get("/")
    assert answer.status_code == 200 and "<b>" not in answer.text and "<i>" not in answer.text
    assert answer.text.count("</script>") == answer.text.count("<script") == 2
    rule = answer.headers["content-security-policy"]
    assert rule.startswith("default-src 'none'; img-src data:;") and "connect-src 'self'" in rule
    assert "frame-ancestors 'none'" in rule and "unsafe" not in rule and "http" not in rule
    for name, value in server.HEADERS.items():
        assert name == "Content-Security-Policy" or answer.headers[name] == value


def test_a_model_answers():
    answer = client().post("/api/semantic", content=request(), headers=JSON)
    assert answer.json() == {"said": ["dog", "grass"]} and answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("path", "content", "headers", "status", "says"),
    [
        ("/api/boxes", b"{}", JSON, 404, "no such model"),
        ("/api/semantic", b"{}", {"content-type": "text/plain"}, 415, "send JSON"),
        ("/api/semantic", b"x" * 5001, JSON, 413, "more than 0.005 MB"),
        ("/api/semantic", b"x", JSON, 400, "is no JSON"),
        ("/api/semantic", b"x", {"content-type": "Application/JSON;q=1"}, 400, "is no JSON"),
        ("/api/semantic", request(words="<b>, <b>"), JSON, 400, '"<b>" twice'),
        ("/api/../../etc/passwd", b"", JSON, 404, "Not Found"),
        ("/docs", b"", JSON, 404, "Not Found"),
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
    for host, status in (("evil.example", 421), ("localhost:8000", 200), ("[::1]:8000", 200)):
        assert client().get("/", headers={"host": host}).status_code == status


def test_what_goes_wrong_here_says_nothing_of_it(caplog):
    def broken(task, asked):
        raise KeyError("a secret of the machine")

    answer = client(broken).post("/api/maps", content=request(), headers=JSON)
    assert answer.status_code == 500 and "secret" not in answer.text
    assert "a request fails" in caplog.text and answer.headers["x-frame-options"] == "DENY"


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


def test_an_answer_that_takes_too_long_is_given_up():
    go = threading.Event()
    with client(lambda task, asked: {"x": go.wait(20)}, seconds=0.05) as asking:
        answer = asking.post("/api/maps", content=request(), headers=JSON)
        go.set()
    assert answer.status_code == 504 and "too long" in answer.json()["error"]


def test_an_answer_is_plain_letters():
    say = {"name": "</script>\u2028 كلب"}
    answer = client(lambda task, asked: say).post("/api/maps", content=request(), headers=JSON)
    assert answer.content.isascii() and json.loads(answer.content) == say


def test_work_is_done_one_at_a_time_in_the_order_of_coming():
    done, at_once = [], []

    def work(number: int) -> int:
        at_once.append(number)
        assert len(at_once) == 1
        at_once.pop()
        done.append(number)
        return number

    async def ask() -> list[int]:
        turns = Turns(9, 30)
        return await asyncio.gather(*(turns.run(lambda n=n: work(n)) for n in range(8)))

    assert asyncio.run(ask()) == done == list(range(8))


def test_more_than_may_wait_are_refused_and_room_comes_again():
    go = threading.Event()

    async def ask() -> None:
        turns = Turns(1, 30)
        first = [asyncio.create_task(turns.run(go.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await turns.run(go.wait)
        go.set()
        assert await asyncio.gather(*first) == [True, True]
        await asyncio.sleep(0)
        assert await turns.run(lambda: 3) == 3

    asyncio.run(ask())


def test_what_is_given_up_is_not_begun_and_what_has_begun_keeps_its_turn():
    go, begun = threading.Event(), []

    async def ask() -> None:
        turns = Turns(5, 0.02)
        with pytest.raises(TooSlow):
            await turns.run(go.wait)
        with pytest.raises(TooSlow):
            await turns.run(lambda: begun.append("late"))
        turns.seconds = 30
        go.set()
        assert await turns.run(lambda: 4) == 4

    asyncio.run(ask())
    assert begun == []


def test_an_error_of_the_work_is_the_caller_s():
    async def ask() -> None:
        turns = Turns(0, 30)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await turns.run(lambda: 1 / 0)

    asyncio.run(ask())
