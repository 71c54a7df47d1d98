"""Measures of what the models write."""
