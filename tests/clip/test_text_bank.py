"""Prompts, and text embeddings of class names: kept where nothing changed, in memory and on disk, never stale."""

import copy
import hashlib
import os
from collections import Counter
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from clipself_seg.checkpoints import hashes
from clipself_seg.clip import TextBank, load_clip, text, text_bank
from clipself_seg.clip.precision import lower_precision, tf32
from clipself_seg.clip.templates import TEMPLATES, article, class_prompts, clean_name
from clipself_seg.clip.text import BATCH, encode_prompts
from clipself_seg.clip.text_bank import ClassTexts, check_lengths, default_cache_dir
from clipself_seg.data.datasets.table import COCO
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.models.optimizer_groups import matrices_and_vectors
from clipself_seg.training.optimizer import build_adamw
from tests.tiny import random_clip


def test_lists_have_the_published_lengths_and_no_repetition():
    assert {name: len(texts) for name, texts in TEMPLATES.items()} == {
        "vild63": 63,
        "vild14": 14,
        "openai80": 80,
        "imagenet80": 80,
        "tcl9": 9,
        "single": 1,
        "cat_seg": 1,
        "odise": 1,
        "bare": 1,
    }
    assert all(len(set(texts)) == len(texts) for texts in TEMPLATES.values())


def test_fc_clips_fourteen_have_no_full_stop_in_the_second_to_the_fifth():
    texts = class_prompts("dog", "vild14")
    assert [text for text in texts if not text.endswith(".")] == texts[1:5]
    assert texts[0] == "a photo of a dog." and texts[-1] == "There is a large dog in the scene."


def test_openai_templates_equal_those_of_open_clip():
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    theirs = [template("zebra crossing") for template in OPENAI_IMAGENET_TEMPLATES]
    assert class_prompts("zebra crossing", "openai80") == theirs


def test_groups_of_the_63_have_the_sizes_of_the_reference():
    texts = class_prompts("cat")
    starts = Counter(text.split()[0] for text in texts)
    assert starts == {"This": 58, "There": 2, "itap": 3}
    assert sum(" in the scene." in text for text in texts) == 5
    assert sum(text.startswith("This is a photo of") for text in texts) == 3 + 5 + 16
    assert sum(" photo of " in text for text in texts) == 3 + 5 + 4 + 16 + 18
    assert {"This is an embroidered cat.", "This is a painting of a cat.", "itap of my cat."} < set(
        texts
    )


@pytest.mark.parametrize(
    "raw, clean, chosen",
    [
        ("aerosol_can", "aerosol can", "an"),
        ("cabinet / shelf", "cabinet  or  shelf", "a"),
        ("Apple", "apple", "a"),  # the rule looks at lower-case vowels of the raw name only
        ("mr. potato..", "mr. potato", "a"),
    ],
)
def test_name_and_article(raw, clean, chosen):
    assert clean_name(raw) == clean
    assert article(raw) == chosen
    assert class_prompts(raw)[0] == f"There is {chosen} {clean} in the scene."


@pytest.mark.parametrize(
    "templates, first",
    [
        ("odise", "a photo of a Stop_sign/St.."),
        ("vild14", "a photo of a Stop_sign/St.."),
        ("bare", "Stop_sign/St."),
        ("cat_seg", "A photo of a Stop_sign/St. in the scene"),
    ],
)
def test_odise_fc_clip_and_cat_seg_write_a_name_as_it_stands(templates, first):
    assert class_prompts("Stop_sign/St.", templates)[0] == first
    assert class_prompts("Stop_sign/St.", "single") == ["a photo of a stop sign or st"]


def test_braces_in_a_name_are_kept():
    assert class_prompts("{0}", "single") == ["a photo of a {0}"]


@pytest.fixture
def clip():
    return random_clip(seed=2)


@pytest.fixture
def bank(clip, tmp_path):
    return TextBank(clip, "vild63", cache_dir=tmp_path)


