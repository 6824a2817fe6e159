"""The runs whose outputs the baseline keeps, as command lines of train_net.py, small enough for a test.

Nothing here knows more of the package than its command line, `load_clip`, `save_clip` and the mini worlds, so
that the same file runs with older and newer code: what an optimiser is given is read by torch's own hooks.
"""

import contextlib
import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import train_net
from clipself_seg.clip import find_kind, load_clip, save_clip
from lab.mini.writer import WorldSize, make_worlds

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
WORLD = WorldSize(train=4, val=6, base=4, seed=5)
SAVED, STEPS = 2, 4  # the step after which a state is kept, and the last one
NOT_KEPT = {"time", "data_time", "eta_seconds"}  # numbers of a step that no run repeats

MANTISSA, KEPT_BITS = 23, 4  # bits of a float32, and those that compression is spared

# A CLIP that is narrower than any published one, so that a training state is a small file.
TINY = "ViT-Tiny-8"
ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}

COMMON = {
    "MODEL.CLIP.NAME": TINY,
    "MODEL.DEVICE": "cpu",
    "DATALOADER.NUM_WORKERS": 0,
    "DATASETS.TEST": "()",
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.AMP.ENABLED": False,
    "SOLVER.LOG_PERIOD": 1,
    "SOLVER.CHECKPOINT_PERIOD": SAVED,
    "SOLVER.CHECKPOINT_KEEP": 9,
}
HEAD = "MODEL.SEM_SEG_HEAD."
CAT_SEG = {
    "MODEL.CLIP.VISUAL_INIT": "",
    "MODEL.PROMPT_ENSEMBLE_TYPE": "plain",
    f"{HEAD}HIDDEN_DIMS": 16,
    f"{HEAD}NUM_HEADS": 2,
    f"{HEAD}FEATURE_RESOLUTION": [8, 8],
    f"{HEAD}WINDOW_SIZES": 4,
    f"{HEAD}TEXT_GUIDANCE_DIM": 16,
    f"{HEAD}TEXT_GUIDANCE_PROJ_DIM": 8,
    f"{HEAD}APPEARANCE_GUIDANCE_DIM": 16,
    f"{HEAD}APPEARANCE_GUIDANCE_PROJ_DIM": 8,
    f"{HEAD}DECODER_DIMS": [16, 8],
    f"{HEAD}DECODER_GUIDANCE_DIMS": [8, 8],
    f"{HEAD}DECODER_GUIDANCE_PROJ_DIMS": [4, 4],
    "INPUT.MIN_SIZE_TRAIN": "(128,)",
    "INPUT.SIZE_DIVISIBILITY": 128,
    "INPUT.CROP.SIZE": [128, 128],
    "DATASETS.TRAIN": "('mini_train_base_sem_seg',)",
}
BACKBONE = CAT_SEG | {"MODEL.CAT_SEG.BACKBONE_WEIGHTS": "random"}
FORMER = "MODEL.MASK_FORMER."
PANOPTIC = {
    "MODEL.CLIP_BRANCH.WEIGHTS": "",
    "MODEL.MASK_GENERATOR.ENCODER_LAYERS": 1,
    "MODEL.MASK_GENERATOR.ENCODER_HIDDEN": 8,
    "MODEL.MASK_GENERATOR.POINTS": 2,
    f"{FORMER}NUM_OBJECT_QUERIES": 8,
    f"{FORMER}HIDDEN_DIM": 32,
    f"{FORMER}NHEADS": 2,
    f"{FORMER}DIM_FEEDFORWARD": 8,
    f"{FORMER}DEC_LAYERS": 1,
    f"{FORMER}TRAIN_NUM_POINTS": 256,
    "INPUT.IMAGE_SIZE": 64,
    "DATASETS.TRAIN": "('mini_train_base_panoptic',)",
}
PYRAMID = PANOPTIC | {"MODEL.PYRAMID.CHANNELS": 32, "MODEL.PYRAMID.BLOCKS": "(0, 1)"}
FVIT = "MODEL.FVIT."
DETECTION = {
    f"{FVIT}BLOCKS": "(0, 0, 1, 1)",
    f"{FVIT}CHANNELS": 16,
    f"{FVIT}PROPOSALS_BEFORE": 50,
    f"{FVIT}PROPOSALS_AFTER": 20,
    f"{FVIT}ROIS_PER_IMAGE": 8,
    "INPUT.DETECTION.SIDE": 64,
}
DIFFUSION = PANOPTIC | {"MODEL.DIFFUSION.WEIGHTS": "random-small", "MODEL.DIFFUSION.CROP": 64}


