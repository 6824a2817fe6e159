"""The whole detector from an image on, and the taps of OpenAI's tower, against the official numbers."""

import pytest
import torch
import torch.nn.functional as F

from clipself_seg.clip import load_clip
from clipself_seg.clip.tower import DENSE
from clipself_seg.errors import InputError
from clipself_seg.heads.fvit.pyramid import FeaturePyramid, TapResizers
from clipself_seg.models import FViT
from clipself_seg.models.fvit.fvit_config import InputSettings
from clipself_seg.models.model_protocols import Classes
from tests.heads.fvit import official
from tests.heads.fvit.official import close
from tests.parity.named_weights import named_input, without_numbers

CASE = "fvit_coco_b16"


def released():
    """A released checkpoint's tensors: no text tower, a layer that nothing uses, tables of positions."""
    content = official.about(CASE)
    tensors = dict(official.state(CASE))
    tensors["roi_head.bbox_head.detect_temperature"] = torch.tensor(content["detect_temperature"])
    tensors["roi_head.bbox_head.all_embeddings"] = official.text(CASE).T
    tensors["neck.lateral_convs.0.bn.num_batches_tracked"] = torch.tensor(5)
    tensors["backbone.visual.rope.freqs_cos"] = torch.zeros(2, 2)
    tensors["backbone.visual.blocks.0.attn.rope.freqs_sin"] = torch.zeros(2, 2)
    return tensors


@pytest.fixture(scope="module")
def model():
    with without_numbers(0.0):  # the text tower stays as it is made, and has to be finite
        clip = load_clip("EVA02-B-16", None)
        built = FViT(
            clip=clip,
            backbone=TapResizers(768),
            neck=FeaturePyramid(768),
            **dict(zip(("rpn_head", "roi_head"), official.stages(CASE))),
            inputs=InputSettings(
                (3, 5, 7, 11), official.about(CASE)["full"]["padded"], (0, 0, 0), (1, 1, 1)
            ),
        )
    with pytest.raises(InputError, match="has no text tower: name the CLIP"):
        built.load_checkpoint(released(), "released.pth")
    clip.report = "as if MODEL.CLIP.WEIGHTS had been read"
    built.load_checkpoint(released(), "released.pth")
    return built.eval()


@torch.no_grad()
def test_image_to_detections(model, monkeypatch):
    content, wanted = official.about(CASE), official.expected(CASE)
    full = content["full"]
    height, width = full["img_shape"]
    image = named_input(f"{CASE}:image", (1, 3, full["padded"], full["padded"]))
    image[:, :, height:] = 0
    image[..., width:] = 0
    maps = model.clip.features(image, [*model.taps, DENSE])
    for i, tap in enumerate(model.taps[:3]):
        close(maps[tap][0].flatten(1).T[:, ::32], wanted[f"full_tap{i}"], 1e-4)
    levels, dense = model.features(image, dense=True)
    close(dense[0, ::4, ::2, ::2], wanted["full_vlm"], 2e-6)
    close(levels[1][0, ::16, ::2, ::2], wanted["full_p3"], 5e-4)
    close(levels[3][0, ::8], wanted["full_p5"], 5e-4)
    classes = (("any",),) * content["num_classes"]
    model.classes = Classes(classes, seen=official.seen(CASE).numpy())
    monkeypatch.setattr(model, "text", lambda classes: official.text(CASE))
    rows, columns = full["ori_shape"]
    sample = {"image": image[0, :, :height, :width], "height": rows, "width": columns}
    proposals = model.rpn_head.propose(*model.rpn_head(levels), 0, (height, width))
    assert len(proposals[0]) == wanted["full_proposals_count"]
    assert official.same_boxes(*proposals, wanted["full_proposals"], 0.05, 1e-3)
    instances = model([sample])[0]["instances"]
    own = instances.pred_boxes.tensor, instances.scores, instances.pred_classes
    assert official.same_detections(own, wanted, "full_det", 0.05, 1e-3)


@torch.no_grad()
def test_taps_of_openais_tower():
    case = "fvit_openai_b16_taps"
    wanted = official.expected(case)
    with without_numbers():
        clip = load_clip("ViT-B-16-quickgelu", None)
    own = {n.removeprefix("backbone."): t for n, t in official.state(case).items()}
    visual = {n.removeprefix("visual."): t for n, t in own.items() if n.startswith("visual.")}
    clip.visual.load_state_dict(visual)
    resizers = TapResizers(768).eval()
    left = resizers.load_state_dict(
        {n: t for n, t in own.items() if n.startswith("interpolate")}, strict=False
    )
    assert not left.unexpected_keys
    image = named_input(f"{case}:image", (1, 3, 192, 192))
    image[:, :, 144:] = 0
    names = ["block3", "block5", "block7", "block11", DENSE]
    maps = clip.features(image, names)
    for i, name in enumerate(names[:3]):
        close(maps[name][0].flatten(1).T[:, ::32], wanted[f"tap{i}"].squeeze(), 1e-4)
    resized = resizers([maps[name] for name in names[:4]])
    close(resized[3][0, ::8], wanted["tap3_pooled"].squeeze(), 1e-4)
    for i, stride in enumerate((4, 2, 1)):
        close(resized[i][0, ::16, ::stride, ::stride], wanted[f"map{i}"].squeeze(), 1e-4)
    close(F.normalize(maps[DENSE], dim=1)[0, ::4], wanted["dense"].squeeze(), 2e-6)
