"""CAT-Seg, open-vocabulary semantic segmentation by cost aggregation; start with cat_seg.py."""
