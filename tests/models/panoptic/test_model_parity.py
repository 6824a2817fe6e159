"""FC-CLIP against the numbers of the official code (tests/parity): its generator, and a whole small model."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clipself_seg.clip import find_kind as clip_build
from clipself_seg.clip.convnext import CONVNEXT_SHAPES, ConvNeXtTower
from clipself_seg.clip.region_pooling import mask_weights, pool
from clipself_seg.config import load_config
from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass
from clipself_seg.heads.fusion import fuse_scores
from clipself_seg.heads.panoptic.clip_branches import visible_cells
from clipself_seg.heads.panoptic.feature_sources import Canvas
from clipself_seg.heads.panoptic.generator import GeneratorSizes, VectorGenerator
from clipself_seg.heads.panoptic.panoptic_merge import resize_masks
from clipself_seg.heads.text_scores import class_logits
from clipself_seg.models.build import build_model
from tests.conftest import PARITY, ROOT
from tests.parity.named_weights import named_input, named_state_dict

CLIP = "backbone.clip_model."


def case_of(name):
    """What a case is, its weights and its numbers."""
    case = json.loads((PARITY / f"{name}.json").read_text())
    weights = named_state_dict(json.loads((PARITY / f"{name}.shapes.json").read_text()))
    for tensor, factor in case["weight_multipliers"].items():
        weights[tensor] *= factor
    return case, weights, dict(np.load(PARITY / f"{name}.npz"))


def expect(actual, expected, tolerance):
    torch.testing.assert_close(
        actual.float(), torch.from_numpy(expected).float(), atol=tolerance, rtol=0
    )


def expect_half(actual, expected):
    """Of mask logits that are stored as float16."""
    stored = torch.from_numpy(expected.astype(np.float32))
    assert ((actual - stored).abs() <= 3e-4 + stored.abs() / 1024).all()


@pytest.fixture(scope="module")
def large():
    """The generator of ConvNeXt-L's sizes with CLIP's head, on maps of noise."""
    case, weights, expected = case_of("fcclip_generator")
    channels = {f"s{i}": 48 << i for i in (2, 3, 4, 5)}
    generator = VectorGenerator(
        channels=channels, text_width=768, sizes=GeneratorSizes(queries=250)
    ).eval()
    generator.load_state_dict({n: t for n, t in weights.items() if not n.startswith(CLIP)})
    (height, width), tag = case["canvas"], case["tag"]
    maps = {
        name: named_input(f"{tag}:res{i}", (1, wide, height >> i, width >> i))
        for i, (name, wide) in enumerate(channels.items(), 2)
    }
    generator.requires_grad_(False)
    mask_features, memory = generator.sem_seg_head.pixel_decoder(maps)
    predictions = generator.sem_seg_head.predictor(memory, mask_features, every_layer=True)
    return case, weights, expected, generator, maps, (mask_features, memory), predictions


def test_the_generator_has_the_official_sizes(large):
    generator = large[3]
    assert sum(p.numel() for p in generator.parameters()) == 20_721_601
    parts = [name.split(".")[:2] for name in generator.state_dict()]
    assert parts.count(["sem_seg_head", "pixel_decoder"]) == 117
    assert parts.count(["sem_seg_head", "predictor"]) == 184 and len(parts) == 302


def test_masks_and_class_embeddings_of_the_generator(large):
    case, _, expected, generator, _, (mask_features, memory), predictions = large
    expect(mask_features[0, ::8, ::4, ::4], expected["mask_features"], 2e-5)
    for index, step in enumerate((1, 2, 4)):
        expect(memory[index][0, ::8, ::step, ::step], expected[f"memory_s{5 - index}"], 5e-5)
    last, masks = predictions[-1], predictions[-1].mask_logits[0]
    expect(masks[:, 2::8, 2::8], expected["masks_sub"], 3e-4)
    expect_half(masks[:, ::2, ::2], expected["masks"])
    layers = torch.stack([p.mask_logits[0, ::25, 2::8, 2::8] for p in predictions[:9]])
    expect(layers, expected["layer_masks_sub"], 3e-4)
    assert (masks > 0).sum(dim=(1, 2)).tolist() == expected["mask_area"].tolist()
    expect(last.embeddings[0, ::5], expected["class_embeddings"], 3e-5)
    scores = generator.scores(last, texts_of(case), case["synonyms_per_class"])
    expect(scores.void_logits[0], expected["class_void_logits"], 2e-5)
    torch.testing.assert_close(scores.class_logits, scores.void_logits[..., :-1])


def texts_of(case):
    return F.normalize(named_input(f"{case['tag']}:text", (15, 768)), dim=-1)


def test_cells_embeddings_and_fusions_of_masks(large):
    case, weights, expected, generator, maps, _, predictions = large
    masks, last = predictions[-1].mask_logits[0], maps["s5"]
    cells = visible_cells(masks, (6, 10), 32, binarise="centre")
    assert cells.sum(dim=(1, 2)).tolist() == expected["clip_cells"].tolist()
    pooled = pool(last[0], mask_weights(cells))
    expect(pooled[::10, ::4], expected["clip_pooled"], 1e-5)
    with torch.device("meta"):  # of the tower the head alone is read
        tower = ConvNeXtTower(
            shape=CONVNEXT_SHAPES["convnext_large"], image_size=320, embed_dim=768, projection="mlp"
        )
    head = {n.removeprefix(f"{CLIP}visual."): t for n, t in weights.items()}
    tower.load_state_dict(head, assign=True, strict=False)
    regions = tower.pool_cells(last, cells)
    expect(regions[::10], expected["clip_embeddings"], 1e-5)
    synonyms = case["synonyms_per_class"]
    scale = weights[f"{CLIP}logit_scale"].exp().clamp(max=100)
    logits = class_logits(regions, texts_of(case), synonyms, scale)
    expect(logits, expected["clip_logits"], 1e-5)
    scores = generator.scores(predictions[-1], texts_of(case), synonyms)
    seen = torch.tensor([index in case["seen_classes"] for index in range(8)])
    given = scores.class_logits[0], logits, scores.void_prob[0], seen, case["alpha"], case["beta"]
    valid = cells.flatten(1).any(dim=1)
    assert (~valid).sum() == 95
    expect(fuse_scores(*given), expected["probabilities"], 2e-6)
    expect(fuse_scores(*given, valid), expected["probabilities_valid"], 2e-6)
    expect(
        fuse_scores(*given, None, case["coat_weight"]), expected["probabilities_coat_w0.5"], 2e-6
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A whole small model by its configuration, with a checkpoint in the official form, and its image."""
    case, weights, expected = case_of("fcclip_small")
    name = "convnext-of-the-case"
    configs = clip_build._configs() | {name: case["open_clip_model"]}
    path = tmp_path_factory.mktemp("fcclip") / "fcclip_cocopan.pth"
    torch.save({"model": weights | {"criterion.empty_weight": torch.ones(134)}}, path)
    sizes = {
        "NUM_OBJECT_QUERIES": case["queries"],
        "HIDDEN_DIM": case["hidden_dim"],
        "NHEADS": case["nheads"],
        "DIM_FEEDFORWARD": case["dim_feedforward"],
        "DEC_LAYERS": case["decoder_layers"],
        "TEST.OVERLAP_THRESHOLD": case["overlap_threshold"],
    }
    opts = {f"MODEL.MASK_FORMER.{key}": value for key, value in sizes.items()} | {
        "MODEL.MASK_GENERATOR.ENCODER_LAYERS": case["encoder_layers"],
        "MODEL.CLIP.NAME": name,
        "MODEL.CLIP.WEIGHTS": "",
        "MODEL.WEIGHTS": path,
        "TEST.DETECTIONS_PER_IMAGE": case["topk"],
    }
    flat = [str(part) for pair in opts.items() for part in pair]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_build, "_configs", lambda: configs)
        model = build_model(load_config(ROOT / "configs/panoptic/fcclip+convnext_large.yaml", flat))
    path.unlink()
    listed = [name.split(",") for name in case["classes"]]
    entries = [
        VocabularyClass(tuple(names), index, isthing=index in case["things"])
        for index, names in enumerate(listed)
    ]
    trained = {name for names in case["train_classes"] for name in names.split(",")}
    seen = np.array([any(name in trained for name in names) for names in listed])
    model.set_vocabulary(Vocabulary("small", tuple(entries)), seen)
    tag = case["tag"]
    low = named_input(f"{tag}:tiles", (1, 3, 5, 13))
    low = low.repeat_interleave(40, 2).repeat_interleave(20, 3)
    image = 0.5 + 0.2 * low + 0.12 * named_input(f"{tag}:image", (1, 3, 200, 260))
    pixels = (image.clamp(0, 1)[0] * 255).round().to(torch.uint8)
    height, width = case["output_size"]
    sample = {"image": pixels, "height": height, "width": width}
    return model.eval().requires_grad_(False), sample, seen, expected


