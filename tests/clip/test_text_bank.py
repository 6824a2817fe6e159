"""Class embeddings: the ensemble by hand, and a cache that is never stale."""

from __future__ import annotations

import copy
import hashlib
import os

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from clipself_seg.checkpoints import hashes
from clipself_seg.clip import TextBank, load_clip, text_bank
from clipself_seg.clip.prompts import TEMPLATES, class_prompts
from clipself_seg.clip.text_bank import default_cache_dir
from clipself_seg.data.datasets.table import COCO
from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass
from clipself_seg.errors import InputError


@pytest.fixture
def clip():
    torch.manual_seed(2)
    return load_clip("ViT-Mini-8", None)


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
    vocabulary = Vocabulary.from_names(["cat|kitten", "owl"])
    expected = torch.stack([F.normalize((cat + kitten) / 2, dim=0), owl])
    torch.testing.assert_close(bank.embed(vocabulary), expected)
    for words in (["cat|kitten", "owl"], [["cat", "kitten"], "owl"], ("cat, kitten", ("owl",))):
        assert torch.equal(bank.embed(words), bank.embed(vocabulary))
    assert torch.equal(bank.embed("cat|kitten"), bank.embed(vocabulary)[:1])


def test_names_of_a_vocabulary_are_encoded_as_they_are(clip, bank):
    vocabulary = Vocabulary("odd", (VocabularyClass(("cat, a pet|friend",), 0),))
    with torch.no_grad():
        rows = clip.encode_text(class_prompts("cat, a pet|friend", "vild63"))
    expected = F.normalize(rows.mean(0), dim=0)[None]
    torch.testing.assert_close(bank.embed(vocabulary), expected)
    assert torch.equal(bank.embed([["cat, a pet|friend"]]), bank.embed(vocabulary))


def test_words_and_weights_that_change_give_new_embeddings(clip, bank):
    before = bank.embed(["cat"])
    assert torch.equal(bank.embed(["cat"]), before)
    assert not torch.equal(bank.embed(["dog"]), before)
    with torch.no_grad():
        clip.text.ln_final.bias.add_(torch.randn_like(clip.text.ln_final.bias))
    assert not torch.allclose(bank.embed(["cat"]), before)


@pytest.mark.parametrize("how", ["counted", "through data", "another tower"])
@torch.no_grad()
def test_weights_that_change_give_new_embeddings_in_memory_and_on_disk(clip, bank, tmp_path, how):
    def negate():
        projection = clip.text.text_projection
        if how == "counted":
            projection.mul_(-1)
        elif how == "through data":
            projection.data.mul_(-1)
            bank.invalidate()
        else:
            clip.text = copy.deepcopy(clip.text)
            clip.text.text_projection.data.mul_(-1)

    before = bank.embed(["cat"])
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
    banks[0].invalidate()
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


def test_a_copied_bank_asks_its_own_tower(clip, bank):
    before = bank.embed(["cat"])
    copied = copy.deepcopy(bank)
    with torch.no_grad():
        copied.clip.text.text_projection.mul_(-1)
    torch.testing.assert_close(copied.embed(["cat"]), -before)
    assert torch.equal(bank.embed(["cat"]), before)


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


def test_disk_cache_is_used_and_a_damaged_entry_is_made_again(clip, bank, tmp_path, monkeypatch):
    first = bank.embed(["cat"])
    (entry,) = tmp_path.iterdir()
    again = TextBank(clip, "vild63", cache_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(clip.text, "forward", None)  # the disk has to be enough
        assert torch.equal(again.embed(["cat"]), first)
    entry.write_bytes(b"damaged")
    assert torch.equal(TextBank(clip, "vild63", cache_dir=tmp_path).embed(["cat"]), first)


def test_half_written_entries_of_killed_processes_go_after_a_day(bank, tmp_path):
    left = tmp_path / ".a.safetensors.x.part"
    left.touch()
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


def test_text_tower_is_unmoved_by_what_follows_the_end_of_a_text(clip):
    tokens = clip.tokenize(["a cat", "a long text about a cat and its many friends"])
    with torch.no_grad():
        together, alone = clip.encode_text(tokens), clip.encode_text(tokens[:1])
    torch.testing.assert_close(together[:1], alone, atol=1e-6, rtol=1e-5)


def test_what_a_caller_does_to_embeddings_stays_with_the_caller(bank):
    bank.embed(["cat", "dog"]).zero_()
    torch.testing.assert_close(bank.embed(["cat", "dog"]).norm(dim=-1), torch.ones(2))


def test_empty_vocabulary_and_unknown_templates_are_refused(clip, bank, tmp_path):
    for nothing in ([], "", [""]):
        with pytest.raises(InputError, match="vocabulary is empty"):
            bank.embed(nothing)
    with pytest.raises(InputError, match='no prompt templates "vild".*"vild63"'):
        TextBank(clip, "vild", cache_dir=tmp_path)


@pytest.mark.parametrize("wrong", ["", " ", [], 3, None, ["cat", 3], ["cat", ""], b"cat"])
def test_what_is_no_class_is_refused_by_its_place(bank, wrong):
    with pytest.raises(InputError, match="class 1 of the vocabulary is .*give a name"):
        bank.embed(["a", wrong])


@pytest.mark.parametrize(
    "spoil, signed",
    [
        (lambda text: text[:1], True),
        (lambda text: text[None], True),
        (lambda text: text.double(), True),
        (lambda text: text * float("nan"), True),
        (lambda text: text.flip(0), False),
    ],
    ids=["a class less", "a dimension more", "another type", "no numbers", "other numbers"],
)
def test_an_entry_that_is_not_as_it_was_written_is_made_again(clip, tmp_path, spoil, signed):
    first = TextBank(clip, "single", cache_dir=tmp_path).embed(["cat", "dog"])
    (entry,) = tmp_path.iterdir()
    whole, text = entry.read_bytes(), spoil(first).contiguous()
    digest = hashes.hash_tensors({entry.stem: text if signed else first})
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
    for content in (other.read_bytes(), unsigned, safetensors.torch.save({"x": first}), b""):
        entry.write_bytes(content)
        assert torch.equal(TextBank(clip, "single", cache_dir=tmp_path).embed(["cat"]), first)
        assert entry.read_bytes() == whole


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
        with pytest.raises(
            InputError, match="~/.*HOME is not set: set CLIPSELF_SEG_CACHE to a folder"
        ):
            default_cache_dir()
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    with pytest.raises(InputError, match="~/data: .* set DETECTRON2_DATASETS to a path without ~"):
        COCO.path
