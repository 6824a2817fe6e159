"""The keys of panoptic segmentation, under Mask2Former's names where it has one.

"Official" in the comments is ODISE (arXiv 2303.04803).
"""

from __future__ import annotations

from clipself_seg.config import declare

PANOPTIC = ["OpenPanoptic"]
KIND = "MODEL.MASK_GENERATOR.KIND"
SOURCE = "MODEL.MASK_GENERATOR.SOURCE"
MASK2FORMER = (KIND, "mask2former")
# MODEL.FUSION.SOURCE -> exponents that the weights give, where they carry them.
OF_WEIGHTS: dict[str, tuple[str, ...]] = {
    "weights": ("alpha", "beta"),
    "weights_alpha": ("alpha",),
    "weights_beta": ("beta",),
    "config": (),
}

generator = declare.Section("MODEL.MASK_GENERATOR", of=PANOPTIC)
# Pixel decoder and query decoder of "mask2former" (official), or a "plain" decoder on blocks of a frozen ViT (PMT),
# which needs SOURCE "blocks" and VARIANT "fcclip".
generator.key("KIND", "mask2former", choices=("mask2former", "plain"))
# Features of the generator: a "pyramid" on CLIP's blocks, Stable "diffusion" (official), the stages of a
# convolutional "clip" (FC-CLIP), the "blocks" of a ViT as they are, or no generator at all but "masks" that anybody
# made, which CLIP names.
generator.key("SOURCE", "pyramid", choices=("pyramid", "diffusion", "clip", "blocks", "masks"))
# How classes and void are scored. ODISE compares at the generator's width: "caption" has a classifier for void,
# "label" a text. "fcclip" compares in CLIP's space, and void is a vector there.
generator.key("VARIANT", "label", choices=("caption", "label", "fcclip"))
# Layers and width of the MLPs of the pixel decoder, points of its attention.
generator.key("ENCODER_LAYERS", 6, declare.at_least(1), when=MASK2FORMER)
generator.key("ENCODER_HIDDEN", 1024, declare.at_least(1), when=MASK2FORMER)
generator.key("POINTS", 4, declare.at_least(1), when=MASK2FORMER)
# Grey value, 0 to 255, of the canvas around an image in evaluation, or -1 for the mean colour of CLIP, which is
# what padding after normalising is (FC-CLIP). Training pads with 128 whatever stands here; official is black.
generator.key(
    "PADDING",
    0,
    declare.Check(
        "a grey value from 0 to 255, or -1 for the mean colour of CLIP",
        lambda value: -1 <= value <= 255,
    ),
    free=True,
)
# For SOURCE "masks", a folder with the masks of each image, in the forms of data/given_masks.py, or a model that
# finds them: sam2, sam3, eomt, mask2former, a repository of the hub, or a folder of one
# (checkpoints/mask_models.py). Names count only where they are typed.
generator.key("OUTPUTS", "", folder=None)

former = declare.Section("MODEL.MASK_FORMER", of=PANOPTIC)
# Mask2Former's keys, of the query decoder: queries, width, attention heads and width of the MLPs. A plain decoder
# has width and heads of its tower; 0 as DIM_FEEDFORWARD is that width, too.
former.key("NUM_OBJECT_QUERIES", 100, declare.at_least(1), folder=(1, 500))
former.key("HIDDEN_DIM", 256, when=MASK2FORMER)
former.key("NHEADS", 8, declare.at_least(1), when=MASK2FORMER, folder=(1, 16))
former.key("DIM_FEEDFORWARD", 2048)
former.key(
    "DEC_LAYERS", 9, declare.at_least(1)
)  # without Mask2Former's count of the initial queries
# Points of a mask that the losses read, three quarters of them chosen for uncertainty among three times as many.
former.key("TRAIN_NUM_POINTS", 12544, declare.at_least(1))
merging = declare.Section("MODEL.MASK_FORMER.TEST", of=PANOPTIC, free=True)
# A query takes part in the panoptic map if the probability of its best class is above this (PMT: 0.8).
merging.key("OBJECT_MASK_THRESHOLD", 0.0, declare.within(0, 1))
# A query keeps its pixels of the panoptic map if it wins at least so much of its mask.
merging.key("OVERLAP_THRESHOLD", 0.8, declare.within(0, 1))
# What is resized to the original image where semantic labels alone are evaluated, as on a data set that has no
# others: True the masks, as everywhere else (ODISE). False the scores of the classes, which are made on the padded
# canvas (FC-CLIP); at edges those are other labels.
merging.key("SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE", True)

pyramid = declare.Section("MODEL.PYRAMID", of=PANOPTIC, when=(SOURCE, "pyramid"))
# Blocks of CLIP that the pyramid reads; () is a quarter, a half, three quarters and the last.
pyramid.key("BLOCKS", ())
# Channels of its maps.
pyramid.key("CHANNELS", 256, declare.multiple_of(32))
plain = declare.Section("MODEL.PLAIN_DECODER", of=PANOPTIC, when=(KIND, "plain"))
# Features of the ViT that a plain decoder reads: "block0" to the last, or "dense". () is the blocks at the ends of
# its four quarters, of which the last is CLIPSelf's value path.
plain.key("TAPS", (), declare.names_of("names of features"))
# In training queries attend inside their masks, less and less until none does (PMT); a step costs twice as much.
plain.key("MASKED_ATTENTION", False)
diffusion = declare.Section("MODEL.DIFFUSION", of=PANOPTIC, when=(SOURCE, "diffusion"))
# Stable Diffusion v1-3: a CompVis checkpoint (.safetensors, or .ckpt of tensors only) or a folder of
# diffusers; "random-small" for tests.
diffusion.key("WEIGHTS", "", weights=True, folder=None)
# Side in pixels of the crops that go through it.
diffusion.key("CROP", 512, declare.multiple_of(64), folder=(1, 512))

