"""Serve a page where visitors give images and words, and an API: heat maps, semantic and panoptic segments, boxes.

    clipself-seg serve photo.jpg --words "dog|puppy, kite, grass" --stuff grass
    clipself-seg serve photo.jpg --words "dog, grass" --model openai-vitb16 eva02-vitb16 --semantic catseg-base
    clipself-seg serve --model mini
    clipself-seg serve --public --port 7860

It has segments of the models that --semantic, --panoptic and --detection name. Where these and --model
are left out it has semantic segments, and those of the other tasks whose default model is on this machine.
--model mini has the small models of all tasks, which are for generated scenes. It listens on this machine alone
(--host names another address), and answers those who have the token in the address that it prints.
--public is for a Space or a container, whose platform decides who comes: it listens on all addresses, wants no token,
answers under every host name, and lets pages of others show it in a frame. The limits stay.
Images and words stay in memory, and nothing of them is written. Each model answers one request at a
time, the others wait in order. /docs describes the API. Needs the extra demo: pip install "clipself_seg[demo]".
Exit status: 0 after Ctrl-C, 2 if it cannot begin.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from clipself_seg.commands.explore import add_model_options, choose_clips, heat_models, of_scenes
from clipself_seg.commands.options import (
    WORDS,
    CommandLine,
    command,
    flag,
    group,
    images,
    say_model,
    value,
    within,
)
from clipself_seg.errors import InputError, of_extra

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from clipself_seg.data.vocabulary import VocabularyClass
    from clipself_seg.explore.answers import Answers

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TASKS = ("semantic", "panoptic", "detection")
COMMON_WORDS = "person, dog, cat, car, tree, grass, sky"
GRACE = 10  # seconds that requests have to end in
SCENES = 3  # generated images to begin with
SCENE_SIDE = 400  # pixels of an image for the small models
EVERYWHERE = ("", "0.0.0.0", "::")
MOST_CONNECTIONS = 64  # that are open at once
LEAST_TOKEN = 16  # letters


def _options(parser: CommandLine) -> None:
    images(parser, "images to begin with", "*")
    value(parser, "--words", f"words to begin with ({COMMON_WORDS}): {WORDS}")
    value(parser, "--stuff", "those of them that are stuff, as --words")
    add_model_options(parser)
    for task in TASKS:
        text = f"{task} model, as predict --model (the default)"
        value(parser, f"--{task}", text, metavar="NAME")
    server = group(parser, rare=True)
    value(parser, "--host", f"address to listen on ({LOOPBACK[0]}; with --public all)")
    port = within(int, 0, 65535)
    value(parser, "--port", "port to listen on; 0 for any free one", 8000, kind=port)
    flag(parser, "--public", "answer whoever comes: no token, any host name, all addresses")
    names = "further host names under which the server answers"
    value(server, "--allow-host", names, metavar="NAME", count="+")
    token = "token that each request needs (a random one)"
    value(server, "--token", token, kind=_token)


@command(_options, __doc__)
def main(args: argparse.Namespace) -> int:
    """Serves until Ctrl-C."""
    for package in ("fastapi", "uvicorn"):
        of_extra(package, "serve", "demo")
    _check(args)
    with contextlib.ExitStack() as opened:
        listening = opened.enter_context(_listening(args.host, args.port, args.public))
        # Embeddings of words would fill the user's cache; these go with the server.
        texts = tempfile.TemporaryDirectory(prefix="clipself-seg-texts-")
        os.environ["CLIPSELF_SEG_CACHE"] = opened.enter_context(texts)
        _serve(_app(args), listening, args.host, args.token)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuses options that do not go together, and to serve others without a token; fills in host and token."""
    if args.public and (args.token is not None or args.allow_host):
        raise InputError("--public has no token and takes every host name: leave out the other")
    if args.host is None:
        args.host = EVERYWHERE[1] if args.public else LOOPBACK[0]
    if args.public:
        args.token = ""
    elif args.token is None:
        args.token = secrets.token_urlsafe(24)


def _token(word: str) -> str:
    if not re.fullmatch(rf"[\w.~-]{{{LEAST_TOKEN},}}", word, re.ASCII):
        raise argparse.ArgumentTypeError(f"give at least {LEAST_TOKEN} of A-Z, a-z, 0-9 and .~_-")
    return word


