"""Formats of weights."""

from __future__ import annotations

import contextlib
import functools
import io
import pickle
import random
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from clipself_seg.checkpoints.pickles import read_numpy_pickle
from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.clip import DenseCLIP, kinds, load_clip
from clipself_seg.clip.model import save_clip
from clipself_seg.clip.tokenizers import read_tokenizer
from clipself_seg.config import load_config
from clipself_seg.heads.diffusion.weights import read_stable_diffusion
from clipself_seg.models.build import build_model
from clipself_seg.models.cat_seg.config import build_backbone
from tests.checkpoint_files import Bomb, in_layout, save_as, save_tips
from tests.conftest import ROOT
from tests.fuzz.mutations import ODD_VALUES
from tests.fuzz.readers import Reader
from tests.small_towers import TIPS, write_tokenizer

ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 32, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 1, "layers": 1},
}
TINY = "ViT-Fuzz"
TINY_WITH_WORDS = "ViT-Fuzz-Words"
ALL_WORDS = {"text_cfg": {**ARCHITECTURE["text_cfg"], "vocab_size": 49408}}
TINY_RESNET = "RN-Fuzz"
TINY_TIPS = "TIPSv2-Fuzz"
RESNET = {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}}
kinds._configs().update(
    {
        TINY: ARCHITECTURE,
        TINY_WITH_WORDS: ARCHITECTURE | ALL_WORDS,
        TINY_RESNET: ARCHITECTURE | RESNET,
        TINY_TIPS: TIPS,
    }
)


def odd_tensors(tensors: Mapping[str, Any], rng: random.Random, only_tensors: bool = False) -> Any:
    """A state dict in which something is of another type, shape, kind or name.

    Args:
        tensors: a valid one.
        rng: decides everything.
        only_tensors: whether the values stay dense tensors, as safetensors needs them.
    """
    changed: dict[Any, Any] = dict(tensors)
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(list(changed))
        value = changed[name]
        kind = rng.randrange(5)
        if kind == 0:
            del changed[name]
        elif kind == 1:
            new = rng.choice(("", "x" * 5000, f"module.{name}", name.upper(), f"{name}.x"))
            changed[new] = changed.pop(name)
        elif isinstance(value, Tensor):
            with contextlib.suppress(RuntimeError, TypeError):  # there is no NaN of uint8
                changed[name] = rng.choice(_variants(value, only_tensors))()
        if not changed:
            break
    if only_tensors:
        return changed
    key = rng.choice((0, None, (1, 2), b"x", 1.5, "epoch"))
    wrapped: tuple[Callable[[], Any], ...] = (
        *(lambda: {**changed, key: next(iter(tensors.values()))}, lambda: {"model": changed}),
        *(lambda: {"state_dict": {"model": changed}}, lambda: {"model": None, "module": changed}),
        *(lambda: [changed], lambda: OrderedDict(changed), lambda: {**changed, "activation": 7}),
        *(lambda: {**changed, "pixel_mean": "[1, NaN, 1e999]", "pixel_std": "[0, 0, 0]"},),
        *(lambda: {**changed, "pixel_mean": key}, lambda: {"model": {"model": {"module": 0}}}),
    )
    return rng.choice(wrapped)() if rng.random() < 0.3 else changed


def _variants(value: Tensor, only_tensors: bool) -> list[Callable[[], Any]]:
    """Other values in the place of a tensor."""
    dense: list[Callable[[], Any]] = [
        *(lambda d=dtype: value.to(d) for dtype in (torch.int64, torch.bool, torch.float64)),
        *(lambda: value.half(), lambda: value.bfloat16(), lambda: value.to(torch.float8_e4m3fn)),
        *(lambda: torch.tensor(1.0), lambda: torch.empty(0), lambda: torch.zeros(0, 3)),
        *(lambda: value[None], lambda: value.flatten(), lambda: torch.cat([value[None]] * 2)),
        *(lambda: torch.full_like(value, torch.nan), lambda: torch.zeros(1, 1, 1, 1, 1, 1)),
        *(lambda: value.flatten()[:1].clone(), lambda: torch.zeros(7, dtype=torch.uint8)),
    ]
    if only_tensors:
        return dense
    return [
        *dense,
        *(lambda: value.cfloat(), lambda: nn.Parameter(value.float()), lambda: value.to_sparse()),
        *(lambda: value.to("meta"), lambda: torch.zeros(1).expand(10**11), lambda: value.tolist()),
        lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        lambda: torch.zeros(1).as_strided((10**6, 10**6), (0, 0)),
        *(lambda odd=odd: odd for odd in ODD_VALUES),
    ]


