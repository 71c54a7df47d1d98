"""Generating text with a trained model: knows model and text, nothing of data or training."""
