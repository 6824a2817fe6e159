"""Open-vocabulary detection: average precision by COCO's and LVIS's rules; start with evaluation.py."""
