"""Formats of weights, of folders of `save_pretrained`, and of tensors that the project writes for itself: training
states, cached texts."""

import contextlib
import functools
import io
import json
import pickle
import random
import shlex
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import yaml
from detectron2.config import CfgNode
from torch import Tensor, nn

from clipself_seg.checkpoints.pickles import read_numpy_pickle
from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.checkpoints.training_state import read_state, write_state
from clipself_seg.clip import CLIP, TextBank, find_kind, load_clip
from clipself_seg.clip.model import save_clip
from clipself_seg.clip.tokenizers import read_tokenizer
from clipself_seg.config import load_config
from clipself_seg.config.declare import KEYS, LARGEST_NUMBER
from clipself_seg.heads.diffusion.weights import read_stable_diffusion
from clipself_seg.models.build import build_model
from clipself_seg.models.cat_seg.cat_seg_config import build_backbone
from clipself_seg.prediction.load import load
from clipself_seg.prediction.pretrained import CONFIG, MODEL, VOCABULARY
from clipself_seg.prediction.task_predictors import (
    DetectionPredictor,
    PanopticPredictor,
    SemanticPredictor,
)
from clipself_seg.training.settings import TrainingSettings
from clipself_seg.training.trainer import Trainer
from tests.checkpoint_files import Bomb, save_as
from tests.conftest import ROOT
from tests.fuzz.mutations import ODD_VALUES, mutate_tree, nodes
from tests.fuzz.readers import Reader, file, tree
from tests.small_towers import TIPS, write_tokenizer
from tests.tiny import noise, random_clip

ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 32, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 1, "layers": 1},
}
ALL_WORDS = {"text_cfg": {**ARCHITECTURE["text_cfg"], "vocab_size": 49408}}
RESNET = {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}}
TINY, TINY_WITH_WORDS = "ViT-Fuzz", "ViT-Fuzz-Words"
TINY_WITH_SENTENCES = "ViT-Fuzz-Sentences"
TINY_RESNET, TINY_TIPS = "RN-Fuzz", "TIPSv2-Fuzz"
find_kind._configs()[TINY] = ARCHITECTURE
find_kind._configs()[TINY_WITH_WORDS] = ARCHITECTURE | ALL_WORDS
find_kind._configs()[TINY_WITH_SENTENCES] = ARCHITECTURE | {
    "text_cfg": {**ALL_WORDS["text_cfg"], "context_length": 32}
}
find_kind._configs()[TINY_RESNET] = ARCHITECTURE | RESNET
find_kind._configs()[TINY_TIPS] = TIPS


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


_clip = functools.cache(random_clip)


@functools.cache
def _tensors() -> dict[str, Tensor]:
    """A CLIP under OpenAI's names."""
    state = _clip(TINY).state_dict()
    return {name.removeprefix("text."): tensor.detach() for name, tensor in state.items()}


def _read_clip(path: Path, name: str = TINY) -> None:
    load_clip(name, path)


# Detectron2's backbones.

SIZES = ("STEM_OUT_CHANNELS", "8", "RES2_OUT_CHANNELS", "8", "WIDTH_PER_GROUP", "2")
BACKBONE = [word if i % 2 else f"MODEL.RESNETS.{word}" for i, word in enumerate(SIZES)]
BACKBONE += ["MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.NORM", "FrozenBN"]
BACKBONE += ["MODEL.RESNETS.OUT_FEATURES", "('res2','res3')"]
BACKBONE += ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.CAT_SEG.GUIDANCE", "backbone"]


@functools.cache
def _backbone_config(weights: str) -> CfgNode:
    return load_config(None, [*BACKBONE, "MODEL.CAT_SEG.BACKBONE_WEIGHTS", weights])


def _arrays() -> dict[str, Any]:
    state = build_backbone(_backbone_config("random")).state_dict()
    return {name: tensor.numpy() for name, tensor in state.items()}


def _write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"model": _arrays(), "__author__": "x"}, 2))


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

SMALL = "MODEL.CLIP.NAME ViT-Fuzz MODEL.DEVICE cpu"
WITH_WORDS = "MODEL.CLIP.NAME ViT-Fuzz-Words"
HEAD, FORMER = "MODEL.SEM_SEG_HEAD", "MODEL.MASK_FORMER"
CONFIGS = {
    "cat_seg": (
        "semseg_original.yaml",
        f"{HEAD}.TEXT_GUIDANCE_DIM 16 {HEAD}.APPEARANCE_GUIDANCE_DIM 16 "
        f"{HEAD}.POOLING_SIZES [1]",
    ),
    "fvit": ("detection_original.yaml", f"{WITH_WORDS} MODEL.FVIT.CHANNELS 4"),
    "panoptic": (
        "panoptic_original.yaml",
        f"{WITH_WORDS} MODEL.CLIP_BRANCH.WEIGHTS '' {FORMER}.DEC_LAYERS 1 {FORMER}.HIDDEN_DIM 64 "
        "MODEL.MASK_GENERATOR.ENCODER_LAYERS 1",
    ),
    "clipself": ("patches.yaml", ""),
}


