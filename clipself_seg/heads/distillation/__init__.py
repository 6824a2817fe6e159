"""The losses of CLIPSelf's objectives, a file each; start with ``losses.py``, that of the distillation."""
