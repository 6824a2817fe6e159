"""Feature maps of Stable Diffusion with ODISE's implicit captioner; start with ``source.py``."""
