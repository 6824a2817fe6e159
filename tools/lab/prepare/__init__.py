"""Conversion of the official archives to the layout that training reads.

Open `common.py` first: it has the jobs and the writing that all preparations use. A module has those of a family of
data sets; here are their names and what they write, so that listing them imports nothing.
"""

CONTENTS = {
    "coco": {
        "coco_stuff": "Label maps of COCO-Stuff's 171 classes.",
        "coco_panoptic_semseg": "Label maps of COCO's 133 panoptic classes, for the mean IoU of panoptic segmentation.",
        "coco_captions": "Noun phrases of COCO's captions, for training the caption model.",
    },
    "ade": {
        "ade150": "Label maps of ADE20K's 150 classes.",
        "ade847": "Images and label maps of ADE20K's 847 classes.",
        "ade20k_panoptic": "Panoptic and instance labels of ADE20K's 150 classes.",
    },
    "streets": {
        "cityscapes_panoptic": "Panoptic and instance labels and label maps of Cityscapes' 19 classes.",
        "mapillary_vistas": "Panoptic and instance labels and label maps of Mapillary Vistas v1.2, 65 classes.",
    },
    "pascal": {
        "pascal_context_59": "Label maps of PASCAL Context's 59 frequent classes.",
        "pascal_context_459": "Label maps of all 459 classes of PASCAL Context.",
        "voc20": "Label maps of PASCAL VOC 2012: VOC-20 without background, and VOC-20b with it.",
    },
    "detection": {
        "ov_coco": "Annotations of OV-COCO: 48 base classes to train on, with 17 novel ones to evaluate.",
        "ov_lvis": "Annotations of OV-LVIS to train on: LVIS v1 without those of its 337 rare classes.",
        "objects365": "Annotations of Objects365 v1 with its categories in the order of their ids.",
    },
}
"""Name of a preparation -> what it writes, by the module that declares it."""
