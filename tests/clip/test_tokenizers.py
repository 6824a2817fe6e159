"""Tokenizers: open_clip's own without importing it, and those out of files."""

import importlib
import json
import subprocess
import sys
from random import Random

import open_clip
import pytest

from clipself_seg.checkpoints.zoo import SHIPPED
from clipself_seg.clip import tokenizers
from clipself_seg.clip.tokenizers import read_tokenizer, repository_tokenizer
from clipself_seg.errors import InputError, MissingPackage
from tests.small_towers import write_tokenizer

TEXTS = ["Ein Pferd &amp; a dog's  tail, 42", "", "写真 " * 99]
ALONE = """
import json
import sys

from clipself_seg.clip import load_clip
from clipself_seg.clip.find_kind import model_configs

clip = load_clip("ViT-Mini-8", "mini")
load_clip("ViT-Mini-8", sys.argv[1])
tokens = clip.tokenize(json.loads(sys.argv[2])).tolist()
heavy = {"open_clip", "transformers"} & set(sys.modules)
print(json.dumps([tokens, model_configs(), sorted(heavy)]))
"""


def test_both_are_what_open_clip_gives_and_it_stays_away():
    words = [str(SHIPPED / "vit_mini_8.safetensors"), json.dumps(TEXTS)]
    run = [sys.executable, "-c", ALONE, *words]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    tokens, configs, heavy = json.loads(done.stdout)
    assert heavy == []
    assert tokens == open_clip.tokenize(TEXTS, context_length=len(tokens[0])).tolist()
    assert configs == {name: open_clip.get_model_config(name) for name in open_clip.list_models()}


def test_words_that_are_kept_are_what_open_clip_makes_of_whole_texts():
    letters = [
        *map(chr, range(128)),
        "é",
        "\x85",
        "\u3000",
        "fi",
        "&amp;",
        "<end_of_text>",
        "'LL",
        " ",
    ]
    random = Random(0)
    texts = ["".join(random.choices(letters, k=random.randrange(40))) for _ in range(2000)]
    texts += ["".join(random.choices(letters[32:127], k=random.randrange(40))) for _ in range(2000)]
    texts += ["&amp;amp;amp;amp;lt; <b"]  # < keeps open_clip from looking into a text for good
    ours = tokenizers.clip_tokenizer()
    assert ours(texts, 16).tolist() == open_clip.tokenize(texts, context_length=16).tolist()
    assert [ours.count(text) for text in texts[:50]] == [
        len(open_clip.tokenizer._tokenizer.encode(text)) + 2 for text in texts[:50]
    ]


@pytest.fixture
def path(tmp_path):
    return write_tokenizer(tmp_path / "tokenizer.json")


def test_texts_become_ids_filled_up_with_padding_and_cut(path):
    tokenizer = read_tokenizer(path, vocabulary=40)
    short, long = tokenizer(["Cat", "a cat on a dog"], 6)
    assert short.tolist() == [*tokenizer.encode("cat"), *[0] * (6 - tokenizer.count("cat"))]
    assert long.tolist() == tokenizer.encode("a cat on a dog")[:6]
    assert tokenizer.count("a cat on a dog") > 6
    assert tokenizer(["", "a"], 3)[0].tolist() == [0, 0, 0]
    assert tokenizer([], 3).shape == (0, 3)


def test_ids_are_those_of_the_package(path):
    from tokenizers import Tokenizer

    package = Tokenizer.from_file(str(path))
    tokenizer = read_tokenizer(path, vocabulary=40)
    for text in ("a photo of a Cat", "  two  spaces ", "cats, dogs"):
        assert tokenizer.encode(text) == package.encode(text).ids


def test_more_tokens_than_the_tower_knows_are_refused(path):
    with pytest.raises(InputError, match="the text tower knows 8"):
        read_tokenizer(path, vocabulary=8)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1", b'{"model": {"type": "BPE"}}', bytes(range(256))]
)
def test_what_is_no_tokenizer_is_refused(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match="is no tokenizer"):
        read_tokenizer(file, vocabulary=40)


@pytest.mark.parametrize("table", ["AAAA", "BAAAAGFiY2Q="])
def test_what_panics_when_it_is_read_or_used_is_refused(path, table):
    """Tables of characters that are cut short: the package says so by something that is no exception."""
    content = json.loads(path.read_text())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": table}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="is no tokenizer"):
        read_tokenizer(path, vocabulary=40).encode("a cat")


def test_files_that_are_too_large_are_refused(tmp_path, monkeypatch):
    path = write_tokenizer(tmp_path / "tokenizer.json")
    monkeypatch.setattr(tokenizers, "LARGEST", 10)
    with pytest.raises(InputError, match="more than any tokenizer"):
        read_tokenizer(path, vocabulary=40)


@pytest.mark.parametrize(
    "file, package", [("tokenizer.json", "tokenizers"), ("tokenizer.model", "sentencepiece")]
)
def test_a_missing_package_is_named_with_the_way_to_get_it(tmp_path, monkeypatch, file, package):
    def nothing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    (tmp_path / file).write_bytes(b"x")
    monkeypatch.setattr(importlib, "import_module", nothing)
    with pytest.raises(MissingPackage, match=rf"{package} is not inst.*clipself_seg\[tokenizers"):
        read_tokenizer(tmp_path / file, vocabulary=40)


def test_a_model_of_sentencepiece_is_read_lower_cased(tmp_path):
    package = pytest.importorskip("sentencepiece")
    words = iter(["a photo of a cat", "a photo of the dog", "cats and dogs"] * 4)
    how = {"model_prefix": str(tmp_path / "tokenizer"), "model_type": "bpe", "minloglevel": 2}
    how |= {"vocab_size": 40, "pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1}
    package.SentencePieceTrainer.train(sentence_iterator=words, hard_vocab_limit=False, **how)
    tokenizer = read_tokenizer(tmp_path / "tokenizer.model", vocabulary=40)
    assert tokenizer.encode("A Photo") == tokenizer.encode("a photo")
    assert 0 not in tokenizer.encode("a photo of a cat")


@pytest.mark.parametrize(
    "repository, missing, here",
    [
        ("somebody/model", "tokenizer.json", "tokenizer.json"),
        ("somebody/model", "tokenizer.json", "tokenizer.model"),
        ("google/tipsv2-b14", "tokenizer.model", "tokenizer.model"),
    ],
)
def test_a_repository_is_read_from_the_folder_of_weights_and_said_to_be_missing(
    repository, missing, here, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing"))
    monkeypatch.setattr(tokenizers, "read_tokenizer", lambda path, **_: path)
    with pytest.raises(InputError, match=f"fetch {missing} from .* into"):
        repository_tokenizer(repository, vocabulary=40)
    folder = tmp_path / "hub" / repository.replace("/", "--") / "main"
    folder.mkdir(parents=True)
    (folder / here).touch()
    capsys.readouterr()
    assert repository_tokenizer(repository, vocabulary=40) == folder / here
    assert not capsys.readouterr().err  # nothing is asked for that is not here
