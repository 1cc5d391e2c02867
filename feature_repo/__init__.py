"""What a feature means: view declarations, window kernel, oracle, online store, Feast objects."""