@contextlib.contextmanager
def _listening(host: str, port: int, public: bool = False) -> Iterator[socket.socket]:
    """A socket that listens, so that a port in use is said before models are loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}, port {port} ({error.strerror or error}): give another --port or --host"
        ) from None
    with listening:
        if public:
            sys.stderr.write(f"warning: whoever reaches port {port} of {host} may ask\n")
        elif host not in LOOPBACK:
            sys.stderr.write(
                f"warning: whoever reads along on the way to {host} sees images and token, nothing is encrypted: "
                "serve behind something that does it (docs/explore.md), or leave --host out\n"
            )
        yield listening


def _app(args: argparse.Namespace) -> FastAPI:
    choose_clips(args)
    from clipself_seg.data.vocabulary import Vocabulary
    from clipself_seg.explore.answers import Limits
    from clipself_seg.explore.server import make_app

    mini = of_scenes(args)
    words = Vocabulary.of(args.words or ("mini" if mini else COMMON_WORDS)).classes
    stuff = [entry for entry in words if entry.isthing is False]
    if args.stuff is not None:
        stuff = [*Vocabulary.of(args.stuff).classes]
    return make_app(
        _answers(args),
        # The small models have a token for each 8 pixels: they would take minutes for a photograph.
        Limits(side=SCENE_SIDE) if mini else Limits(),
        words=args.words if args.words in Vocabulary.available() else _typed(words),
        stuff=_typed(stuff),
        examples=_examples(args.images, scenes=mini),
        hosts=["localhost", _called(args.host), *(args.allow_host or ())],
        token=args.token,
        public=args.public,
    )


def _called(host: str) -> str:
    """Host name in the address of the page."""
    return socket.gethostname() if host in EVERYWHERE else host


def _typed(classes: Sequence[VocabularyClass]) -> str:
    """Classes as a visitor would type them."""
    # Names of some data sets have commas.
    plain = [[name for name in entry.names if not set(name) & set(",|")] for entry in classes]
    return ", ".join("|".join(names) for names in plain if names)


def _answers(args: argparse.Namespace) -> Answers:
    from clipself_seg.choice import find_model
    from clipself_seg.commands.predict import KEYS, SCORE_THRESHOLD, predictor_of
    from clipself_seg.explore.answers import Answers

    clips = heat_models(args)
    predictors: dict[str, Any] = {}
    for task, model in _models(args).items():
        scores = [find_model(model, task).score_key, str(SCORE_THRESHOLD)]
        opts = scores if task == "detection" else []
        opts += [] if args.device is None else [KEYS["device"], args.device]
        predictors[task] = predictor_of(model, task, None, opts)
    return Answers(clips=clips, side=args.size, predictors=predictors)


def _models(args: argparse.Namespace) -> dict[str, str]:
    """The model of each task that the page has; says on the terminal which of them nobody has named."""
    from clipself_seg.checkpoints.locate import present_file
    from clipself_seg.checkpoints.zoo import zoo
    from clipself_seg.choice import MINI, TRAINED

    mini = of_scenes(args)
    named = {task: getattr(args, task) for task in TASKS if getattr(args, task)}
    if mini:
        tasks = list(TASKS)
    elif named or args.model:
        tasks = list(named)
    else:
        tasks = [TASKS[0], *(task for task in TASKS[1:] if present_file(zoo()[TRAINED[task]]))]
    for task in tasks:
        if not mini and task not in named:
            say_model(TRAINED[task], "trained for its task", f"--{task}")
    defaults = dict.fromkeys(TASKS, MINI) if mini else TRAINED
    return {task: named.get(task, defaults[task]) for task in TASKS if task in tasks}


def _examples(images: Sequence[str], scenes: bool) -> list[dict[str, str]]:
    """Images to begin with: those that were named, or, for models that know them, generated scenes."""
    from clipself_seg.data.datasets.table import SHIPPED_WORLD
    from clipself_seg.data.images import read_image
    from clipself_seg.explore.content import SHOWN_SIDE, jpeg_address

    # Names that are no UTF-8 could not be sent.
    files = [(os.path.basename(path).encode(errors="replace").decode(), path) for path in images]
    if scenes and not images:
        folder = SHIPPED_WORLD / "mini" / "val"
        files = [(f"scene {i + 1}", str(folder / f"{i:06d}.jpg")) for i in range(SCENES)]
    return [
        {"name": name, "jpeg": jpeg_address(read_image(path), SHOWN_SIDE)} for name, path in files
    ]


def _serve(app: FastAPI, listening: socket.socket, host: str, token: str) -> None:
    """Answers requests until a signal; those that have begun are ended first."""
    import uvicorn

    config = _config(app)
    named = f"[{host}]" if ":" in _called(host) else _called(host)
    query = f"?token={token}" if token else ""
    port = listening.getsockname()[1]
    sys.stdout.write(f"http://{named}:{port}/{query} (Ctrl-C ends it)\n")
    sys.stdout.flush()
    # uvicorn raises the signal that ended it once more when all is closed.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.stdout.write("ended\n")


def _config(app: FastAPI) -> uvicorn.Config:
    """Gives uvicorn its limits; those of headers, 16 KB, and between requests, 5 seconds, are its defaults."""
    import uvicorn

    from clipself_seg.explore.server import Connection

    return uvicorn.Config(
        app,
        http=Connection,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_level="error",  # warnings are of requests of others, and as many
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=MOST_CONNECTIONS,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
    )
