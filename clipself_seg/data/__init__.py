"""Images, annotations and vocabularies: all that is read before a model sees it.

Open `datasets/` first for the data sets and their names, `mappers/` for the samples that models get.
"""