def test_canvas_and_stages_of_a_small_model(small):
    model, sample, _, expected = small
    canvas = Canvas(size_divisibility=32, padding=-1).padded(sample["image"], model.clip.mean)
    pixels = model.clip.normalise(canvas)
    expect(pixels[0, :, ::8, ::8], expected["padded_image_sub"], 1e-6)
    assert (pixels[:, :, 200:] == 0).all() and (pixels[..., 260:] == 0).all()
    stages = ["stem", *(f"block{i}" for i in range(4))]
    maps = model.clip.features(pixels, stages)
    steps = {"stem": (8, 8), "res2": (8, 8), "res3": (8, 4), "res4": (16, 2), "res5": (16, 1)}
    for (name, (channel, step)), stage in zip(steps.items(), stages):
        expect(maps[stage][0, ::channel, ::step, ::step], expected[name], 3e-5)


def test_texts_of_a_small_model(small):
    model, _, _, expected = small
    void = F.normalize(model.generator.void_embedding.weight, dim=-1)
    expect(torch.cat([model.masks.texts(model.classes), void]), expected["text"], 2e-6)
    assert model.masks.bank is model.branch_bank  # encoded once


def test_masks_and_probabilities_of_a_small_model(small):
    model, sample, seen, expected = small
    generated = model.generate(sample)
    assert generated.canvas == (224, 288)
    expect_half(generated.mask_logits, expected["masks"])
    canvas = model.masks.canvas.padded(sample["image"], model.clip.mean)
    (prediction,) = model.generator(model.backbone(canvas))
    expect(prediction.embeddings[0], expected["class_embeddings"], 3e-5)
    named = model.masks.texts(model.classes), model.classes.synonyms
    scores = model.generator.scores(prediction, *named)
    expect(scores.void_logits[0], expected["class_void_logits"], 3e-5)
    cells = visible_cells(generated.mask_logits, (7, 9), 32, binarise="centre")
    assert cells.sum(dim=(1, 2)).tolist() == expected["clip_cells"].tolist()
    image = sample["image"] / 255
    read = generated.mask_logits, generated.canvas, generated.backbone_map
    regions, valid = model.branch.embed(image, *read)
    expect(regions, expected["clip_embeddings"], 3e-5)
    assert torch.equal(valid, cells.flatten(1).any(dim=1))
    again, _ = model.branch.embed(image, *read[:2])  # by a pass of its own
    torch.testing.assert_close(again, regions, atol=1e-5, rtol=0)
    logits, _ = model.clip_scores(sample, generated)
    expect(logits, expected["clip_logits"], 3e-5)
    fusion = model.fusion.returned()
    probs = generated.probabilities(logits, None, torch.from_numpy(seen), fusion)
    expect(probs, expected["probabilities"], 5e-6)
    masks = resize_masks(generated.mask_logits, (224, 288), (200, 260), (150, 195))
    expect(masks[:, ::8, ::8], expected["masks_out_sub"], 3e-4)


