"""The keys of additional metrics, all of them off by default; docs/numbers.md says what each measures."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_numbers_keys(cfg: CfgNode) -> None:
    """Add ``TEST.NUMBERS`` to `cfg`. A task that does not measure one of them refuses its key."""
    numbers = cfg.TEST.NUMBERS = CfgNode()
    # Credit for near misses, by the similarity of the true and the predicted class (Open mIoU, PQ and AP): "wordnet"
    # is the table that is shipped for the vocabulary, or a file of clipself-seg data similarity; "" measures none.
    numbers.SIMILARITY = ""
    # IoU of the pixels near the edge of their class alone (Boundary IoU).
    numbers.BOUNDARY = False
    # Naming alone: which class a model gives to each true mask.
    numbers.NAMING = False
    # Most vocabularies of the synonym test, in each of which every class has one of its names; 0 is no test.
    numbers.SYNONYMS = 0
    # Measure once more with the classes alone that are in each image ("oracle words").
    numbers.ORACLE = False
    # What PQ loses to naming, to masks that the merge threw away, and to masks that are nowhere.
    numbers.GAP = False
