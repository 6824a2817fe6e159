"""The keys of detection with F-ViT.

"Official" in the comments is CLIPSelf's detector (arXiv 2310.01403, 4.2).
"""

from __future__ import annotations

from clipself_seg.config.declare import NOT_NEGATIVE, POSITIVE, Section, at_least, each, within

FVIT = ["FViT"]

fvit = Section("MODEL.FVIT", of=FVIT)
# Blocks, from 0, whose outputs are the four taps, the finest map first. Four times the last one is Table
# A3's "last".
fvit.key("BLOCKS", (3, 5, 7, 11), each(at_least(0), 4, whole=True))
# "fpn" adds the levels up from the top (official), "simple" is ViTDet's SimpleFPN (Table A3).
fvit.key("PYRAMID", "fpn", choices=("fpn", "simple"))
# Channels of its levels.
fvit.key("CHANNELS", 256, at_least(1))
# Mean and standard deviation of RGB values in 0..255; official are ImageNet's.
fvit.key("PIXEL_MEAN", (123.675, 116.28, 103.53))
fvit.key("PIXEL_STD", (58.395, 57.12, 57.375))
# Batch norms in the RPN, a mask head, and objects that get their best proposals (all: OV-LVIS).
fvit.key("RPN_NORM", False)
fvit.key("MASKS", False)
fvit.key("LOW_QUALITY", False)
# RoIs of an image that the losses see, at most a quarter of them positive.
fvit.key("ROIS_PER_IMAGE", 512, at_least(1))
# Weight of RoIs without an object in the classification loss: 0.6 for OV-COCO, 0.9 for OV-LVIS.
fvit.key("BACKGROUND_WEIGHT", 0.6, NOT_NEGATIVE)
# The factor of the detector's cosines, 50 at the beginning, stays that in evaluation (transfer).
fvit.key("FIXED_TEMPERATURE", False)
# Factor of CLIP's cosines.
fvit.key("CLIP_TEMPERATURE", 75.0, POSITIVE)
# Whether CLIP's image tower learns, at SOLVER.CLIP_MULTIPLIER times the base rate (Table A3).
fvit.key("TRAIN_CLIP", False)
# Anchors of a level that become proposals, and proposals of an image.
fvit.key("PROPOSALS_BEFORE", 2000, at_least(1))
fvit.key("PROPOSALS_AFTER", 1000, at_least(1), folder=(1, 2000))
# A detection needs a higher score, and goes where a better one of its class overlaps it more.
fvit.key("SCORE_THRESHOLD", 0.01, within(0, 1))
fvit.key("NMS_IOU", 0.4, within(0, 1))

image = Section("INPUT.DETECTION", of=FVIT)
# Side in pixels of the square that an image is fitted into, in training and evaluation. Official: 640
# for OV-COCO with B/16, 1024 for OV-LVIS with B/16, 896 with L/14.
image.key("SIDE", 640, at_least(1), folder=(1, 1536))
# The longer side of a training image is resized to a random factor of SIDE between these, and what
# exceeds SIDE is cut off.
image.key("MIN_SCALE", 0.1, POSITIVE)
image.key("MAX_SCALE", 2.0, POSITIVE)
# "opencv" is bilinear without antialiasing (official), "pillow" antialiases and rounds sizes as
# Detectron2 does.
image.key("RESIZE", "opencv", choices=("opencv", "pillow"))

test = Section("TEST.DETECTION", of=FVIT, free=True)
# What is measured: "boxes", and "masks" of a model that has them.
test.key("TASKS", ("boxes",), choices=("boxes", "masks"))
# Detections that COCO's numbers count, of a class in an image: 100 as "detectron2", or AP at 100 and all
# other numbers at 300 as "mmdetection" (official). LVIS's rules count 300 of an image.
test.key("LIMITS", "detectron2", choices=("detectron2", "mmdetection"))
