"""Data sets by name.

Open `table.py` first: it lists them. `records.py` reads them and registers them with Detectron2, `check.py` checks
their files.
"""
