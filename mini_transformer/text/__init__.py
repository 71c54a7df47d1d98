"""Text and tokens: knows nothing of models or training."""
