"""The distillation loss of CLIPSelf; start with ``losses.py``."""