def test_embedding_is_the_normalised_mean_of_the_normalised_prompts(clip, bank):
    with torch.no_grad():
        rows = [
            F.normalize(clip.encode_text(class_prompts(n, "vild63")).mean(0), dim=0)
            for n in ("cat", "owl")
        ]
    torch.testing.assert_close(bank.embed(["cat", "owl"]), torch.stack(rows))


def test_synonyms_share_one_vector_and_vocabularies_are_understood(bank):
    cat, kitten, owl = bank.embed(["cat", "kitten", "owl"])
    vocabulary = Vocabulary.of(["cat|kitten", "owl"])
    expected = torch.stack([F.normalize((cat + kitten) / 2, dim=0), owl])
    torch.testing.assert_close(bank.embed(vocabulary), expected)
    for words in (["cat|kitten", "owl"], [["cat", "kitten"], "owl"], ("cat, kitten", ("owl",))):
        assert torch.equal(bank.embed(words), bank.embed(vocabulary))
    assert torch.equal(bank.embed("cat|kitten"), bank.embed(vocabulary)[:1])


@pytest.mark.parametrize("how", ["counted", "through data", "another tower"])
@torch.no_grad()
def test_weights_that_change_give_new_embeddings_in_memory_and_on_disk(clip, bank, tmp_path, how):
    def negate():
        projection = clip.text.text_projection
        if how == "counted":
            projection.mul_(-1)
        elif how == "through data":
            projection.data.mul_(-1)
            hashes.invalidate(clip.text)
        else:
            clip.text = copy.deepcopy(clip.text)
            clip.text.text_projection.data.mul_(-1)

    before = bank.embed(["cat"])
    assert torch.equal(bank.embed(["cat"]), before) and not torch.equal(bank.embed(["owl"]), before)
    negate()
    torch.testing.assert_close(bank.embed(["cat"]), -before)
    dog = bank.embed(["dog"])
    negate()
    assert torch.equal(bank.embed(["cat"]), before)
    for asked in (bank, TextBank(clip, "vild63", cache_dir=tmp_path)):
        torch.testing.assert_close(asked.embed(["dog"]), -dog)


def test_banks_of_one_text_tower_hash_it_once_for_all_that_is_asked(clip, tmp_path, monkeypatch):
    counted = []
    whole = hashes.hash_tensors
    monkeypatch.setattr(hashes, "hash_tensors", lambda s: counted.append(len(s)) or whole(s))
    banks = [TextBank(clip, templates, cache_dir=tmp_path) for templates in ("odise", "bare")]
    for _ in range(2):
        for bank in banks:
            bank.embed(["cat"])
            bank.embed_raw(["cat", "owl"])
    assert len(counted) == 1
    hashes.invalidate(clip.text)
    for bank in banks:
        bank.embed(["cat"])
    assert len(counted) == 2


@pytest.mark.parametrize("raw", [False, True])
def test_a_second_request_neither_hashes_nor_tokenises_nor_reads(clip, tmp_path, raw, monkeypatch):
    bank = TextBank(clip, "bare", cache_dir=tmp_path)
    ask = bank.embed_raw if raw else bank.embed
    first = ask(["cat", "owl"])
    for owner, name in ((hashlib, "blake2b"), (clip, "tokenize"), (text_bank, "_from_disk")):
        monkeypatch.setattr(owner, name, None)
    assert torch.equal(ask(["cat", "owl"]), first)
    with torch.no_grad():
        clip.text.text_projection.mul_(2)
    with pytest.raises(TypeError, match="not callable"):  # the change is seen
        ask(["cat", "owl"])


@pytest.mark.parametrize("kept", ["memory", "disk"])
def test_what_is_kept_does_not_depend_on_the_modes_of_who_asks_first(clip, tmp_path, kept):
    bank = TextBank(clip, "single", cache_dir=tmp_path)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        bank.embed(["cat"])
    if kept == "disk":
        bank = TextBank(clip, "single", cache_dir=tmp_path)
        with torch.inference_mode():
            bank.embed(["cat"])
    found = bank.embed(["cat"])
    expected = TextBank(clip, "single", cache_dir=tmp_path / "other").embed(["cat"])
    assert torch.equal(found, expected) and not found.is_inference()