def _config(kind: str, weights: str) -> CfgNode:
    name, opts = CONFIGS[kind]
    words = shlex.split(f"{SMALL} MODEL.CLIP.WEIGHTS '' {opts}")
    return load_config(
        ROOT / "configs/mini" / name, [*words, *(("MODEL.WEIGHTS", weights) if weights else ())]
    )


def _export(kind: str, path: Path) -> None:
    build_model(_config(kind, "")).export(path)


def _read_model(kind: str, path: Path) -> None:
    build_model(_config(kind, str(path)))


@functools.cache
def _exported(kind: str) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        _export(kind, path)
        return read_checkpoint(path).tensors


def _model_reader(kind: str) -> Reader:
    return Reader(
        file(f"{kind}.pth", functools.partial(_export, kind)),
        functools.partial(_read_model, kind),
        "zip",
        lambda rng: saved({"model": odd_tensors(_exported(kind), rng)}),
        weight=0.3,
    )


# Folders of `save_pretrained`, with a prediction of what is read.

CONFIG_NUMBERS = (0, 1, 2, 3, 7, 16, 64, 300, 1000, LARGEST_NUMBER, -1, 0.5)
PREDICTORS: dict[str, Callable[[CfgNode], Any]] = {
    "cat_seg": SemanticPredictor,
    "panoptic": PanopticPredictor,
    "fvit": DetectionPredictor,
}


FOLDER_CONFIGS: dict[str, str] = {}  # of those that were made


def _save_folder(kind: str, folder: Path) -> None:
    cfg = _config(kind, "")
    cfg.defrost()
    cfg.MODEL.CLIP.NAME = TINY_WITH_SENTENCES
    predictor = PREDICTORS[kind](cfg)
    predictor.set_vocabulary("cat|kitten, grass")
    predictor.save_pretrained(folder)
    FOLDER_CONFIGS[kind] = (folder / CONFIG).read_text()


def _read_folder(path: Path) -> None:
    predictor = load(path.parent, device="cpu")
    if predictor.vocabulary is None:
        predictor.set_vocabulary("cat, grass")
    predictor(noise(40, 57))


def _remade_config(kind: str, rng: random.Random) -> bytes:
    """A configuration with other numbers, most of which a folder may have."""
    tree = yaml.safe_load(FOLDER_CONFIGS[kind])
    numbers = [(node, key) for node, key in nodes(tree) if isinstance(node[key], int | float)]
    for node, key in rng.sample(numbers, rng.choice((1, 1, 2, 3))):
        most = [one.folder for name, one in KEYS.items() if name.endswith(f".{key}")]
        node[key] = rng.choice((*(most[0] or () if most else ()), *CONFIG_NUMBERS))
    return yaml.safe_dump(tree).encode()


def _folder_reader(kind: str) -> Reader:
    return Reader(
        tree(CONFIG, functools.partial(_save_folder, kind)),
        _read_folder,
        "yaml",
        functools.partial(_remade_config, kind),
        weight=0.9,
    )


@functools.cache
def _distillation() -> dict[str, Tensor]:
    state = build_model(_config("clipself", "")).state_dict()
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _diffusion() -> dict[str, Tensor]:
    """Names of Stable Diffusion in one file."""
    names = ("model.diffusion_model.out.0.weight", "first_stage_model.decoder.conv_in.weight")
    names += ("cond_stage_model.transformer.text_model.embeddings.position_ids", "betas")
    return {name: torch.ones(2, 2) for name in names}