@dataclasses.dataclass(frozen=True)
class Training:
    """A configuration that trains, made small.

    Attributes:
        config: file below configs/.
        keys: what is changed besides `COMMON`.
    """

    config: str
    keys: dict[str, Any]

    def command(self, clip: Path, output: Path, *flags: str, **more: Any) -> list[str]:
        """Arguments of train_net.py; `more` are keys with two underscores for a dot."""
        keys = COMMON | self.keys | {key.replace("__", "."): value for key, value in more.items()}
        keys |= {"MODEL.CLIP.WEIGHTS": clip, "OUTPUT_DIR": output}
        words = [str(word) for pair in keys.items() for word in pair]
        return ["--config-file", str(CONFIGS / self.config), *flags, *words]


# Folder of the baseline -> the run whose state after `SAVED` steps it keeps.
STATES = {
    "clipself": Training("mini/proposals.yaml", {"INPUT.REGIONS.STUDENT_SIZE": 64}),
    "cat_seg": Training(
        "mini/semseg_original.yaml", CAT_SEG | {"MODEL.CAT_SEG.GUIDANCE_BLOCKS": "(0, 1)"}
    ),
    "open_panoptic": Training("mini/panoptic.yaml", PYRAMID),
}
# The kinds of run that tests kill: those above, and some that the baseline is older than.
OBJECTIVES = "MODEL.CLIPSELF.OBJECTIVES."
CORRELATION = dict.fromkeys(
    (f"{OBJECTIVES}{name}" for name in ("CONTEXT", "COHERENCE", "SPATIAL")), 1.0
)
CORRELATION |= {"MODEL.CLIPSELF.CORRELATION.TEACHER": "original"}
STUDENT = {"INPUT.REGIONS.STUDENT_SIZE": 64}
KILLED = STATES | {
    "correlation": Training("mini/patches.yaml", STUDENT | CORRELATION),
    "preservation": Training("mini/patches_preserved.yaml", STUDENT),
    "fvit": Training("mini/detection_original.yaml", DETECTION),
    "own_data": Training("mini/detection_original+low_rank+preserved.yaml", DETECTION),
}
# First part of a name here -> its MODEL.META_ARCHITECTURE.
ARCHITECTURES = {"clipself": "CLIPSelf", "cat_seg": "CATSeg", "open_panoptic": "OpenPanoptic"}
# Name in groups.json -> a run of which only the first step is looked at: the other kinds of parts that train.
OTHER_GROUPS = {
    "cat_seg, all of CLIP's blocks": Training(
        "mini/semseg_original.yaml",
        CAT_SEG | {"MODEL.CAT_SEG.GUIDANCE_BLOCKS": "(0, 1)", f"{HEAD}CLIP_FINETUNE": "full"},
    ),
    "cat_seg, version 1 with a ResNet": Training(
        "semseg/catseg_v1_r101_vitb16.yaml",
        BACKBONE
        | {
            "MODEL.RESNETS.DEPTH": 50,
            "MODEL.RESNETS.NORM": "BN",
            "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
            "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
            f"{HEAD}APPEARANCE_GUIDANCE_DIM": 32,
            f"{HEAD}DECODER_GUIDANCE_DIMS": [16, 8],
        },
    ),
    "cat_seg, version 1 with a Swin": Training(
        "semseg/catseg_v1_swinb_vitl14_336.yaml",
        BACKBONE
        | {
            "MODEL.SWIN.EMBED_DIM": 8,
            "MODEL.SWIN.DEPTHS": [1, 1, 2],
            "MODEL.SWIN.NUM_HEADS": [1, 1, 1],
            "MODEL.SWIN.WINDOW_SIZE": 4,
            f"{HEAD}APPEARANCE_GUIDANCE_DIM": 32,
            f"{HEAD}DECODER_GUIDANCE_DIMS": [16, 8],
        },
    ),
    "open_panoptic, ODISE's label model": Training("panoptic/odise_label.yaml", DIFFUSION),
    "open_panoptic, ODISE's caption model": Training("panoptic/odise_caption.yaml", DIFFUSION),
}

_SHIPPED_PANOPTIC = ("MODEL.WEIGHTS", "mini-open-panoptic")
# Name in results.json -> configuration below configs/mini and keys: the quickstart's evaluations of shipped
# weights, and CAT-Seg's.
EVALUATIONS = {
    "regions, mini": ("regions.yaml", "MODEL.CLIP.WEIGHTS", "mini"),
    "regions, mini-clipself": ("regions.yaml", "MODEL.CLIP.WEIGHTS", "mini-clipself"),
    "regions, mini-clipself-proposals": (
        "regions.yaml",
        "MODEL.CLIP.WEIGHTS",
        "mini-clipself-proposals",
    ),
    "semantic, mini-cat-seg": ("semseg.yaml", "MODEL.WEIGHTS", "mini-cat-seg"),
    "panoptic, mini-open-panoptic, original CLIP": ("panoptic_original.yaml", *_SHIPPED_PANOPTIC),
    "panoptic, mini-open-panoptic, CLIPSelf": ("panoptic.yaml", *_SHIPPED_PANOPTIC),
}


