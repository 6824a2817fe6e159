"""CAT-Seg's head: from dense features and texts to class probabilities; start in `cost_aggregator`."""
