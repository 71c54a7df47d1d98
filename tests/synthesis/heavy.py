"""Imports that every run needs, for processes that are started often."""

import datasketch  # noqa: F401
import torch  # noqa: F401
import transformers.models.qwen2.modeling_qwen2
import transformers.models.qwen2.tokenization_qwen2  # noqa: F401

import mini_transformer.synthesis.backends.local
import mini_transformer.synthesis.pipeline  # noqa: F401
