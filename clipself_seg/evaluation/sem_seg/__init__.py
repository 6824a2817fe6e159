"""Mean IoU and accuracy of semantic segmentation; start with evaluation.py, the formulas are in numbers.py."""
