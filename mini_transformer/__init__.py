"""Mini-Transformer: train small GPT-OSS-style language models on your own texts, and write with them."""

__version__ = "0.1.0"
