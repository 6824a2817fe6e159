"""The kind of OpenAI's ResNets, apart from their tower because that imports open_clip, which takes seconds."""

from __future__ import annotations

from clipself_seg.clip.file_names import TEXT_AT_TOP
from clipself_seg.clip.kind import (
    Architecture,
    Config,
    PositionTable,
    Sizes,
    Tensors,
    TowerKind,
    count_blocks,
    has_clip_text,
)
from clipself_seg.clip.openai_vit import VISION_KEYS
from clipself_seg.clip.tower import ImageTower

STRIDE = 32


def _build(architecture: Architecture, quick_gelu: bool) -> ImageTower:
    from clipself_seg.clip.resnet import ResNetTower  # imports open_clip

    vision = architecture.vision
    return ResNetTower(
        image_size=vision.get("image_size", 224),
        width=vision["width"],
        layers=tuple(vision["layers"]),
        embed_dim=architecture.embed_dim,
    )


def _supports(config: Config) -> bool:
    vision = config["vision_cfg"]
    return (
        has_clip_text(config)
        and not set(vision) - VISION_KEYS
        and isinstance(vision.get("layers"), list)
    )


def _sizes(architecture: Architecture) -> Sizes:
    vision = architecture.vision
    return Sizes(vision["width"], sum(vision["layers"]), STRIDE, architecture.embed_dim)


def _read_sizes(tensors: Tensors) -> Sizes:
    layers = sum(count_blocks(tensors, f"layer{stage}") for stage in (1, 2, 3, 4))
    width = tensors["visual.conv3.weight"].shape[0]
    return Sizes(width, layers, STRIDE, tensors["visual.attnpool.c_proj.weight"].shape[0])


RESNET = TowerKind(
    name="ResNet",
    supports=_supports,
    sizes=_sizes,
    build_image=_build,
    key_tensors={
        "visual.layer4.0.conv1.weight": 4,
        "visual.attnpool.c_proj.weight": 2,
        "visual.conv3.weight": 4,
    },
    read_sizes=_read_sizes,
    layouts=TEXT_AT_TOP,
    positions={"visual.attnpool.positional_embedding": PositionTable()},
    quick_gelu=True,
    masked_attention=False,
    patched=False,
)
