"""Images and class names in, masks out: predictors for Python, and the files that tools/predict.py writes.

Open `semantic.py` first, or `panoptic.py` for segments.
"""
