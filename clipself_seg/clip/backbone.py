"""Builds the CLIP of every model from a backbone in Detectron2's BACKBONE_REGISTRY, see ``MODEL.CLIP.BACKBONE``.

`build_clip` returns that CLIP. `VisionLanguageBackbone` lists the members that a registered backbone needs.
`CLIPBackbone` is the backbone of this project; Detectron2's stock heads can use it, too
(``MODEL.BACKBONE.NAME: CLIPBackbone``). docs/backbone.md shows how to register another backbone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol, cast

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from clipself_seg.checkpoints.dense_feature import DenseFeature
from clipself_seg.checkpoints.read import load_tensors, name_problem
from clipself_seg.clip.kind import LARGEST_SCALE, Architecture, Layout, Sizes, TowerKind
from clipself_seg.clip.model import DenseCLIP, load_clip
from clipself_seg.clip.text import TextEncoder, encode_prompts
from clipself_seg.clip.tower import DENSE, FeatureShape, ImageTower, Readouts, train_last_blocks
from clipself_seg.clip.training_free import refuse_training
from clipself_seg.config.keys import KEYS
from clipself_seg.config.weights import refuse_addresses
from clipself_seg.errors import InputError, nearest

logger = logging.getLogger(__name__)
Pixels = tuple[float, ...]


class VisionLanguageBackbone(Protocol):
    """Members that every model needs of a registered backbone, beside those of Detectron2's `Backbone`.

    Optional members:
        ``encode_image``: embeddings (B, E) of normalised square images. Models that read crops refuse a backbone
            without it.
        ``layer_groups``: parameters of the image tower, as `ImageTower.layer_groups` returns them. Models that train
            the tower refuse a backbone without it.
        ``final_norm``: norm of tokens (..., C) behind its last block. Where it is missing, ``block{i}`` are taps of a
            plain mask decoder as they are.
        ``heads``: number of heads of its attention; one of 64 channels each where it is missing.
        ``scale``: factor by which cosines are multiplied before the softmax; 100 where it is missing.
        ``text``: module whose weights decide the embeddings of texts; the whole backbone where it is missing.
        ``reads``: keys of `CLIPBackbone` that the backbone reads too, an attribute of the class. Those that it does
            not list are an error where somebody sets them, and the name and the weights of the CLIP are empty.

    Attributes:
        mean: mean of RGB pixels in [0, 1] that is subtracted from an image.
        std: standard deviation of RGB pixels in [0, 1] that an image is divided by.
        image_size: side in pixels of the square images that it was made for.
    """

    mean: Sequence[float]
    std: Sequence[float]
    image_size: int

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        """Features (B, C, H / stride, W / stride) by name of normalised images: ``dense``, and ``block{i}`` if any."""

    def output_shape(self) -> Mapping[str, ShapeSpec]:
        """Channels and stride of every feature; those of ``dense`` are in the space of its texts."""

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (K, E) of K sentences, of any length."""


REQUIRED = ("mean", "std", "image_size", "output_shape", "encode_text")
# Models do these themselves with the `clip` of a CLIPBackbone, so that a subclass must not override them.
FIXED = ("forward", "output_shape", "encode_text")