def saved(content: Any, zipped: bool = True) -> bytes:
    """Bytes of `torch.save`."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _remade(tensors: Mapping[str, Any], rng: random.Random, zipped: bool = True) -> bytes:
    return saved(Bomb() if rng.random() < 0.03 else odd_tensors(tensors, rng), zipped)


def _remade_safetensors(tensors: Mapping[str, Any], rng: random.Random) -> bytes:
    return safetensors.torch.save(odd_tensors(tensors, rng, only_tensors=True))


@functools.cache
def _clip(architecture: str = TINY) -> DenseCLIP:
    torch.manual_seed(0)
    return load_clip(architecture, None)


@functools.cache
def _tensors() -> dict[str, Tensor]:
    """A CLIP under OpenAI's names."""
    return {name.removeprefix("text."): t.detach() for name, t in _clip().state_dict().items()}


def _make_clip(name: str, folder: Path) -> Path:
    save_clip(_clip(), folder / name)
    return folder / name


def _make_resnet(folder: Path) -> Path:
    save_clip(_clip(TINY_RESNET), folder / "clip.pt", layout="open_clip")
    return folder / "clip.pt"


def _read_resnet(path: Path) -> None:
    load_clip(TINY_RESNET, path)


def _make_tips(layout: str, folder: Path) -> Path:
    save_tips(_clip(TINY_TIPS), folder / "clip.pt", layout)
    return folder / "clip.pt"


def _read_tips(path: Path) -> None:
    load_clip(TINY_TIPS, path)


def _tips_reader(layout: str) -> Reader:
    def remake(rng: random.Random) -> bytes:
        clip = _clip(TINY_TIPS)
        return _remade(in_layout(clip, layout), rng)

    return Reader(functools.partial(_make_tips, layout), _read_tips, "zip", remake, weight=0.3)


def _make_tokenizer(folder: Path) -> Path:
    return write_tokenizer(folder / "tokenizer.json")


def _read_tokenizer(path: Path) -> None:
    read_tokenizer(path, vocabulary=60)(["a photo of a cat", ""], 8)


def _make_kind(kind: str, name: str, folder: Path) -> Path:
    save_as(kind, _tensors(), folder / name)
    return folder / name


def _read_clip(path: Path) -> None:
    load_clip(TINY, path)


# Detectron2's backbones.


def _arrays() -> dict[str, Any]:
    state = build_backbone(_backbone_config("random")).state_dict()
    return {name: tensor.numpy() for name, tensor in state.items()}


@functools.cache
def _backbone_config(weights: str) -> CfgNode:
    sizes = (
        "DEPTH",
        "50",
        "STEM_OUT_CHANNELS",
        "8",
        "RES2_OUT_CHANNELS",
        "8",
        "WIDTH_PER_GROUP",
        "2",
    )
    opts = [word if i % 2 else f"MODEL.RESNETS.{word}" for i, word in enumerate(sizes)]
    opts += ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.NORM", "FrozenBN"]
    opts += ["MODEL.CAT_SEG.GUIDANCE", "backbone", "MODEL.RESNETS.OUT_FEATURES", "('res2','res3')"]
    return load_config(None, [*opts, "MODEL.CAT_SEG.BACKBONE_WEIGHTS", weights])


def _make_pickle(folder: Path) -> Path:
    path = folder / "backbone.pkl"
    path.write_bytes(pickle.dumps({"model": _arrays(), "__author__": "x"}, 2))
    return path


def _remade_pickle(rng: random.Random) -> bytes:
    arrays: dict[Any, Any] = dict(list(_arrays().items())[:20])
    name = rng.choice(list(arrays))
    value = arrays[name]
    odd: list[Any] = [
        *(np.array([{}, []], object), np.array(["a"]), np.array(1, "M8[s]"), np.zeros(1, "f4,i4")),
        *(value.astype(">f4"), value.astype(complex), np.zeros(3, np.longdouble), np.float64(3)),
        *(np.asfortranarray(value), np.zeros(0), np.zeros(3, np.uint64), value.astype(np.float16)),
        *(np.broadcast_to(np.float32(0), (10**6, 10**6))[:0], np.array(b"x"), Bomb(), *ODD_VALUES),
    ]
    arrays[rng.choice((name, 0, None, ("a",), b"x"))] = rng.choice(odd)
    content = rng.choice((arrays, {"model": arrays}, [arrays], {"model": {"model": arrays}}))
    return pickle.dumps(content, rng.choice((0, 2, 3, 4, 5)))


def _read_backbone(path: Path) -> None:
    read_numpy_pickle(path)
    build_backbone(_backbone_config(str(path)))


# Checkpoints of the models.

