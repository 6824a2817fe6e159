"""Builds the two towers from a model name: open_clip's model configs and the project's own ones."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from clipself_seg.checkpoints.hub import HUB
from clipself_seg.clip.eva import EvaTransformer
from clipself_seg.clip.open_clip_files import model_configs
from clipself_seg.clip.openai_vit import VisionTransformer
from clipself_seg.clip.text import TextTower
from clipself_seg.clip.tower import ImageTower
from clipself_seg.errors import InputError, nearest

OWN_CONFIGS = Path(__file__).parent / "architectures"
# Keys of open_clip's configs that the towers implement; a config with any other key is refused.
VISION_KEYS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
VISION_KEYS |= {"ls_init_value"}
TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
EVA_SHAPES = {  # timm name -> width, layers, heads, patch
    "eva02_base_patch16_clip_224": (768, 12, 12, 16),
    "eva02_large_patch14_clip_224": (1024, 24, 16, 14),
    "eva02_large_patch14_clip_336": (1024, 24, 16, 14),
}


@dataclasses.dataclass(frozen=True)
class Signature:
    """Kind and sizes that identify a CLIP image tower, derived from a config or from a state dict.

    Attributes:
        kind: "OpenAI ViT", "EVA ViT" or "ResNet".
        width: channels of the residual stream, or of a ResNet's first stage.
        layers: number of blocks, of all stages of a ResNet together.
        patch_size: stride of the dense features in pixels.
        embed_dim: width E of the embedding.
    """

    kind: str
    width: int
    layers: int
    patch_size: int
    embed_dim: int

    def __str__(self) -> str:
        patch = f", patch {self.patch_size}" if self.kind != "ResNet" else ""
        return (
            f"{self.kind} (width {self.width}, {self.layers} blocks{patch}, "
            f"embedding {self.embed_dim})"
        )


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Model config: its name and the two sections of the JSON from which the towers are built."""

    name: str
    embed_dim: int
    vision: dict[str, Any]
    text: dict[str, Any]
    quick_gelu: bool

    @property
    def signature(self) -> Signature:
        """Signature of the image tower."""
        kind, width, layers, patch = _vision_shape(self.vision)
        return Signature(kind, width, layers, patch, self.embed_dim)

    @property
    def separate_text(self) -> bool:
        """Whether official files keep the text tower under ``text.`` (EVA) or at the top (OpenAI)."""
        return self.signature.kind == "EVA ViT"

    def build_image_tower(self, quick_gelu: bool) -> ImageTower:
        """Builds the image tower with random weights."""
        kind, width, layers, patch = _vision_shape(self.vision)
        size = self.vision.get("image_size", 224)
        if kind == "ResNet":
            from clipself_seg.clip.resnet import ResNetTower  # imports open_clip

            return ResNetTower(
                image_size=size,
                width=width,
                layers=tuple(self.vision["layers"]),
                embed_dim=self.embed_dim,
            )
        if kind == "EVA ViT":
            return EvaTransformer(
                image_size=size,
                patch_size=patch,
                width=width,
                layers=layers,
                heads=EVA_SHAPES[self.vision["timm_model_name"]][2],
                hidden=int(width * 4 * 2 / 3),
                embed_dim=self.embed_dim,
            )
        return VisionTransformer(
            image_size=size,
            patch_size=patch,
            width=width,
            layers=layers,
            heads=width // self.vision.get("head_width", 64),
            mlp_ratio=self.vision.get("mlp_ratio", 4.0),
            layer_scale=self.vision.get("ls_init_value"),
            embed_dim=self.embed_dim,
            quick_gelu=quick_gelu,
        )

    def build_text_tower(self, quick_gelu: bool) -> TextTower:
        """Builds the text tower with random weights."""
        return TextTower(embed_dim=self.embed_dim, quick_gelu=quick_gelu, **self.text)


def _vision_shape(vision: dict[str, Any]) -> tuple[str, int, int, int]:
    """Kind, width, number of blocks and patch size of an image tower."""
    if "timm_model_name" in vision:
        width, layers, _, patch = EVA_SHAPES[vision["timm_model_name"]]
        return "EVA ViT", width, layers, patch
    layers = vision.get("layers", 12)
    if isinstance(layers, list):
        return "ResNet", vision["width"], sum(layers), 32
    return "OpenAI ViT", vision.get("width", 768), layers, vision.get("patch_size", 16)


def _is_supported(config: dict[str, Any]) -> bool:
    vision = config["vision_cfg"]
    text = config["text_cfg"]
    if set(text) - TEXT_KEYS or "multimodal_cfg" in config:
        return False
    if "timm_model_name" in vision:
        return vision["timm_model_name"] in EVA_SHAPES
    return not set(vision) - VISION_KEYS


@functools.cache
def _configs() -> dict[str, dict[str, Any]]:
    configs = model_configs()
    for path in sorted(OWN_CONFIGS.glob("*.json")):
        configs[path.stem] = json.loads(path.read_text())
    return configs


def list_architectures() -> list[str]:
    """Names of the models that `load_clip` accepts, sorted."""
    return sorted(name for name, config in _configs().items() if _is_supported(config))


def find_architecture(name: str) -> Architecture:
    """The architecture of an open_clip model name (``ViT-B/16`` and ``ViT-B-16`` alike).

    Raises:
        InputError: the name is unknown (the message has the nearest known one), or the model is of
            another kind (SigLIP, CoCa, ConvNeXt, ...), without dense features here.
    """
    given, name = name, name.replace("/", "-")
    if given.startswith(HUB):
        raise InputError(
            f'"{given}" is a model of the Hugging Face hub: give the name of its architecture, such as '
            f'"ViT-B-16", and as its weights "{given}", or open_clip\'s tag of them'
        )
    config = _configs().get(name)
    if config is None:
        raise InputError(f'unknown CLIP model "{given}"; {nearest(name, list_architectures())}')
    if not _is_supported(config):
        raise InputError(
            f'"{given}" is neither an OpenAI-layout ViT, nor an EVA-02 CLIP, nor a CLIP ResNet: '
            f"no dense features for it here; {nearest(name, list_architectures())}"
        )
    return Architecture(
        name=name,
        embed_dim=config["embed_dim"],
        vision=config["vision_cfg"],
        text=config["text_cfg"],
        quick_gelu=config.get("quick_gelu", False),
    )
