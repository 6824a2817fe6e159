"""A base model of autodistill: it labels a folder with the words of an ontology, for a small model to train on.

pip install autodistill scikit-learn roboflow

from autodistill.detection import CaptionOntology
from autodistill_model import ClipselfSeg

base = ClipselfSeg(CaptionOntology({"dog|puppy": "dog", "kite": "kite"}))
base.label("photos", extension=".jpg", output_folder="labelled")     # YOLO's files and data.yaml
"""

from dataclasses import dataclass

import numpy as np
from autodistill.detection import CaptionOntology, DetectionBaseModel

import clipself_seg


@dataclass
class ClipselfSeg(DetectionBaseModel):
    """A model of `clipself_seg.load`, whose regions of at least this score are the labels."""

    ontology: CaptionOntology

    def __init__(self, ontology, model=None, task="detection", threshold=0.3):
        self.ontology = ontology
        self.threshold = threshold
        self.model = clipself_seg.load(model, task=task)
        self.model.set_vocabulary(ontology.prompts())

    def predict(self, input):
        """The `supervision.Detections` of a path, a PIL image, or an array in OpenCV's order, BGR."""
        image = input[..., ::-1] if isinstance(input, np.ndarray) else input
        found = self.model(image).to_supervision()
        return found[found.confidence >= self.threshold]
