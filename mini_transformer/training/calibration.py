"""Calibration: how sure a model is of itself is fitted to the validation text, once training has ended.

A model that has read a small text many times is too sure: with logits divided by a temperature of 1.1 or 1.2, other
texts become likelier (Guo et al. 2017, arXiv 1706.04599). This one number becomes part of the weight of the last norm,
so that the folder stays what every reader of GPT-OSS knows.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from mini_transformer.model.decoder import Decoder

LAST_NORM = "norm.weight"
TRIED = (0.9, 0.8)  # factors of the logits, beside 1; the loss is convex in the factor, and almost a parabola here
LIMITS = (0.7, 1.1)
GAIN = 1e-3  # nats per token below which the weights stay as they are
EVALUATIONS = len(TRIED) + 1


def calibrate(
    model: Decoder, weights: Mapping[str, Tensor], loss: float, measure: Callable[[], float]
) -> tuple[float, float]:
    """Load weights, their logits multiplied by the factor with which the loss is least; returns factor and loss.

    `measure` gives the loss of the model as it is, in nats per token; `loss` is that of the weights as they are. All
    ranks call it. Under FSDP weights are parts, and only by loading them do they reach what the model computes with.
    """

    def measure_with(factor: float) -> float:
        model.load_state_dict({**weights, LAST_NORM: weights[LAST_NORM] * factor})
        return measure()

    near, far = map(measure_with, TRIED)
    bend, step = loss - 2 * near + far, 1 - TRIED[0]
    factor = TRIED[0] - step * (loss - far) / (2 * bend) if bend > 0 else 1.0
    factor = min(max(factor, LIMITS[0]), LIMITS[1])
    fitted = measure_with(factor)
    if not fitted < loss - GAIN:
        model.load_state_dict(weights)
        return 1.0, loss
    return factor, fitted