WEIGHTS = {
    "weights_safetensors": Reader(
        file("clip.safetensors", lambda path: save_clip(_clip(TINY), path)),
        _read_clip,
        "safetensors",
        lambda rng: _remade_safetensors(_tensors(), rng),
    ),
    "weights_wrapped_pt": Reader(
        file("clip.pt", lambda path: save_clip(_clip(TINY), path)),
        _read_clip,
        "zip",
        lambda rng: _remade(_tensors(), rng),
    ),
    "weights_legacy_pth": Reader(
        file("clip.pth", lambda path: save_as("legacy", _tensors(), path)),
        _read_clip,
        "bytes",
        lambda rng: _remade(_tensors(), rng, zipped=False),
    ),
    "weights_resnet_pt": Reader(
        file("clip.pt", lambda path: save_clip(_clip(TINY_RESNET), path, layout="open_clip")),
        functools.partial(_read_clip, name=TINY_RESNET),
        "zip",
        lambda rng: _remade(_clip(TINY_RESNET).state_dict(), rng),
        weight=0.5,
    ),
    "weights_tips_official": Reader(
        file("clip.pt", lambda path: save_clip(_clip(TINY_TIPS), path)),
        functools.partial(_read_clip, name=TINY_TIPS),
        "zip",
        lambda rng: _remade(_clip(TINY_TIPS).file_tensors(_clip(TINY_TIPS).state_dict()), rng),
        weight=0.3,
    ),
    "tokenizer_json": Reader(
        file("tokenizer.json", write_tokenizer),
        lambda path: read_tokenizer(path, vocabulary=60)(["a photo of a cat", ""], 8),
        "json",
        weight=0.5,
    ),
    "weights_numpy_pkl": Reader(
        file("backbone.pkl", _write_pickle), _read_backbone, "bytes", _remade_pickle, weight=0.3
    ),
    "weights_cat_seg_pth": _model_reader("cat_seg"),
    "weights_panoptic_pth": _model_reader("panoptic"),
    "weights_fvit_pth": _model_reader("fvit"),
    "weights_clipself_pth": Reader(
        file("clipself.pth", lambda path: path.write_bytes(saved(_distillation()))),
        functools.partial(_read_model, "clipself"),
        "zip",
        lambda rng: saved(odd_tensors(_distillation(), rng)),
        weight=0.5,
    ),
    **{f"folder_{kind}_yaml": _folder_reader(kind) for kind in PREDICTORS},
    "folder_vocabulary_json": Reader(
        tree(VOCABULARY, functools.partial(_save_folder, "panoptic")),
        _read_folder,
        "json",
        weight=0.9,
    ),
    "folder_weights_safetensors": Reader(
        tree(MODEL, functools.partial(_save_folder, "fvit")),
        _read_folder,
        "safetensors",
        weight=0.9,
    ),
    "weights_stable_diffusion": Reader(
        file("diffusion.safetensors", lambda p: safetensors.torch.save_file(_diffusion(), p)),
        read_stable_diffusion,
        "safetensors",
        lambda rng: _remade_safetensors(_diffusion(), rng),
    ),
}


# Training states.


class Line(nn.Module):
    """The smallest model that trains."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, 3))

    def forward(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Loss of some samples."""
        return {"loss": self.weight.square().sum()}

    def original_hash(self) -> str:
        """Of what does not train."""
        return "0123456789ab"

    def after_optimizer_step(self) -> None:
        """Nothing to do."""


def _train(output: Path, resume: bool) -> None:
    settings = TrainingSettings(
        output_dir=output,
        seed=0,
        batch_size=1,
        iterations=2,
        rate=lambda step: 0.1,
        betas=(0.9, 0.999),
        eps=1e-8,
        checkpoint_period=1,
        shared={"SOLVER.BASE_LR": 0.1, "DATASETS.TRAIN": ["mini_train"]},
    )
    model = Line()
    trainer = Trainer(
        model=model,
        records=[{"file_name": "a.jpg", "image_id": 1}],
        mapper=lambda record, draw: dict(record),
        settings=settings,
        groups=[{"params": list(model.parameters()), "weight_decay": 0.0}],
    )
    trainer.train(resume)


def _make_training_state(folder: Path) -> Path:
    _train(folder, False)
    return max((folder / "checkpoints").glob("*.safetensors"))


@functools.cache
def _packed() -> tuple[dict[str, Tensor], dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        return read_state(_make_training_state(Path(folder)))


def _remade_training_state(rng: random.Random) -> bytes:
    """A state whose digest is right, of other tensors or metadata."""
    tensors, metadata = _packed()
    if rng.random() < 0.5:
        tensors = odd_tensors(tensors, rng, only_tensors=True)
    else:
        metadata = json.loads(json.dumps(metadata))
        metadata = mutate_tree(metadata, ("NaN", "1e999", "{}"), rng)
    with tempfile.TemporaryDirectory() as folder:
        write_state(Path(folder) / "state.safetensors", tensors, metadata)
        return (Path(folder) / "state.safetensors").read_bytes()


# The text cache.

NAMES = (("cat", "kitten"), ("dog",))


def _embedded(clip: CLIP, folder: Path) -> Tensor:
    return TextBank(clip, "single", folder).embed(NAMES)


@functools.cache
def _text_clip() -> tuple[CLIP, Tensor]:
    clip = random_clip()
    with tempfile.TemporaryDirectory() as folder:
        return clip, _embedded(clip, Path(folder))


def _make_text(folder: Path) -> Path:
    _embedded(_text_clip()[0], folder)
    return next(folder.glob("*.safetensors"))


def _read_text(path: Path) -> None:
    clip, expected = _text_clip()
    text = _embedded(clip, path.parent)
    assert torch.equal(text, expected), "embeddings of a damaged entry of the cache are used"


STATES = {
    "training_state": Reader(
        _make_training_state,
        lambda path: _train(path.parent.parent, True),
        "safetensors",
        _remade_training_state,
    ),
    "text_cache": Reader(_make_text, _read_text, "safetensors"),
}
