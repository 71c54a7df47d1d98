"""The GPT-OSS decoder: knows tensors, nothing of text or training."""
