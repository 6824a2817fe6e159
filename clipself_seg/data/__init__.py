"""Images, annotations and vocabularies, and the samples for models that are made of them.

Open `datasets/` first for the data sets and their names, `mappers/` for the samples that models get.
"""