def test_what_is_kept_is_not_rounded_to_tf32_in_a_training(clip, tmp_path, monkeypatch):
    bank = TextBank(clip, "single", cache_dir=tmp_path)
    rounded, encode = [], bank._encode
    allowed = lambda: torch.backends.cuda.matmul.allow_tf32  # noqa: E731
    monkeypatch.setattr(bank, "_encode", lambda names: rounded.append(allowed()) or encode(names))
    with tf32(True):
        bank.embed(["cat"])
        bank.embed_raw(["cat"], keep=False)  # of one step
        assert allowed()
    assert rounded == [False, True]


def test_a_clip_that_was_loaded_in_inference_mode_has_embeddings_too(clip, bank, tmp_path):
    with torch.inference_mode():
        torch.manual_seed(2)
        frozen = TextBank(load_clip("ViT-Mini-8", None), "vild63", cache_dir=tmp_path / "other")
        assert torch.equal(frozen.embed(["cat"]), bank.embed(["cat"]))
    assert torch.equal(frozen.embed(["owl"]), bank.embed(["owl"]))


def test_templates_that_change_under_their_name_give_new_embeddings(clip, bank, monkeypatch):
    before = bank.embed(["cat"])
    monkeypatch.setitem(TEMPLATES, "vild63", ("a drawing of {}",))
    assert not torch.allclose(bank.embed(["cat"]), before)


def test_one_string_is_one_text_and_a_class_may_come_twice(clip, bank):
    (cat,) = bank.embed(["cat"])
    assert torch.equal(bank.embed("cat"), cat[None])
    torch.testing.assert_close(bank.embed(["cat", "cat"]), torch.stack([cat, cat]))
    torch.testing.assert_close(clip.encode_text("a cat"), clip.encode_text(["a cat"]))


