"""The server refuses clearly, answers in order, and gives nothing to pages of others."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from clipself_seg.explore.answers import Limits
from tests.explore.test_answers import request

testclient = pytest.importorskip("starlette.testclient", reason="the extra demo is not installed")
pytest.importorskip("httpx", reason="what the test client asks with is not installed")
pytest.importorskip("fastapi", reason="the extra demo is not installed")
from clipself_seg.explore import server  # noqa: E402

JSON = {"content-type": "application/json"}


class Stub:
    """Models that say what they are told."""

    def __init__(self, say=lambda task, asked: {"said": list(asked.words.names)}):
        self.predictors = {"semantic": None}
        self.answer = say


def client(say=None, **options):
    limits = Limits(**{"size": 5000, "seconds": 20, "waiting": 1, **options})
    stub = Stub() if say is None else Stub(say)
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


def broken(task, asked):
    raise KeyError("a secret of the machine")


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
    read = []

    def parts():
        for number in range(1000):
            read.append(number)
            yield b"x" * 1000

    answer = client().post("/api/semantic", content=parts(), headers=JSON)
    assert answer.status_code == 413


def test_a_page_that_is_closed_while_it_sends_is_no_failure():
    asked = server.Request({"type": "http", "headers": []}, left_at_once)
    with pytest.raises(server.HTTPException, match="ended before its end"):
        asyncio.run(server._body(asked, Limits()))


async def left_at_once():
    return {"type": "http.disconnect"}


def test_a_page_for_people_and_an_address_that_is_escaped():
    answer = client().get("/<script>alert(1)</script>")
    assert answer.status_code == 404 and "<script" not in answer.text
    assert answer.headers["content-type"].startswith("text/html")
    assert client().get("/api/semantic").json() == {"error": "Method Not Allowed"}


def test_another_name_of_the_server_is_refused():
    for host, status in (("evil.example", 421), ("localhost:8000", 200), ("[::1]:8000", 200)):
        assert client().get("/", headers={"host": host}).status_code == status


def test_what_goes_wrong_here_says_nothing_of_it(caplog):
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
        refused = next(iter(done for done in wait_for_one(first)))
        assert refused.status_code == 503 and "try again" in refused.json()["error"]
        go.set()
        assert sorted(answer.result().status_code for answer in first) == [200, 200, 503]


def wait_for_one(futures):
    from concurrent.futures import FIRST_COMPLETED, wait

    done, _ = wait(futures, timeout=20, return_when=FIRST_COMPLETED)
    return [future.result() for future in done]


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
