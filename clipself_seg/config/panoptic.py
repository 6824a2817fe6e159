"""The keys of panoptic segmentation, under Mask2Former's names where it has one.

"Official" in the comments is ODISE (arXiv 2303.04803). Of Detectron2's keys panoptic segmentation reads
``INPUT.{MIN,MAX}_SIZE_TEST``, ``INPUT.FORMAT`` (RGB), ``MODEL.WEIGHTS``, ``TEST.DETECTIONS_PER_IMAGE`` and
``SOLVER.{STEPS, GAMMA, WARMUP_FACTOR}``.
"""

from __future__ import annotations

from detectron2.config import CfgNode

# What a key may be, where that is a short list.
PANOPTIC_CHOICES: dict[str, tuple[str, ...]] = {
    "MODEL.MASK_GENERATOR.KIND": ("mask2former", "plain"),
    "MODEL.MASK_GENERATOR.SOURCE": ("pyramid", "diffusion", "clip", "blocks", "masks"),
    "MODEL.MASK_GENERATOR.VARIANT": ("caption", "label", "fcclip"),
    "MODEL.CLIP_BRANCH.KIND": ("dense", "masked_attention", "backbone"),
    "MODEL.CLIP_BRANCH.TEMPLATES": ("odise", "vild14", "vild63", "openai80", "tcl9"),
    "MODEL.FUSION.MODE": ("fused", "clip", "generator"),
    "MODEL.FUSION.SOURCE": ("weights", "weights_alpha", "weights_beta", "config"),
    "SOLVER.SCHEDULE": ("cosine", "steps"),
}


# MODEL.FUSION.SOURCE -> exponents that the weights give, where they carry them.
OF_WEIGHTS: dict[str, tuple[str, ...]] = {
    "weights": ("alpha", "beta"),
    "weights_alpha": ("alpha",),
    "weights_beta": ("beta",),
    "config": (),
}


def add_panoptic_keys(cfg: CfgNode) -> None:
    """Add the keys of panoptic segmentation to `cfg`; those of CAT-Seg have to be there."""
    _add_generator(cfg)
    _add_sources(cfg)
    _add_scores(cfg)
    _add_running(cfg)


def _add_generator(cfg: CfgNode) -> None:
    generator = cfg.MODEL.MASK_GENERATOR = CfgNode()
    # Pixel decoder and query decoder of "mask2former" (official), or a "plain" decoder on blocks of a frozen ViT (PMT),
    # which needs SOURCE "blocks" and VARIANT "fcclip".
    generator.KIND = "mask2former"
    # Features of the generator: a "pyramid" on CLIP's blocks, Stable "diffusion" (official), the stages of a
    # convolutional "clip" (FC-CLIP), the "blocks" of a ViT as they are, or no generator at all but "masks" that anybody
    # made, which CLIP names.
    generator.SOURCE = "pyramid"
    # How classes and void are scored. ODISE compares at the generator's width: "caption" has a classifier for void,
    # "label" a text. "fcclip" compares in CLIP's space, and void is a vector there.
    generator.VARIANT = "label"
    # Layers and width of the MLPs of the pixel decoder, points of its attention.
    generator.ENCODER_LAYERS = 6
    generator.ENCODER_HIDDEN = 1024
    generator.POINTS = 4
    # Grey value, 0 to 255, of the canvas around an image in evaluation, or -1 for the mean colour of CLIP, which is
    # what padding after normalising is (FC-CLIP). Training pads with 128 whatever stands here; official is black.
    generator.PADDING = 0
    # For SOURCE "masks", a folder with the masks of each image, in the forms of data/given_masks.py, or a model that
    # finds them: sam2, sam3, eomt, mask2former, a repository of the hub, or a folder of one
    # (checkpoints/mask_models.py). Names count only where they are typed.
    generator.OUTPUTS = ""
    former = cfg.MODEL.MASK_FORMER
    # Mask2Former's keys, of the query decoder: queries, width, attention heads and width of the MLPs. A plain decoder
    # has width and heads of its tower; 0 as DIM_FEEDFORWARD is that width, too.
    former.NUM_OBJECT_QUERIES = 100
    former.HIDDEN_DIM = 256
    former.NHEADS = 8
    former.DIM_FEEDFORWARD = 2048
    former.DEC_LAYERS = 9  # without Mask2Former's count of the initial queries
    # Weights of the losses on classes, mask pixels and mask overlap; of "no object" among the classes.
    former.CLASS_WEIGHT = 2.0
    former.MASK_WEIGHT = 5.0
    former.DICE_WEIGHT = 5.0
    former.NO_OBJECT_WEIGHT = 0.1
    # Points of a mask that the losses read, three quarters of them chosen for uncertainty among three times as many.
    former.TRAIN_NUM_POINTS = 12544
    former.TEST = CfgNode()
    # A query takes part in the panoptic map if the probability of its best class is above this (PMT: 0.8).
    former.TEST.OBJECT_MASK_THRESHOLD = 0.0
    # A query keeps its pixels of the panoptic map if it wins at least so much of its mask.
    former.TEST.OVERLAP_THRESHOLD = 0.8
    # What is resized to the original image where semantic labels alone are evaluated, as on a data set that has no
    # others: True the masks, as everywhere else (ODISE). False the scores of the classes, which are made on the padded
    # canvas (FC-CLIP); at edges those are other labels.
    former.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = True


