"""A model on a device: what ``headrace export --edge`` writes, and the scorer that travels with it."""
