"""Training on captions: CLIP's own loss on whole images, and which weights it reaches."""

from __future__ import annotations

import torch
from open_clip.loss import ClipLoss

from clipself_seg.models.distillation.objectives import CaptionContrast
from clipself_seg.models.parameter_groups import matrices_and_vectors
from clipself_seg.training.optimizer import build_adamw
from tests.tiny import tiny_clipself, tiny_samples

CAPTIONS = ["a cat on grass", "two dogs", "a red kite"]


def captioned(**how):
    """A model that trains on captions, and three samples."""
    samples = [s | {"caption": text} for s, text in zip(tiny_samples(3), CAPTIONS)]
    return tiny_clipself(objective=CaptionContrast(), **how), samples


def test_loss_is_open_clips_on_image_embeddings_and_captions():
    model, samples = captioned(loss_weight=2.0)
    images = model.teacher.preprocess(torch.stack([s["image"] for s in samples]))
    embeddings = model.teacher.encode_image(images), model.teacher.encode_text(CAPTIONS)
    expected = ClipLoss()(*embeddings, model.teacher.logit_scale.exp())
    (loss,) = model(samples).values()
    torch.testing.assert_close(loss, 2 * expected)


def test_all_of_the_last_block_learns_and_the_text_tower_nothing():
    model, samples = captioned(trainable_blocks=1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = build_adamw(matrices_and_vectors(model.parameters(), 0), betas=(0.9, 0.9), eps=1e-8)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    # Without decay only a gradient changes anything.
    model(samples)["loss_captions"].backward()
    optimizer.step()
    model.after_optimizer_step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    last = "student.transformer.resblocks.3."
    assert changed == {k for k in before if k.startswith(last)}
    packed = f"{last}attn.in_proj_weight"
    rows = (model.state_dict()[packed] != before[packed]).any(dim=1)
    assert rows[: 2 * model.student.width].float().mean() > 0.9


def test_captions_in_mixed_precision_have_about_the_same_loss():
    model, samples = captioned()
    exact = model(samples)["loss_captions"]
    model.precision = torch.bfloat16
    mixed = model(samples)["loss_captions"]
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, atol=0.05, rtol=0.05)
