"""Data sets by name, a file for each kind: table, records and entries in Detectron2's catalogue.

Open `coco.py` first; `roots.py` says where the files of each family lie.
"""
