"""ONNX files: one of a model with its class names (a module a task), or those of a CLIP's two towers.

Open `graph.py` first: what all of them have in common. `output.py` checks what is asked for, before torch is imported.
"""
