"""Objectives of CLIPSelf's training, a file each, and what they may ask of a step; start with ``objective.py``."""
