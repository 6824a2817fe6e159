"""F-ViT: an open-vocabulary detector. Open `model.py` first."""
