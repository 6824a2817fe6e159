"""CLIPSelf in Detectron2: dense CLIP features that recognise regions, and what is built on them.

Data flows through `data`, `clip`, `heads`, `models` and `evaluation` to `training` and `prediction`;
docs/architecture.md is the map. Open `clip/model.py` first to use a CLIP, `training/run.py` for what train_net.py does.
"""

__version__ = "0.1.0"
