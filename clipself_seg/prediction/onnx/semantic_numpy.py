"""Names of every pixel of an image, without torch: python model.py photo.jpg (numpy, onnxruntime, Pillow)."""
