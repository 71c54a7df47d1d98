"""A forward and backward pass as a CUDA graph: one launch instead of thousands, which small models wait for."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

WARM_UPS = 3  # runs before the capture, as torch.cuda.graphs asks for


class GraphedPass:
    """A pass over batches of one shape, recorded once and replayed; it adds to gradients that stay where they are."""

    def __init__(self, run: Callable[[Tensor, Tensor, Tensor], Tensor], ids_bt: Tensor) -> None:
        """`run`: adds the gradients of inputs, targets (B, T) and a scale of the loss; returns the loss (scalar)."""
        self.inputs, self.targets = ids_bt.clone(), ids_bt.clone()
        self.scale = torch.ones((), device=ids_bt.device)
        stream = torch.cuda.Stream(ids_bt.device)
        stream.wait_stream(torch.cuda.current_stream(ids_bt.device))
        with torch.cuda.stream(stream), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of gradients that come from another stream, here on purpose
            for _ in range(WARM_UPS):
                run(self.inputs, self.targets, self.scale)
        torch.cuda.current_stream(ids_bt.device).wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = run(self.inputs, self.targets, self.scale)

    def __call__(self, inputs_bt: Tensor, targets_bt: Tensor, scale: float) -> Tensor:
        """The loss (a scalar) of a batch on any device, times `scale`; its gradients are added."""
        self.inputs.copy_(inputs_bt, non_blocking=True)
        self.targets.copy_(targets_bt, non_blocking=True)
        self.scale.fill_(scale)
        self.graph.replay()
        return self.loss.clone()


@contextmanager
def gradients_aside(model: nn.Module) -> Iterator[None]:
    """A model without gradients for the time of the body: a graph goes on adding to those that are put back."""
    held = [(parameter, parameter.grad) for parameter in model.parameters()]
    model.zero_grad()
    yield
    for parameter, gradient in held:
        parameter.grad = gradient
