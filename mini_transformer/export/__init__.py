"""A trained model as files that other programs open."""
