"""Texts of class names whose CLIP may be training: kept where nothing changed, never stale."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from clipself_seg.clip import TextBank, load_clip, text, text_bank
from clipself_seg.clip.prompts import class_prompts
from clipself_seg.clip.text import BATCH, encode_prompts
from clipself_seg.clip.text_bank import ClassTexts
from clipself_seg.errors import InputError
from clipself_seg.models.parameter_groups import matrices_and_vectors
from clipself_seg.training.optimizer import build_adamw

CAT, DOG = (("cat",),), (("dog",),)
PROMPT = "A photo of a cat in the scene"


@pytest.fixture
def texts():
    torch.manual_seed(2)
    return ClassTexts(load_clip("ViT-Mini-8", None), "cat_seg")


@pytest.fixture
def asked(texts, monkeypatch):
    """What was encoded."""
    encode, asked = texts._encode, []
    monkeypatch.setattr(texts, "_encode", lambda names: asked.append(names) or encode(names))
    return asked


@torch.no_grad()
def test_texts_of_several_vocabularies_are_kept_for_one_device(texts, asked, monkeypatch):
    first = texts.embed(CAT)
    texts.embed(DOG)
    assert texts.embed(CAT) is first and asked == [CAT, DOG]
    for index in range(text_bank.KEPT):
        texts.embed(((str(index),),))
    texts.embed(CAT)
    assert len(texts._kept) == text_bank.KEPT and asked[-1] == CAT
    monkeypatch.setattr(ClassTexts, "_device", torch.device("cpu", 0))
    texts.embed(CAT)
    assert asked[-2:] == [CAT, CAT]


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
            assert texts.embed(CAT) is seen[-1]
            torch.testing.assert_close(seen[-1], texts.clip.encode_text(PROMPT)[None])
        optimizer.zero_grad()
        texts.embed(CAT)[0, 0, 0].backward()
        optimizer.step()
    assert not torch.allclose(seen[0], seen[1]) and not torch.allclose(seen[1], seen[2])
    assert len(asked) == 6


@torch.no_grad()
def test_a_write_through_data_needs_invalidate(texts):
    before = texts.embed(CAT)
    texts.clip.text.text_projection.data.mul_(-1)
    assert texts.embed(CAT) is before
    texts.invalidate()
    assert torch.equal(texts.embed(CAT), -before)


@torch.no_grad()
def test_a_copy_asks_its_own_tower(texts):
    before = texts.embed(CAT)
    copied = copy.deepcopy(texts)
    copied.clip.text.text_projection.mul_(-1)
    assert torch.equal(copied.embed(CAT), -before) and texts.embed(CAT) is before


@torch.no_grad()
def test_texts_under_autocast_and_without_are_kept_apart(texts, asked):
    exact = texts.embed(CAT)
    with torch.autocast("cpu", torch.bfloat16):
        rough = texts.embed(CAT)
        assert texts.embed(CAT) is rough and not torch.equal(rough, exact)
    assert torch.equal(texts.embed(CAT), exact)


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


def test_names_are_written_as_they_are_and_synonyms_averaged(texts):
    assert class_prompts("Traffic_Light ", "cat_seg", clean=False) == [
        "A photo of a Traffic_Light  in the scene"
    ]
    assert class_prompts("Apple/pear", "vild63", clean=False)[0] == (
        "There is a Apple/pear in the scene."
    )
    with torch.no_grad():
        single = texts.embed((("cat",), ("kitten",)))
        both = texts.embed((("cat", "kitten"), ("dog",)))
    torch.testing.assert_close(both[0], F.normalize(single.mean(0), dim=-1))


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
