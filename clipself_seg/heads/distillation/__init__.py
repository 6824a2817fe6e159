"""The distillation losses of the CLIPSelf family; start with ``losses.py``."""