@BACKBONE_REGISTRY.register()
class CLIPBackbone(Backbone):
    """Dense features (``dense``, unit length per location) and raw features of any block (``block{i}``).

    It works with every stock head of Detectron2: each feature is (B, C, H / stride, W / stride), with C
    and stride as in `output_shape`. Images must be normalised with CLIP's mean and std
    (``MODEL.PIXEL_MEAN``, ``MODEL.PIXEL_STD``) and padded to `size_divisibility`, as Detectron2's
    meta-architectures do. Its state has no text tower.

    A subclass may change the CLIP that `from_config` loads.
    """

    reads = tuple(name for name, key in KEYS.items() if key.clip_backbone)

    @configurable
    def __init__(
        self, *, clip: DenseCLIP, out_features: Sequence[str], trainable_blocks: int
    ) -> None:
        """
        Args:
            clip: CLIP, of which the image tower is a part of this module.
            out_features: names among ``dense``, ``block0``, ``block1``, ...
            trainable_blocks: number of last blocks that train; 0 freezes everything, -1 trains all
                blocks. Parameters that no feature needs stay frozen, since DistributedDataParallel
                expects a gradient of every other one.

        Raises:
            InputError: blocks are to train, and the attention is one without training.
        """
        super().__init__()
        tower = clip.visual
        if trainable_blocks:
            refuse_training(tower.attention)
        self.tower = tower
        self._clip = (clip,)  # a tuple, so that the text tower is not registered
        self.out_features = tower.check_names(out_features)
        train_last_blocks(tower, trainable_blocks, self.out_features)
        self.mean = clip.mean
        self.std = clip.std
        self.image_size = clip.image_size

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict[str, object]:
        """Reads ``MODEL.CLIP``; random weights if it names none.

        Raises:
            InputError: as `load_clip` and `ImageTower.choose_attention`; the weights are an address, for a file may
                have named it.
        """
        keys = cfg.MODEL.CLIP
        refuse_addresses(cfg)
        feature = configured_feature(cfg)
        clip = load_clip(
            keys.NAME, keys.WEIGHTS or None, dense=feature, override=keys.DENSE_OVERRIDE
        )
        clip.visual.choose_regions(keys.REGIONS_SEE_CLASS_TOKEN)
        clip.visual.choose_attention(keys.ATTENTION)
        clip.visual.checkpointing = keys.CHECKPOINTING
        if keys.COMPILE:
            clip.visual.compile_blocks()
        _warn_of_other_pixels(cfg, clip)
        return {
            "clip": clip,
            "out_features": keys.OUT_FEATURES,
            "trainable_blocks": keys.TRAINABLE_BLOCKS,
        }

    @property
    def clip(self) -> DenseCLIP:
        """The CLIP with both towers."""
        return self._clip[0]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The features in `out_features` by name, of normalised images (B, 3, H, W)."""
        features = self.tower.features(images, self.out_features)
        if DENSE in features:
            features[DENSE] = F.normalize(features[DENSE], dim=1)
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature."""
        shapes = self.tower.feature_shapes()
        return {name: ShapeSpec(**shapes[name]._asdict()) for name in self.out_features}

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (K, E) of K sentences, of unit length, on the device of the text tower."""
        return F.normalize(encode_prompts(self.clip.text, self.clip.tokenize(texts)), dim=-1)

    @property
    def size_divisibility(self) -> int:
        """Number of pixels that the sides of the input must be multiples of."""
        return self.tower.patch_size


def other_pixels(section: CfgNode, clip: DenseCLIP) -> list[tuple[str, Pixels, Pixels]]:
    """Compares PIXEL_MEAN and PIXEL_STD of a section with a CLIP's.

    Returns:
        Key, value and CLIP's value of each that differs by more than 0.5.
    """
    others = []
    for key, values in (("PIXEL_MEAN", clip.mean), ("PIXEL_STD", clip.std)):
        given, wanted = tuple(section[key]), tuple(round(255 * value, 3) for value in values)
        if any(abs(a - b) > 0.5 for a, b in zip(given, wanted)):
            others.append((key, given, wanted))
    return others


def _warn_of_other_pixels(cfg: CfgNode, clip: DenseCLIP) -> None:
    """Warns of pixels that CLIP was not trained with: Detectron2's defaults are BGR and ImageNet's mean."""
    for key, given, wanted in other_pixels(cfg.MODEL, clip):
        logger.warning("MODEL.%s is %s, this CLIP was trained with %s", key, given, wanted)
    if cfg.INPUT.FORMAT != "RGB":
        logger.warning("INPUT.FORMAT is %s, CLIP needs RGB", cfg.INPUT.FORMAT)


def configured_feature(cfg: CfgNode) -> DenseFeature:
    """The dense feature that ``MODEL.CLIP.{DENSE, DENSE_BLOCKS}`` name."""
    return DenseFeature(cfg.MODEL.CLIP.DENSE, cfg.MODEL.CLIP.DENSE_BLOCKS)


def build_clip(cfg: CfgNode, **keys: str) -> DenseCLIP:
    """The CLIP of the backbone ``MODEL.CLIP.BACKBONE``, in evaluation mode; the model decides which parameters train.

    Args:
        cfg: configuration that the backbone is built from; `CLIPBackbone` reads ``MODEL.CLIP``.
        **keys: values that replace those of keys below ``MODEL.CLIP``, such as BACKBONE and WEIGHTS for a second CLIP.

    Raises:
        InputError: no backbone is registered by this name, it lacks a member of `VisionLanguageBackbone`, or it raises
            an error itself.
    """
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in keys.items():
        cfg.MODEL.CLIP[key] = value
    name = cfg.MODEL.CLIP.BACKBONE
    entry = find_entry(name)
    ours = isinstance(entry, type) and issubclass(entry, CLIPBackbone)
    if ours:
        # Nothing is normalised before the model does it, and the model says what trains.
        cfg.MODEL.PIXEL_MEAN = []
        cfg.MODEL.PIXEL_STD = []
        cfg.INPUT.FORMAT = "RGB"
        cfg.MODEL.CLIP.OUT_FEATURES = (DENSE,)
        cfg.MODEL.CLIP.TRAINABLE_BLOCKS = 0
        if changed := [m for m in FIXED if getattr(entry, m) is not getattr(CLIPBackbone, m)]:
            raise InputError(
                f"the backbone {name} is a CLIPBackbone with another {', '.join(changed)}, which models do not "
                "call: change the CLIP in from_config, or derive it from Detectron2's Backbone (docs/backbone.md)"
            )
    backbone = entry(cfg, ShapeSpec(channels=3))
    return backbone.clip if isinstance(backbone, CLIPBackbone) else _clip_of(name, backbone)


def find_entry(
    name: str, key: str = "MODEL.CLIP.BACKBONE"
) -> Callable[[CfgNode, ShapeSpec], nn.Module]:
    """The class or function that BACKBONE_REGISTRY has under a name.

    Args:
        name: of the entry.
        key: that names it, for the message.

    Raises:
        InputError: there is none.
    """
    entries = dict(BACKBONE_REGISTRY)
    if name not in entries:
        raise InputError(
            f'{key} "{name}" is not in BACKBONE_REGISTRY: import the module that registers it, which '
            "--import does on a command line; "
            f"{nearest(name, entries)}"
        )
    return cast(Callable[[CfgNode, ShapeSpec], nn.Module], entries[name])


def entries_of(modules: Collection[str]) -> list[str]:
    """Names of the entries of BACKBONE_REGISTRY that modules or packages of these names have registered."""
    entries = dict(BACKBONE_REGISTRY).items()
    return [name for name, entry in entries if entry.__module__.partition(".")[0] in modules]


def _clip_of(name: str, module: nn.Module) -> DenseCLIP:
    """A CLIP whose image and text towers are those of a backbone that another module registered.

    Raises:
        InputError: names what the backbone lacks.
    """
    lacks = [member for member in REQUIRED if not hasattr(module, member)]
    if lacks:
        raise InputError(
            f"the backbone {name} has no {', '.join(lacks)}: docs/backbone.md says what a backbone offers "
            "that sees images and reads texts"
        )
    backbone = cast(VisionLanguageBackbone, module)
    shapes = backbone.output_shape()
    if DENSE not in shapes or not shapes[DENSE].channels or not shapes[DENSE].stride:
        raise InputError(
            f'the backbone {name} gives {", ".join(shapes)}, and no "{DENSE}" of some channels and stride: '
            "models compare that with texts"
        )
    with torch.no_grad():
        width = backbone.encode_text(["a"]).shape[1]
    if width != shapes[DENSE].channels:
        raise InputError(
            f"the backbone {name} has texts of {width} numbers, and dense features of {shapes[DENSE].channels}"
        )
    tower, texts = BackboneTower(name, backbone), TextNumbers()
    kind = TowerKind(
        name=name,
        supports=lambda config: False,
        sizes=lambda architecture: Sizes(width, tower.depth, tower.patch_size, width),
        build_image=lambda architecture, quick_gelu: tower,
        build_text=lambda architecture, quick_gelu: BackboneText(name, backbone, texts),
        tokenizer=lambda architecture: texts,
        key_tensors={},
        read_sizes=lambda tensors: Sizes(width, tower.depth, tower.patch_size, width),
        layouts={"official": Layout(write=dict)},
        positions={},
        mean=_three(backbone.mean),
        std=_three(backbone.std),
        scale=float(getattr(backbone, "scale", LARGEST_SCALE)),
        readouts=BackboneTower.readouts,
    )
    architecture = Architecture(
        name=name, kind=kind, embed_dim=width, vision={}, text={}, quick_gelu=False
    )
    return DenseCLIP(architecture=architecture, quick_gelu=False).eval()


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def load_state(clip: DenseCLIP, tensors: Mapping[str, Tensor], source: str) -> None:
    """Loads the state of a CLIP that `_clip_of` made; names and shapes have to be those of its backbone.

    Raises:
        InputError: missing, unexpected or misshapen tensors.
    """
    if problem := name_problem(clip.state_dict(), tensors):
        raise InputError(f"{source} {problem.what} of {clip.name} ({problem.names})")
    load_tensors(clip, tensors, source, clip.name)


class BackboneTower(ImageTower):
    """The image tower of a backbone that another module registered; it stays in evaluation mode."""

    readouts = Readouts(masked_attention=False, compiled=(False,))

    def __init__(self, name: str, backbone: VisionLanguageBackbone) -> None:
        """
        Args:
            name: of the entry, for messages.
            backbone: the backbone, which becomes a part of this module.
        """
        super().__init__()
        self.name = name
        self.shapes = {
            feature: FeatureShape(spec.channels or 0, spec.stride or 0)
            for feature, spec in backbone.output_shape().items()
        }
        self.embed_dim, self.patch_size = self.shapes[DENSE]
        self.image_size = int(backbone.image_size)
        self.blocks = nn.ModuleList()
        self.backbone: VisionLanguageBackbone = backbone

    @property
    def depth(self) -> int:
        """Number of features ``block{i}``."""
        return sum(name.startswith("block") for name in self.shapes)

    @property
    def width(self) -> int:
        """Channels of the widest feature."""
        return max(shape.channels for shape in self.shapes.values())

    @property
    def heads(self) -> int:
        """Number of heads of its attention."""
        return int(getattr(self.backbone, "heads", max(1, self.width // 64)))

    def final_norm(self, tokens: Tensor) -> Tensor:
        """Apply the backbone's final norm to tokens (..., C) of any block. Without one they stay as they are."""
        norm = getattr(self.backbone, "final_norm", None)
        return tokens if norm is None else norm(tokens)

    def train(self, mode: bool = True) -> BackboneTower:
        """Stays in evaluation mode."""
        super().train(False)
        return self

    def description(self) -> str:
        """Describes the dense features in words."""
        return f"dense of {self.name}"

    def forward(self, images: Tensor) -> Tensor:
        """Image embeddings (B, E) of normalised images (B, 3, S, S).

        Raises:
            InputError: the backbone has none.
        """
        encode = self._optional("encode_image", "embeddings of whole images and of crops")
        return cast(Tensor, encode(images))

    def require_images(self) -> None:
        """As `ImageTower.require_images`."""
        self._optional("encode_image", "embeddings of whole images and of crops")

    def features(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Feature maps of one pass by name."""
        wanted = self.check_names(names)
        features = self.backbone(images)
        return {name: features[name] for name in wanted}

    def feature_shapes(self) -> dict[str, FeatureShape]:
        """Channels and stride in pixels of every feature."""
        return dict(self.shapes)

    def layer_groups(self) -> dict[str, list[nn.Parameter]]:
        """The backbone's own partition of its parameters.

        Raises:
            InputError: it has none.
        """
        groups = cast(
            Mapping[str, Iterable[nn.Parameter]],
            self._optional(
                "layer_groups", "groups of parameters, without which nothing of it trains"
            )(),
        )
        return {name: list(parameters) for name, parameters in groups.items()}

    def check_names(self, names: Iterable[str]) -> list[str]:
        """Feature names as a list.

        Raises:
            InputError: the backbone has no feature of that name.
        """
        wanted = list(names)
        if lacks := [name for name in wanted if name not in self.shapes]:
            raise InputError(
                f"the backbone {self.name} gives {', '.join(self.shapes)}, and no {', '.join(lacks)}, which "
                f"{'is' if len(lacks) == 1 else 'are'} to be read"
            )
        return wanted

    def masked_attention(self, images: Tensor, masks: list[Tensor]) -> Tensor:
        """Refuses: there is no class token to copy."""
        raise InputError(
            f"the backbone {self.name} has no masked attention: pool its dense features"
        )

    def _optional(self, member: str, what: str) -> Callable[..., object]:
        method = getattr(self.backbone, member, None)
        if method is None:
            raise InputError(f"the backbone {self.name} has no {member}, {what}")
        return cast(Callable[..., object], method)


class TextNumbers:
    """The tokenizer of backbones that read sentences as they are: a sentence is one token, its number."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.numbers: dict[str, int] = {}

    def __call__(self, texts: Sequence[str], context_length: int = 1) -> Tensor:
        """Numbers (K, 1) int64 of K texts, equal for equal ones."""
        for text in texts:
            if text not in self.numbers:
                self.numbers[text] = len(self.texts)
                self.texts.append(text)
        return torch.tensor([[self.numbers[text]] for text in texts]).view(-1, 1)

    def __deepcopy__(self, memo: object) -> TextNumbers:
        """The same, so that numbers mean the same to all copies of a model."""
        return self

    def count(self, text: str) -> int:
        """One, so that no text is too long: the backbone cuts its texts itself."""
        return 1


class BackboneText(TextEncoder):
    """Embeds sentences by their numbers (`TextNumbers`) with a backbone of another module; it never trains."""

    context_length = 1
    stored = False  # the code that encodes is another's, and changes

    def __init__(self, name: str, backbone: VisionLanguageBackbone, texts: TextNumbers) -> None:
        """
        Args:
            name: of the entry, for messages.
            backbone: the backbone, which is a part of its `BackboneTower` and not of this module.
            texts: the sentences.
        """
        super().__init__()
        self.name = name
        self.texts = texts
        self._backbone = (backbone,)

    @property
    def owner(self) -> nn.Module:
        """The module whose weights decide the embeddings: the backbone's `text`, or all of it."""
        (backbone,) = self._backbone
        return cast(nn.Module, getattr(backbone, "text", backbone))

    @property
    def blocks(self) -> nn.ModuleList:
        """None: they are the backbone's."""
        return nn.ModuleList()

    def forward(self, tokens_KT: Tensor, checkpointing: bool = False) -> Tensor:
        """Embeddings (K, E) of the sentences with these numbers (K, 1)."""
        (backbone,) = self._backbone
        return backbone.encode_text(
            [self.texts.texts[number] for number in tokens_KT[:, 0].tolist()]
        )

    def whole(self, tokens_KT: Tensor) -> Tensor:
        """Refuses: sentences are no tensors, which a graph could be given."""
        raise InputError(f"the backbone {self.name} reads sentences, which no exported graph does")
