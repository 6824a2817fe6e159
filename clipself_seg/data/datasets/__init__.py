"""Data sets by name.

Open `table.py` first: it lists them. `records.py` gives their images by name and registers them with Detectron2.
"""
