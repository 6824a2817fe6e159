"""Images and class names in, masks out: predictors for Python, and the files that `clipself-seg predict` writes.

Open `semantic.py` first, or `panoptic.py` for segments.
"""

from clipself_seg import detectron2_needed  # noqa: F401  (says what to do where it is missing)
