"""A remote source of FiftyOne's model zoo; the folder lies below the zoo's, or at an address of its own.

    import fiftyone.zoo as foz

    model = foz.load_zoo_model("clipself_seg-panoptic", classes=["dog|puppy", "grass"])
    dataset.apply_model(model, label_field="segments")

Further arguments of `load_zoo_model` are those of `clipself_seg.load`, such as `model="fcclip-convnext-large"`. The
names of a semantic model's values are `model.mask_targets`.
"""

from pathlib import Path

import fiftyone as fo
from fiftyone.operators import types

import clipself_seg


class ClipselfSeg(fo.Model):
    """A predictor as `apply_model` calls it."""

    media_type = "image"
    ragged_batches = True  # images are not stacked
    transforms = None
    preprocess = False

    def __init__(self, predictor):
        self.predictor = predictor
        self.mask_targets = dict(enumerate(predictor.names, 1))

    def predict(self, image):
        """The label of an image (H, W, 3) uint8 RGB: a Segmentation of a semantic model, else Detections."""
        return self.predictor(image).to_fiftyone()


def download_model(model_name, model_path):
    """Leaves a file with the task where FiftyOne looks for weights; those are fetched by `clipself_seg.load`."""
    Path(model_path).write_text(model_name.rpartition("-")[2], encoding="utf-8")


def load_model(model_name, model_path, classes=("person", "animal", "plant", "sky"), **load):
    """The model of a task, with words: a list, or "dog|puppy, grass"."""
    predictor = clipself_seg.load(task=Path(model_path).read_text(encoding="utf-8"), **load)
    predictor.set_vocabulary(classes if isinstance(classes, str) else list(classes))
    return ClipselfSeg(predictor)


def resolve_input(model_name, ctx):
    """The form of FiftyOne's app, which asks for the words."""
    inputs = types.Object()
    inputs.str("classes", required=True, label="Words", description="dog|puppy, grass")
    return types.Property(inputs)
