"""Averaged weights: what is evaluated, sampled and kept may be an average over steps. So far it is the last step's."""

from collections.abc import Iterator
from contextlib import contextmanager

from mini_transformer.model.decoder import Decoder


@contextmanager
def averaged_weights(model: Decoder) -> Iterator[Decoder]:
    """Inside, the model has the averaged weights and is in evaluation mode; afterwards its own, in training mode."""
    model.eval()
    try:
        yield model
    finally:
        model.train()