def _add_sources(cfg: CfgNode) -> None:
    pyramid = cfg.MODEL.PYRAMID = CfgNode()
    # Blocks of CLIP that the pyramid reads; () is a quarter, a half, three quarters and the last.
    pyramid.BLOCKS = ()
    # Channels of its maps.
    pyramid.CHANNELS = 256
    plain = cfg.MODEL.PLAIN_DECODER = CfgNode()
    # Features of the ViT that a plain decoder reads: "block0" to the last, or "dense". () is the blocks at the ends of
    # its four quarters, of which the last is CLIPSelf's value path.
    plain.TAPS = ()
    # In training queries attend inside their masks, less and less until none does (PMT); a step costs twice as much.
    plain.MASKED_ATTENTION = False
    diffusion = cfg.MODEL.DIFFUSION = CfgNode()
    # Stable Diffusion v1-3: a CompVis checkpoint (.safetensors, or .ckpt of tensors only) or a folder of
    # diffusers; "random-small" for tests.
    diffusion.WEIGHTS = ""
    # Side in pixels of the crops that go through it.
    diffusion.CROP = 512
    # Crops that go through it together.
    diffusion.CROPS_AT_ONCE = 1


def _add_scores(cfg: CfgNode) -> None:
    branch = cfg.MODEL.CLIP_BRANCH = CfgNode()
    # How CLIP reads a mask: "dense" pools dense features (CLIPSelf), "masked_attention" is official, "backbone" reads
    # the image once for masks and names: the last stage of SOURCE clip before it is projected (FC-CLIP), or the dense
    # features of the pass that gave SOURCE blocks.
    branch.KIND = "dense"
    # Entry of BACKBONE_REGISTRY whose features and texts name masks: so a backbone names the masks of a generator that
    # was trained on another one. It is given the two keys below as its MODEL.CLIP.NAME and WEIGHTS. "" is
    # MODEL.CLIP.BACKBONE.
    branch.BACKBONE = ""
    # A CLIP for this alone, such as a distilled one; "" is MODEL.CLIP.WEIGHTS.
    branch.WEIGHTS = ""
    # Its architecture, where it is another one than MODEL.CLIP.NAME, with a text tower of its own: so a distilled ViT
    # names the masks of a generator on a ConvNeXt. "" is MODEL.CLIP.NAME.
    branch.NAME = ""
    # Side in pixels of its square input; 0 is the kind's own: 64 cells a side, or CLIP's image size.
    branch.INPUT_SIZE = 0
    # 1: a mask covers the pixels that it covers in the image. 0: masks of the padded canvas are laid
    # over the image without padding (official). -1: the kind's own.
    branch.ALIGN_MASKS = -1
    # Sentences around a class name: "odise" is "a photo of a {}." (official), "vild14" those of FC-CLIP.
    branch.TEMPLATES = "odise"
    fusion = cfg.MODEL.FUSION = CfgNode()
    # Whose scores a model returns: "fused", "clip" or "generator" ("clip" for SOURCE "masks", where there are no
    # others). Void is always the generator's.
    fusion.MODE = "fused"
    # Where the exponents below come from. "weights": those that MODEL.WEIGHTS carries, as a panoptic model that
    # was trained here does; the official checkpoints carry none, and ALPHA and BETA count. "config": ALPHA and
    # BETA, whatever the weights carry. "weights_alpha" and "weights_beta": that one alone is of the weights.
    # Whoever sets ALPHA or BETA on the command line, or in a file above the one that sets SOURCE, takes it out
    # of the weights' hands with that; where SOURCE stands beside them, it counts as it is.
    fusion.SOURCE = "weights"
    # CLIP's exponents: ALPHA for seen classes (of the training vocabulary), BETA for unseen ones.
    fusion.ALPHA = 0.35
    fusion.BETA = 0.65
    # Weight by which CLIP's best class lowers void, void * (1 - weight * its probability): COAT of OVRCOAT, which
    # released 0.5. 0 leaves void to the generator. Of masks that CLIP cannot see VALID_MASK decides (official: all).
    fusion.VOID_DISCOUNT = 0.0
    # Masks that CLIP cannot see keep the generator's scores (official: False, they are fused all the
    # same). FC-CLIP's ENSEMBLE_ON_VALID_MASK, True for its ResNets.
    fusion.VALID_MASK = True


def _add_running(cfg: CfgNode) -> None:
    # Training images are resized by a factor between these, then cut or padded to a square.
    cfg.INPUT.IMAGE_SIZE = 1024
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0
    # Segments that the cut leaves nothing of stay targets (official).
    cfg.INPUT.KEEP_EMPTY_SEGMENTS = True
    # "cosine" falls to 0, "steps" multiplies by SOLVER.GAMMA at each of SOLVER.STEPS.
    cfg.SOLVER.SCHEDULE = "cosine"
    panoptic = cfg.TEST.PANOPTIC = CfgNode()
    # ROWS: the fusions that one evaluation compares, each a row of its table. TASKS: what it measures.
    panoptic.ROWS = ("clip", "generator", "fused")
    panoptic.TASKS = ("panoptic", "instances", "semantic")
    # Values of alpha and beta whose grid is evaluated too; () is none.
    panoptic.SWEEP = ()
    # Values of MODEL.FUSION.VOID_DISCOUNT, each of which is one more row of the table, of fused scores; () is none.
    panoptic.VOID_SWEEP = ()