SMALL = ("MODEL.CLIP.NAME", TINY, "MODEL.CLIP.WEIGHTS", "", "MODEL.DEVICE", "cpu")
CONFIGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "cat_seg": (
        "semseg_original.yaml",
        (
            *("MODEL.SEM_SEG_HEAD.TEXT_GUIDANCE_DIM", "16", "MODEL.SEM_SEG_HEAD.NUM_LAYERS", "1"),
            *("MODEL.SEM_SEG_HEAD.APPEARANCE_GUIDANCE_DIM", "16"),
            *("MODEL.SEM_SEG_HEAD.POOLING_SIZES", "[1]"),
        ),
    ),
    "fvit": (
        "detection_original.yaml",
        ("MODEL.CLIP.NAME", TINY_WITH_WORDS, "MODEL.FVIT.CHANNELS", "4"),
    ),
    "panoptic": (
        "panoptic_original.yaml",
        (
            *("MODEL.CLIP.NAME", TINY_WITH_WORDS, "MODEL.CLIP_BRANCH.WEIGHTS", ""),
            *("MODEL.MASK_FORMER.DEC_LAYERS", "1"),
            *("MODEL.MASK_GENERATOR.ENCODER_LAYERS", "1", "MODEL.MASK_FORMER.HIDDEN_DIM", "32"),
        ),
    ),
    "clipself": ("patches.yaml", ()),
}


@functools.cache
def _state(kind: str) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in build_model(_config(kind, "")).state_dict().items()}


def _config(kind: str, weights: str) -> CfgNode:
    name, opts = CONFIGS[kind]
    pair = ("MODEL.WEIGHTS", weights) if weights else ()
    return load_config(ROOT / "configs/mini" / name, (*SMALL, *opts, *pair))


def _make_model(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.pth"
    build_model(_config(kind, "")).export(path)
    return path


def _make_clipself(folder: Path) -> Path:
    path = folder / "clipself.pth"
    path.write_bytes(saved(_state("clipself")))
    return path


def _read_model(kind: str, path: Path) -> None:
    build_model(_config(kind, str(path)))


@functools.cache
def _exported(kind: str) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        return read_checkpoint(_make_model(kind, Path(folder))).tensors


def _model_reader(kind: str) -> Reader:
    return Reader(
        functools.partial(_make_model, kind),
        functools.partial(_read_model, kind),
        "zip",
        lambda rng: saved({"model": odd_tensors(_exported(kind), rng)}),
        weight=0.3,
    )


# Stable Diffusion.

DIFFUSION = ("model.diffusion_model.out.0.weight", "first_stage_model.decoder.conv_in.weight")
DIFFUSION += ("cond_stage_model.transformer.text_model.embeddings.position_ids", "betas")


def _diffusion() -> dict[str, Tensor]:
    return {name: torch.ones(2, 2) for name in DIFFUSION}


def _make_diffusion(folder: Path) -> Path:
    safetensors.torch.save_file(_diffusion(), folder / "diffusion.safetensors")
    return folder / "diffusion.safetensors"


WEIGHT_READERS = {
    "weights_safetensors": Reader(
        functools.partial(_make_clip, "clip.safetensors"),
        _read_clip,
        "safetensors",
        lambda rng: _remade_safetensors(_tensors(), rng),
    ),
    "weights_wrapped_pt": Reader(
        functools.partial(_make_clip, "clip.pt"),
        _read_clip,
        "zip",
        lambda rng: _remade(_tensors(), rng),
    ),
    "weights_legacy_pth": Reader(
        functools.partial(_make_kind, "legacy", "clip.pth"),
        _read_clip,
        "bytes",
        lambda rng: _remade(_tensors(), rng, zipped=False),
    ),
    "weights_torchscript": Reader(
        functools.partial(_make_kind, "torchscript", "clip.pt"), _read_clip, "zip"
    ),
    "weights_resnet_pt": Reader(
        _make_resnet,
        _read_resnet,
        "zip",
        lambda rng: _remade(_clip(TINY_RESNET).state_dict(), rng),
        weight=0.5,
    ),
    "weights_tips_official": _tips_reader("official"),
    "weights_tips_transformers": _tips_reader("transformers"),
    "weights_tips_timm": _tips_reader("timm"),
    "tokenizer_json": Reader(_make_tokenizer, _read_tokenizer, "json", weight=0.5),
    "weights_numpy_pkl": Reader(_make_pickle, _read_backbone, "bytes", _remade_pickle, weight=0.3),
    "weights_cat_seg_pth": _model_reader("cat_seg"),
    "weights_panoptic_pth": _model_reader("panoptic"),
    "weights_fvit_pth": _model_reader("fvit"),
    "weights_clipself_pth": Reader(
        _make_clipself,
        functools.partial(_read_model, "clipself"),
        "zip",
        lambda rng: saved(odd_tensors(_state("clipself"), rng)),
        weight=0.5,
    ),
    "weights_stable_diffusion": Reader(
        _make_diffusion,
        read_stable_diffusion,
        "safetensors",
        lambda rng: _remade_safetensors(_diffusion(), rng),
    ),
}
