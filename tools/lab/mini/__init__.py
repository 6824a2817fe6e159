"""Mini worlds of generated scenes, and the small CLIP and heads that were trained on them.

Open `concepts.py` first: it lists the classes of both worlds; clipself_seg/mini/CARD.md describes the weights.
"""
