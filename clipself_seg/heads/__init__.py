"""What the dense features are for: losses and predictors on top of them."""
