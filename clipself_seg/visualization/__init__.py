"""Pictures of features, segments and regions."""
