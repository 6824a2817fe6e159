"""serve: what it refuses before models are loaded, and to whom it listens."""

import socket
import sys

import pytest
from PIL import Image

from clipself_seg.commands import serve


@pytest.fixture(autouse=True)
def packages(monkeypatch):
    """As if the extra were installed; nothing here comes so far as to need it."""
    monkeypatch.setattr(serve, "of_extra", lambda *_: None)
    monkeypatch.setattr(serve, "_app", lambda *given: pytest.fail("models are loaded"))
    monkeypatch.setenv("CLIPSELF_SEG_CACHE", "")  # which a call sets


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--port", "65536"), "--port: has to be in [0, 65535], got 65536"),
        (("--token", "short"), "--token: give at least 16 of"),
        (("--token", "", "--host", "0.0.0.0"), "--token: give at least 16 of"),
        (("--public", "--token", 16 * "a"), "--public has no token and takes every host name"),
        (("--host", "no.such.host.invalid"), "cannot listen on no.such.host.invalid"),
    ],
)
def test_what_does_not_go_is_said_in_a_sentence(words, message, capsys):
    assert serve.main(list(words)) == 2 and message in capsys.readouterr().err


def test_a_port_in_use_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert serve.main(["--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1, port {port}" in capsys.readouterr().err


def test_it_listens_on_this_machine_alone_unless_another_address_is_typed(capsys):
    for words, host in (((), "127.0.0.1"), (("--public",), "0.0.0.0")):
        args = serve.main.parser().parse_args(words)
        serve._check(args)
        assert args.host == host and bool(args.token) != args.public
    with serve._listening("127.0.0.1", 0) as own:
        assert own.getsockname()[0] == "127.0.0.1"
    assert capsys.readouterr().err == ""
    with serve._listening("0.0.0.0", 0):
        assert "nothing is encrypted" in capsys.readouterr().err
    with serve._listening("127.0.0.1", 0, public=True):
        assert "whoever reaches port 0 of 127.0.0.1 may ask" in capsys.readouterr().err


def test_a_token_is_drawn_and_stands_in_the_address(monkeypatch, capsys):
    uvicorn = pytest.importorskip("uvicorn", reason="the extra demo is not installed")
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: None)
    made = []
    monkeypatch.setattr(serve, "_app", lambda args: made.append(args.token))
    assert [serve.main(["--port", "0"]) for _ in range(2)] == [0, 0]
    assert len(set(made)) == 2 and all(len(token) == 32 for token in made)
    assert f"/?token={made[1]} (Ctrl-C" in capsys.readouterr().out
    assert serve.main(["--port", "0", "--public"]) == 0 and made[2] == ""
    assert "/ (Ctrl-C" in capsys.readouterr().out


def test_images_to_begin_with_are_all_there_and_their_names_can_be_sent(tmp_path):
    paths = [tmp_path / "a" / "1.png", tmp_path / "b" / "1.png", tmp_path / "a" / "\udcff.png"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 3)).save(path)
    names = [example["name"] for example in serve._examples([str(path) for path in paths], False)]
    assert names == ["1.png", "1.png", "?.png"]


def test_without_the_extra_it_says_what_brings_it(monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setattr(serve, "_check", lambda args: pytest.fail("it goes on"))
    assert serve.main([]) == 2
    assert 'pip install "clipself_seg[demo]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "models"),
    [
        ((), {"semantic": "catseg-base"}),
        (("--model", "openai-vitb16"), {}),
        (("--panoptic", "tipsv2-l14"), {"panoptic": "tipsv2-l14"}),
        (("--model", "mini"), dict.fromkeys(serve.TASKS, "mini")),
    ],
)
def test_nothing_is_loaded_that_nobody_asked_for(words, models, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    assert serve._models(serve.main.parser().parse(words)) == models


def test_a_built_in_vocabulary_is_on_the_page_by_its_name(monkeypatch):
    monkeypatch.undo()
    pytest.importorskip("fastapi", reason="the extra demo is not installed")
    from clipself_seg.explore import server
    from clipself_seg.explore.answers import typed_words

    read = lambda answers, limits, words, **_: typed_words(words, limits)  # noqa: E731
    monkeypatch.setattr(server, "make_app", read)
    monkeypatch.setattr(serve, "choose_clips", lambda args: None)
    monkeypatch.setattr(serve, "_answers", lambda args: None)
    args = serve.main.parser().parse(["--words", "ade20k_150"])
    assert serve._app(args).name == "ade20k_150"
