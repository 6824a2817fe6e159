"""Results that a model computes once over a data set, for later runs to read: proposals, and nouns of boxes."""
