"""ONNX files: one of a model with its class names (a module a task), or those of a CLIP's two towers.

Open `export.py` first, then `graph.py`: what all of them have in common.
"""
