"""Documents and tokens: knows nothing of data, models or training."""
