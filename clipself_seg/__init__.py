"""CLIPSelf in Detectron2: dense CLIP features that recognise regions, and what is built on them."""

__version__ = "0.1.0"
