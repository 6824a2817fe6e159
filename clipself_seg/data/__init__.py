"""Pictures, regions and words: what goes into the models."""
