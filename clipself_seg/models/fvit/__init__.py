"""F-ViT: an open-vocabulary detector. Open `fvit.py` first."""