def evaluation(name: str, output: Path) -> list[str]:
    """Arguments of train_net.py for an entry of `EVALUATIONS`."""
    config, *keys = EVALUATIONS[name]
    words = ["--config-file", str(CONFIGS / "mini" / config), "--eval-only", *keys]
    return [*words, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(output)]


@contextlib.contextmanager
def surroundings(folder: Path) -> Iterator[Path]:
    """The small worlds, a cache and the tiny CLIP in `folder`, known as long as the context; one thread.

    Gives the checkpoint of the CLIP. Its weights are small whole numbers over powers of two, so that they are
    the same to the last bit on every machine, and with them the hash that a resumed run has to share.
    """
    make_worlds(folder, WORLD, processes=1)
    configs = find_kind._configs()
    own = {"CLIPSELF_SEG_MINI": str(folder), "CLIPSELF_SEG_CACHE": str(folder / "cache")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            mock.patch.dict("os.environ", own),
            mock.patch.object(find_kind, "_configs", lambda: {**configs, TINY: ARCHITECTURE}),
        ):
            clip = load_clip(TINY, None)
            for name, parameter in clip.named_parameters():
                parameter.data.copy_(_exact_weights(name, tuple(parameter.shape)))
            save_clip(clip, folder / "clip.safetensors")
            yield folder / "clip.safetensors"
    finally:
        torch.set_num_threads(threads)


def _exact_weights(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Weights of a CLIP that follow from their name, with 8 bits of mantissa."""
    if name == "logit_scale":
        return torch.tensor(2.65625)
    generator = np.random.Generator(np.random.Philox(zlib.crc32(name.encode())))
    whole = generator.integers(-64, 65, shape)
    inputs = int(np.prod(shape[1:]))
    scaled = torch.from_numpy(whole / 2.0 ** (5 + round(np.log2(8 * inputs) / 2))).float()
    norm = len(shape) == 1 and name.endswith("weight")
    return 1 + scaled / 16 if norm else scaled


@dataclasses.dataclass
class Step:
    """What an optimiser is given before a step.

    Attributes:
        groups: its parameter groups, with the names of their parameters.
        tensors: parameters as ``model/<name>``, moments as ``optimizer/<name>/<moment>``.
    """

    groups: list[dict[str, Any]]
    tensors: dict[str, torch.Tensor]


def train(arguments: Sequence[str], architecture: str, cut_step: int = 0) -> list[Step]:
    """Run train_net.py.

    Args:
        arguments: of it.
        architecture: MODEL.META_ARCHITECTURE.
        cut_step: the numbers that this step, counted from 1, leaves in the optimiser lose most of their bits
            before anything is written: a file of them can be compressed.

    Returns:
        The steps, as the optimiser met them.
    """
    names: dict[torch.nn.Parameter, str] = {}
    steps: list[Step] = []

    def remember_names(module: torch.nn.Module, _: Any) -> None:
        if type(module).__name__ == architecture and not names:
            names.update({parameter: name for name, parameter in module.named_parameters()})

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not names:  # what torch's optimisers have is looked up with one of a number alone
            return
        steps.append(Step(_groups(optimizer, names), _tensors(optimizer, names)))

    def cut(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if len(steps) == cut_step:
            for parameter, moments in optimizer.state.items():
                for tensor in (parameter.data, *moments.values()):
                    tensor.view(torch.int32).bitwise_and_(-1 << (MANTISSA - KEPT_BITS))

    handles = (
        register_module_forward_pre_hook(remember_names),
        register_optimizer_step_pre_hook(look),
        register_optimizer_step_post_hook(cut),
    )
    try:
        status = train_net.main(list(arguments))
    finally:
        for handle in handles:
            handle.remove()
    assert status == 0, arguments
    return steps


def _groups(
    optimizer: torch.optim.Optimizer, names: dict[torch.nn.Parameter, str]
) -> list[dict[str, Any]]:
    return [
        {
            "lr": group["lr"],
            "weight_decay": group["weight_decay"],
            "betas": list(group["betas"]),
            "eps": group["eps"],
            "params": [names[parameter] for parameter in group["params"]],
        }
        for group in optimizer.param_groups
    ]


def _tensors(
    optimizer: torch.optim.Optimizer, names: dict[torch.nn.Parameter, str]
) -> dict[str, torch.Tensor]:
    tensors = {}
    for parameter, name in names.items():
        if parameter.requires_grad:
            tensors[f"model/{name}"] = parameter.detach().clone()
            for moment, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{name}/{moment}"] = value.detach().clone()
    return tensors
