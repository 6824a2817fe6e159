"""Images and class names in, masks out: predictors for Python, and the files that `clipself-seg predict` writes.

Open `predictor.py` first, then `task_predictors.py`.
"""

from clipself_seg import detectron2_needed  # noqa: F401  (says what to do where it is missing)