branch = declare.Section("MODEL.CLIP_BRANCH", of=PANOPTIC, free=True)
# How CLIP reads a mask: "dense" pools dense features (CLIPSelf), "masked_attention" is official, "backbone" reads
# the image once for masks and names: the last stage of SOURCE clip before it is projected (FC-CLIP), or the dense
# features of the pass that gave SOURCE blocks.
branch.key("KIND", "dense", choices=("dense", "masked_attention", "backbone"))
# Entry of BACKBONE_REGISTRY whose features and texts name masks: so a backbone names the masks of a generator that
# was trained on another one. It is given the two keys below as its MODEL.CLIP.NAME and WEIGHTS. "" is
# MODEL.CLIP.BACKBONE.
branch.key("BACKBONE", "")
# A CLIP for this alone, such as a distilled one; "" is MODEL.CLIP.WEIGHTS.
branch.key("WEIGHTS", "", weights=True, folder="clip_branch.safetensors", clip_backbone=True)
# Its architecture, where it is another one than MODEL.CLIP.NAME, with a text tower of its own: so a distilled ViT
# names the masks of a generator on a ConvNeXt. "" is MODEL.CLIP.NAME.
branch.key("NAME", "", clip_backbone=True)
# Side in pixels of its square input; 0 is the kind's own: 64 cells a side, or CLIP's image size.
branch.key("INPUT_SIZE", 0, declare.at_least(0), folder=(0, 1536))
# Sentences around a class name: "odise" is "a photo of a {}." (official), "vild14" those of FC-CLIP.
branch.key("TEMPLATES", "odise", choices=("odise", "vild14", "vild63", "openai80", "tcl9"))

fusion = declare.Section("MODEL.FUSION", of=PANOPTIC, free=True)
# Whose scores a model returns: "fused", "clip" or "generator" ("clip" for SOURCE "masks", where there are no
# others). Void is always the generator's.
fusion.key("MODE", "fused", choices=("fused", "clip", "generator"), of=["OpenPanoptic", "FViT"])
# Where the exponents below come from. "weights": those that MODEL.WEIGHTS carries, as a panoptic model that
# was trained here does; the official checkpoints carry none, and ALPHA and BETA count. "config": ALPHA and
# BETA, whatever the weights carry. "weights_alpha" and "weights_beta": that one alone is of the weights.
# Whoever sets ALPHA or BETA on the command line, or in a file above the one that sets SOURCE, takes it out
# of the weights' hands with that; where SOURCE stands beside them, it counts as it is.
fusion.key("SOURCE", "weights", choices=tuple(OF_WEIGHTS))
# CLIP's exponents: ALPHA for seen classes (of the training vocabulary), BETA for unseen ones.
fusion.key("ALPHA", 0.35, declare.within(0, 1), of=["OpenPanoptic", "FViT"])
fusion.key("BETA", 0.65, declare.within(0, 1), of=["OpenPanoptic", "FViT"])
# Weight by which CLIP's best class lowers void, void * (1 - weight * its probability): COAT of OVRCOAT, which
# released 0.5. 0 leaves void to the generator. Of masks that CLIP cannot see VALID_MASK decides (official: all).
fusion.key("VOID_DISCOUNT", 0.0, declare.within(0, 1))
# Masks that CLIP cannot see keep the generator's scores (official: False, they are fused all the
# same). FC-CLIP's ENSEMBLE_ON_VALID_MASK, True for its ResNets.
fusion.key("VALID_MASK", True)

image = declare.Section("INPUT", of=PANOPTIC)
# Training images are resized by a factor between these, then cut or padded to a square.
image.key("IMAGE_SIZE", 1024, declare.at_least(1))
image.key("MIN_SCALE", 0.1, declare.POSITIVE)
image.key("MAX_SCALE", 2.0, declare.POSITIVE)
# Segments that the cut leaves nothing of stay targets (official).
image.key("KEEP_EMPTY_SEGMENTS", True)

test = declare.Section("TEST.PANOPTIC", of=PANOPTIC, free=True)
# ROWS: the fusions that one evaluation compares, each a row of its table. TASKS: what it measures.
test.key("ROWS", ("clip", "generator", "fused"), choices=("clip", "generator", "fused"))
test.key(
    "TASKS", ("panoptic", "instances", "semantic"), choices=("panoptic", "instances", "semantic")
)
# Values of MODEL.FUSION.VOID_DISCOUNT, each of which is one more row of the table, of fused scores; () is none.
test.key("VOID_SWEEP", (), declare.each(declare.within(0, 1)))
