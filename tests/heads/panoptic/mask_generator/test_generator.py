"""The mask generator as a whole: sizes and names of ODISE's, both variants, training."""

from __future__ import annotations

import json

import pytest
import torch

from clipself_seg.errors import InputError
from clipself_seg.heads.panoptic.generator import GeneratorSizes, MaskGenerator
from tests.conftest import PARITY

OFFICIAL = {f"s{i}": 512 for i in (2, 3, 4, 5)}
TINY = GeneratorSizes(32, 4, 6, encoder_layers=1, encoder_hidden=32, decoder_layers=3)
CHANNELS = {"s2": 8, "s3": 12, "s4": 16, "s5": 20}


def official(variant: str) -> MaskGenerator:
    with torch.device("meta"):
        return MaskGenerator(variant=variant, channels=OFFICIAL)


def tiny(variant: str = "caption") -> MaskGenerator:
    return MaskGenerator(
        variant=variant,
        channels=CHANNELS,
        text_width=10,
        sizes=TINY,
        null_text=torch.ones(10),
    )


def maps(batch: int = 1, height: int = 64, width: int = 96) -> dict[str, torch.Tensor]:
    return {
        name: torch.randn(batch, channels, height >> i, width >> i)
        for i, (name, channels) in enumerate(CHANNELS.items(), 2)
    }


def count(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_names_and_shapes_are_those_of_the_checkpoints():
    expected = json.loads((PARITY / "odise_head.shapes.json").read_text())
    state = official("caption").state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == expected
    label = set(official("label").state_dict())
    caption = {name.replace("word_head", "category_head") for name in state}
    predictor = "sem_seg_head.predictor.class_embed"
    assert caption - label == {f"{predictor}.weight", f"{predictor}.bias"}
    assert label - caption == {"category_head.null_embed"}


def backbone_parameters() -> int:
    """What ODISE trains outside the generator: eight bottlenecks, and the implicit captioner."""
    bottlenecks = 0
    for channels in (512, 512, 2560, 1920, 960, 640, 512, 512):
        bottlenecks += 128 * channels + 9 * 128 * 128 + 512 * 128 + 2 * (128 + 128 + 512)
        bottlenecks += 0 if channels == 512 else 512 * channels + 2 * 512
    text = 768 * 768 + 768 + 77 * 768 + 77 * 768
    time = 1280 * 768 + 1280 + 1280 + 1280
    return bottlenecks + text + time


def test_parameter_totals_of_both_models():
    caption, label = official("caption"), official("label")
    head = caption.sem_seg_head
    assert count(head.pixel_decoder) == 5_577_152
    extras = count(head.predictor.class_embed, head.predictor.post_mask_embed)
    assert count(head.predictor) - extras == 14_458_624
    assert count(caption) + backbone_parameters() == 28_066_755
    assert count(label) + backbone_parameters() == 28_067_009


@pytest.mark.parametrize("variant", ["caption", "label"])
def test_training_reaches_every_parameter(variant):
    generator, text = tiny(variant), torch.randn(5, 10)
    loss = torch.zeros(())
    for prediction in generator(maps(batch=2), every_layer=True):
        scores = generator.scores(prediction, text, [2, 1, 2])
        loss = loss + scores.void_logits.log_softmax(-1)[..., 0].mean()
        loss = loss + scores.class_logits.square().mean() + prediction.mask_logits.sigmoid().mean()
    loss.backward()
    assert not [name for name, p in generator.named_parameters() if p.grad is None]


@torch.no_grad()
def test_void_of_the_label_model_is_one_more_text():
    generator, text = tiny("label").eval(), torch.randn(5, 10)
    (prediction,) = generator(maps())
    scores = generator.scores(prediction, text, [2, 1, 2])
    assert scores.class_logits.shape == (1, 6, 3) and scores.void_logits.shape == (
        1,
        6,
        4,
    )
    as_class = generator.text_head.text_proj(torch.cat([text, torch.ones(1, 10)]))
    cosines = torch.cosine_similarity(prediction.embeddings[:, :, None], as_class, dim=-1) / 0.07
    expected = torch.stack([c.amax(-1) for c in cosines.split([2, 1, 2, 1], -1)], dim=-1)
    torch.testing.assert_close(scores.void_logits, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores.void_prob, expected.softmax(-1)[..., -1])


@torch.no_grad()
def test_a_batch_is_its_images():
    generator, features = tiny().eval(), maps(batch=2)
    (both,) = generator(features)
    for index in (0, 1):
        (alone,) = generator({name: m[index : index + 1] for name, m in features.items()})
        torch.testing.assert_close(alone.mask_logits[0], both.mask_logits[index])


def test_unknown_variant_and_widths_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match='did you mean "caption"'):
        MaskGenerator(variant="captions", channels=CHANNELS)
    with pytest.raises(InputError, match="a width of 48"):
        MaskGenerator(channels=CHANNELS, sizes=GeneratorSizes(width=48))


def test_counts_that_do_not_fit_the_texts_are_refused():
    generator = tiny()
    with pytest.raises(InputError, match="5 texts for 2 classes"):
        (prediction,) = generator(maps())
        generator.scores(prediction, torch.randn(5, 10), [2, 2])