def test_outputs_of_a_small_model(small, monkeypatch):
    model, sample, _, expected = small
    passes = []
    features = type(model.clip.visual).features
    monkeypatch.setattr(
        type(model.clip.visual), "features", lambda *args: passes.append(1) or features(*args)
    )
    (outputs,) = model([sample])
    assert len(passes) == 1  # for masks and names
    expect(outputs["sem_seg"][:, ::4, ::4], expected["semantic_scores"], 2e-4)
    classes = outputs["sem_seg"].argmax(dim=0)
    assert (classes.numpy() != expected["semantic_argmax"]).sum() <= 5
    ids, segments = outputs["panoptic_seg"]
    assert (ids.numpy() != expected["panoptic"]).sum() <= 5
    rows = [[s["id"], int(s["isthing"]), s["category_id"]] for s in segments]
    assert rows == expected["segments"].tolist()
    instances = outputs["instances"]
    found = sorted(
        zip(
            (-instances.scores).tolist(),
            instances.pred_classes.tolist(),
            instances.pred_masks.sum(dim=(1, 2)).tolist(),
        )
    )
    scores, labels, areas = (np.array(column) for column in zip(*found))
    np.testing.assert_allclose(-scores, expected["instance_scores"], atol=2e-5)
    assert labels.tolist() == expected["instance_labels"].tolist()
    assert np.abs(areas - expected["instance_areas"]).max() <= 2