def test_disk_cache_is_used(clip, bank, tmp_path, monkeypatch):
    first = bank.embed(["cat"])
    (entry,) = tmp_path.iterdir()
    again = TextBank(clip, "vild63", cache_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(clip.text, "forward", None)  # the disk has to be enough
        assert torch.equal(again.embed(["cat"]), first)


def test_half_written_entries_of_killed_processes_go_after_a_day(bank, tmp_path):
    left = tmp_path / ".a.safetensors.x.part"
    left.mkdir()
    bank.embed(["cat"])
    assert left.exists()  # another process may be writing it
    os.utime(left, (0, 0))
    bank.embed(["cat"])
    assert left.exists()
    bank.embed(["dog"])
    assert not left.exists()


def test_raw_embeddings_that_are_not_kept_are_the_same_and_leave_nothing(clip, tmp_path):
    bank = TextBank(clip, "odise", cache_dir=tmp_path)
    found = bank.embed_raw(["cat", "owl"], keep=False)
    assert not list(tmp_path.iterdir()) and not bank._memory
    torch.testing.assert_close(found, bank.embed_raw(["cat", "owl"]))
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_caller_does_to_embeddings_stays_with_the_caller(bank):
    bank.embed(["cat", "dog"]).zero_()
    torch.testing.assert_close(bank.embed(["cat", "dog"]).norm(dim=-1), torch.ones(2))


def test_empty_vocabulary_and_unknown_templates_are_refused(clip, bank, tmp_path):
    for nothing in ([], "", [""]):
        with pytest.raises(InputError, match="vocabulary is empty"):
            bank.embed(nothing)
    with pytest.raises(InputError, match='unknown prompt templates "vild".*"vild63"'):
        TextBank(clip, "vild", cache_dir=tmp_path)


def test_a_name_that_clip_would_cut_is_refused_and_leaves_nothing(bank, tmp_path):
    with pytest.raises(InputError, match="dog dog.* more than the 77 tokens"):
        bank.embed(["dog", "dog " * 100])
    assert not any(tmp_path.rglob("*.safetensors"))


def test_shipped_vocabularies_fit_the_shortest_context_in_every_sentence(clip, monkeypatch):
    monkeypatch.setattr(type(clip), "context_length", 32)  # PE-Core's; OpenAI's is 77
    shipped = [Vocabulary.load(name) for name in Vocabulary.available()]
    names = {
        n
        for words in shipped
        for as_catseg in (False, True)
        for n in words.names(catseg_names=as_catseg)
    }
    longest = sorted({name for synonyms in names for name in synonyms}, key=len)[-300:]
    for templates in TEMPLATES:
        check_lengths(clip, (tuple(longest),), templates)


@pytest.mark.parametrize(
    "spoil",
    [lambda text: text[:1], lambda text: text.double(), lambda text: text * float("nan")],
    ids=["a class less", "another type", "no numbers"],
)
def test_an_entry_that_is_not_as_it_was_written_is_made_again(clip, tmp_path, spoil):
    first = TextBank(clip, "single", cache_dir=tmp_path).embed(["cat", "dog"])
    (entry,) = tmp_path.iterdir()
    whole, text = entry.read_bytes(), spoil(first).contiguous()
    digest = hashes.hash_tensors({entry.stem: text})
    safetensors.torch.save_file({"text": text}, entry, metadata={"digest": digest})
    again = TextBank(clip, "single", cache_dir=tmp_path)
    assert torch.equal(again.embed(["cat", "dog"]), first)
    assert entry.read_bytes() == whole


def test_an_entry_under_the_key_of_another_or_without_digest_is_made_again(clip, tmp_path):
    bank = TextBank(clip, "single", cache_dir=tmp_path)
    first = bank.embed(["cat"])
    (entry,) = tmp_path.iterdir()
    bank.embed(["dog"])
    (other,) = set(tmp_path.iterdir()) - {entry}
    whole, unsigned = entry.read_bytes(), safetensors.torch.save({"text": first.flip(1)})
    digest = hashes.hash_tensors({entry.stem: first})
    changed = safetensors.torch.save({"text": first.flip(1)}, metadata={"digest": digest})
    unnamed = safetensors.torch.save({"x": first})
    for content in (other.read_bytes(), unsigned, changed, unnamed, b"damaged"):
        entry.write_bytes(content)
        assert torch.equal(TextBank(clip, "single", cache_dir=tmp_path).embed(["cat"]), first)
        assert entry.read_bytes() == whole


def test_entries_on_disk_are_bounded_and_those_written_first_go(clip, tmp_path, monkeypatch):
    bank = TextBank(clip, "single", cache_dir=tmp_path)
    (tmp_path / "mine.safetensors").write_bytes(bytes(9999))
    entries = list[Path]()
    for number, word in enumerate(["cat", "dog", "red star", "sand"]):
        bank.embed([word])
        entries += set(tmp_path.glob("?" * 32 + ".safetensors")).difference(entries)
        os.utime(entries[-1], (number, number))
        if not number:
            monkeypatch.setattr(text_bank, "MOST_BYTES", 2 * entries[0].stat().st_size)
    assert [entry.exists() for entry in entries] == [False, False, True, True]
    assert (tmp_path / "mine.safetensors").exists()


def test_an_entry_that_is_a_pipe_is_not_waited_for(clip, tmp_path):
    first = TextBank(clip, "single", cache_dir=tmp_path).embed(["cat"])
    (entry,) = tmp_path.iterdir()
    entry.unlink()
    os.mkfifo(entry)
    # Somebody writes, so that a reader ends: with what is no entry, and is not replaced either.
    with open(os.open(entry, os.O_RDWR), "wb") as pipe:
        pipe.write(bytes(64))
        pipe.flush()
        assert torch.equal(TextBank(clip, "single", cache_dir=tmp_path).embed(["cat"]), first)
        os.set_blocking(pipe.fileno(), False)
        assert len(os.read(pipe.fileno(), 99)) == 64  # nobody has read


def no_home(monkeypatch):
    """A user whom the system does not know, as in many containers."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])


def test_the_cache_is_where_the_variable_says_and_else_in_the_users_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    own = tmp_path / ".cache" / "clipself_seg"
    for value, folder in (("~/mine", tmp_path / "mine"), ("", own), (str(own), own)):
        monkeypatch.setenv("CLIPSELF_SEG_CACHE", value)
        assert default_cache_dir() == folder
    monkeypatch.delenv("CLIPSELF_SEG_CACHE")
    assert default_cache_dir() == own


def test_without_a_users_folder_the_variable_is_enough_and_asked_for(monkeypatch, tmp_path):
    no_home(monkeypatch)
    monkeypatch.setenv("CLIPSELF_SEG_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    for value in ("", "~/mine"):
        monkeypatch.setenv("CLIPSELF_SEG_CACHE", value)
        with pytest.raises(InputError, match="HOME is not set: set CLIPSELF_SEG_CACHE to a folder"):
            default_cache_dir()
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    with pytest.raises(InputError, match="~/data: .* set DETECTRON2_DATASETS to a path without ~"):
        COCO.path


CAT, DOG = (("cat",),), (("dog",),)
PROMPT = "A photo of a cat in the scene"


@pytest.fixture
def texts():
    return ClassTexts(random_clip(seed=2), "cat_seg")


@pytest.fixture
def asked(texts, monkeypatch):
    """What was encoded."""
    encode, asked = texts._encode, []
    monkeypatch.setattr(texts, "_encode", lambda names: asked.append(names) or encode(names))
    return asked


@torch.no_grad()
def test_texts_of_several_vocabularies_are_kept(texts, asked):
    first = texts.embed(CAT)
    texts.embed(DOG)
    again = texts.embed(CAT)
    assert torch.equal(again, first) and asked == [CAT, DOG]
    again.zero_()  # the caller's own
    assert torch.equal(texts.embed(CAT), first)
    for index in range(text_bank.KEPT):
        texts.embed(((str(index),),))
    texts.embed(CAT)
    assert len(texts._memory) == text_bank.KEPT and asked[-1] == CAT


def test_an_evaluation_after_every_step_of_a_training_run_has_its_own_texts(texts, asked):
    tower = texts.clip.text
    optimizer = build_adamw(
        matrices_and_vectors(tower.parameters(), 0.1), betas=(0.9, 0.9), eps=1e-8
    )
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    seen = []
    for _ in range(3):
        with torch.no_grad():
            seen.append(texts.embed(CAT))
            assert torch.equal(texts.embed(CAT), seen[-1])
            torch.testing.assert_close(seen[-1], texts.clip.encode_text(PROMPT)[None])
        optimizer.zero_grad()
        texts.embed(CAT)[0, 0, 0].backward()
        optimizer.step()
    assert not torch.allclose(seen[0], seen[1]) and not torch.allclose(seen[1], seen[2])
    assert len(asked) == 6


@torch.no_grad()
def test_a_copy_asks_its_own_tower(texts):
    before = texts.embed(CAT)
    copied = copy.deepcopy(texts)
    copied.clip.text.text_projection.mul_(-1)
    assert torch.equal(copied.embed(CAT), -before) and torch.equal(texts.embed(CAT), before)


def test_a_copy_is_made_while_another_thread_asks_for_texts(texts):
    class Kept:
        def __deepcopy__(self, memo):
            texts._memory["of another thread"] = self
            return self

    texts._memory = {"a": Kept(), "b": Kept()}
    assert [*copy.deepcopy(texts)._memory] == ["a", "b"]


@torch.no_grad()
def test_texts_under_autocast_and_without_are_kept_apart(texts, asked):
    exact = texts.embed(CAT)
    with torch.autocast("cpu", torch.bfloat16):
        rough = texts.embed(CAT)
        assert torch.equal(texts.embed(CAT), rough) and not torch.equal(rough, exact)
    assert torch.equal(texts.embed(CAT), exact)


def test_texts_in_tf32_and_without_are_kept_apart(texts, asked, monkeypatch):
    assert lower_precision(torch.device("cpu")) == lower_precision(torch.device("cuda"))
    with tf32(True):
        assert lower_precision(torch.device("cuda")) == (None, True)
    monkeypatch.setattr(
        text_bank, "lower_precision", lambda device: torch.backends.cuda.matmul.allow_tf32
    )
    with torch.no_grad():
        texts.embed(CAT)
        with tf32(True):
            texts.embed(CAT)
            texts.embed(CAT)
    assert asked == [CAT, CAT]


def test_prompts_come_back_in_their_order_from_batches_of_like_length(texts):
    names = [f"cat{' and cat' * (index % 7)} {index}" for index in range(BATCH + 40)]
    prompts = [prompt for name in names for prompt in class_prompts(name, "single")]
    tokens = texts.clip.tokenize(prompts)
    together = encode_prompts(texts.clip.text, tokens)
    assert together.requires_grad
    with torch.no_grad():
        batched = encode_prompts(texts.clip.text, tokens)
        few = encode_prompts(texts.clip.text, tokens[-3:])
    torch.testing.assert_close(batched, together.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(batched[-3:], few, atol=1e-5, rtol=1e-5)
    assert encode_prompts(texts.clip.text, tokens[:0]).shape == (0, texts.clip.embed_dim)
    again = encode_prompts(texts.clip.text, tokens, checkpointing=True)
    weight = texts.clip.text.text_projection
    (expected,) = torch.autograd.grad(together.sum(), weight)
    (found,) = torch.autograd.grad(again.sum(), weight)
    assert torch.equal(found, expected)


def test_batches_of_like_length_have_the_gradients_of_one_batch(texts, monkeypatch):
    prompts = [f"a cat{' and cat' * (index % 5)} {index}" for index in range(9)]
    tokens = texts.clip.tokenize(prompts)
    tower = texts.clip.text.double()
    weights = [tower.text_projection, tower.blocks[0].attn.out_proj.weight]
    results = []
    for size in (9, 4):
        monkeypatch.setattr(text, "TRAINED_BATCH", size)
        encoded = encode_prompts(tower, tokens)
        results.append((encoded, *torch.autograd.grad(encoded.sin().sum(), weights)))
    torch.testing.assert_close(*results, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("training", [False, True])
def test_a_tower_without_parameters_says_itself_that_there_is_no_text(texts, training):
    tower = text.NoTextTower(context_length=77, source="an.pt")
    with torch.set_grad_enabled(training), pytest.raises(InputError, match="an.pt"):
        encode_prompts(tower, texts.clip.tokenize(["a cat"]))


@pytest.mark.parametrize("stable", [False, True])
@torch.no_grad()
def test_sentences_are_batched_as_for_the_shipped_numbers(texts, tmp_path, monkeypatch, stable):
    """Their last digits depend on which sentences share a batch."""
    names = [f"{'and ' * (index % 3)}{index}" for index in range(2 * BATCH + 40)]
    tokens = texts.clip.tokenize(names)
    order = tokens.argmax(dim=-1).argsort(stable=stable)
    forward, batches = texts.clip.text.forward, []
    monkeypatch.setattr(texts.clip.text, "forward", lambda t, _: batches.append(t) or forward(t))
    if stable:
        TextBank(texts.clip, "bare", cache_dir=tmp_path).embed_raw(names)
    else:
        texts.templates = "bare"
        texts.embed(tuple((name,) for name in names))
    assert [len(batch) for batch in batches] == [BATCH, BATCH, 40]
    assert torch.equal(torch.cat(batches), tokens[order])
    assert stable == torch.equal(order, tokens.argmax(dim=-1).argsort(stable=True))
