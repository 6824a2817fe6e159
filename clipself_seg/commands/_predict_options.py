"""Options of `predict` that only one of the tasks has, or a cluster."""

from __future__ import annotations

import argparse

# The default of --score-threshold, for boxes to look at: evaluation wants those of the lowest scores too.
SCORE_THRESHOLD = 0.5
# Option -> key of the configuration that it sets.
PANOPTIC_KEYS = {
    "clip_weights": "MODEL.CLIP_BRANCH.WEIGHTS",
    "mode": "MODEL.FUSION.MODE",
    "alpha": "MODEL.FUSION.ALPHA",
    "beta": "MODEL.FUSION.BETA",
    "void_discount": "MODEL.FUSION.VOID_DISCOUNT",
    "masks": "MODEL.MASK_GENERATOR.OUTPUTS",
}


def add_semantic(group: argparse._ArgumentGroup) -> None:
    """Options of semantic segmentation."""
    group.add_argument(
        "--background",
        nargs="?",
        const="background",
        metavar="NAME|NAME...",
        help="for what is none of the classes (background)",
    )
    group.add_argument(
        "--threshold",
        type=float,
        help="score that a class needs against the background (TEST.BACKGROUND.THRESHOLD or 0.5; 0 if names compete)",
    )
    group.add_argument(
        "--scores", action="store_true", default=None, help="write the scores of all classes"
    )


def add_panoptic(group: argparse._ArgumentGroup) -> None:
    """Options of panoptic segmentation."""
    group.add_argument("--stuff", help='classes that are stuff, as --vocabulary; "" for none')
    group.add_argument(
        "--clip-weights",
        help="file, name or tag of the CLIP that scores masks, such as a distilled one",
    )
    group.add_argument(
        "--trained",
        metavar="VOCABULARY",
        help="its classes are the seen ones (the vocabulary of DATASETS.TRAIN)",
    )
    group.add_argument(
        "--masks",
        metavar="FOLDER",
        help="name the masks that it has of each image: NAME.json, NAME.png, or PNGs in NAME/",
    )
    group.add_argument("--mode", help="whose scores count: fused, clip or generator (fused)")
    for name, of in (("alpha", "seen classes"), ("beta", "unseen classes")):
        key = PANOPTIC_KEYS[name]
        group.add_argument(f"--{name}", type=float, help=f"CLIP's exponent for {of} ({key})")
    group.add_argument(
        "--void-discount",
        type=float,
        help=f"how much void gives way where CLIP is sure, 0 to 1 ({PANOPTIC_KEYS['void_discount']})",
    )


def add_detection(group: argparse._ArgumentGroup) -> None:
    """Options of detection."""
    group.add_argument(
        "--score-threshold",
        type=float,
        help=f"score that a detection has to exceed, 0 to 1 ({SCORE_THRESHOLD})",
    )


def add_ray(group: argparse._ArgumentGroup) -> None:
    """Options of a cluster."""
    group.add_argument(
        "--ray", action="store_true", help="--input takes .txt lists and .parquet files as well"
    )
    group.add_argument("--workers", type=int, help="models at once (one a GPU, or else a core)")
    group.add_argument("--column", help="of .parquet files: paths, or bytes of image files")
