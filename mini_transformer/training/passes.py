"""Forward and backward passes of micro-batches, on a CPU with a thread for each share of its rows.

PyTorch divides each operation among its threads. Those of a small model are so short that threads wait for each other
for much of the time; so here each thread takes its own rows through the whole model, and gradients are added up at the
end, always in the same order.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from mini_transformer.model.decoder import Decoder
from mini_transformer.model.dropout import seed_dropout
from mini_transformer.training.graphs import GraphedPass
from mini_transformer.training.losses import Loss, cross_entropy_sum
from mini_transformer.training.optimizer import routers
from mini_transformer.training.parallel import gradient_scale, gradient_sync

SMALL = 2**24  # parameters: operations of larger models are long, and each thread needs gradients of its own
SHARE = 1024  # tokens for a thread: with fewer, threads wait for Python, which runs one at a time


class Passes:
    """The passes of one model in the precision of a run."""

    def __init__(self, model: Decoder, parallel: nn.Module, precision: torch.dtype, *losses: Loss) -> None:
        """`parallel`: the module whose forward pass trains the model on all ranks, or the model itself.

        Of several losses each step takes the next.
        """
        self.model, self.parallel, self.precision, self.losses = model, parallel, precision, losses
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        alone = parallel is model and not isinstance(model, FSDPModule) and self.device.type == "cpu"
        small = sum(p.numel() for p in self.parameters) <= SMALL
        self.threads = torch.get_num_threads() if alone and small else 1
        self.pool: ThreadPoolExecutor | None = None
        self.compiled, self.graphs = False, dict[tuple[int, ...], GraphedPass]()  # by shape; see `acceleration`

    def warm_up(self, block_size: int) -> None:
        """One pass that changes nothing.

        After its first one DDP orders the gradients anew, which decides how three and more are added up: a run that
        goes on must not begin with another order.
        """
        block = torch.zeros((1, block_size), dtype=torch.int64)
        self.loss_sum(self.parallel, block, block, cross_entropy_sum)[0].backward()
        self.zero_grad()

    def shares(self, rows: int, tokens: int) -> int:
        """How many threads take part in a micro-batch of so many rows, each of so many tokens."""
        return max(1, min(self.threads, rows, rows * tokens // SHARE))

    def loss_sum(self, model: nn.Module, inputs_bt: Tensor, targets_bt: Tensor, loss: Loss) -> tuple[Tensor, int]:
        """A loss of a batch, on the device and in the precision of the run; and the number of its predictions."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision is torch.bfloat16):
            return loss(model, inputs_bt.to(self.device), targets_bt.to(self.device))

    def backward(
        self, seed: Sequence[int], rows: Sequence[int], inputs_bt: Tensor, targets_bt: Tensor, count: int, last: bool
    ) -> Tensor:
        """Add the gradients of a micro-batch to those of the parameters; returns its loss, divided by `count`.

        `seed`, which ends in the number of the step, and `rows`, the numbers of the rows in the whole batch, decide
        what is dropped. Ranks exchange gradients after the `last` micro-batch of a step.
        """
        if (shares := self.shares(*inputs_bt.shape)) > 1:
            return self._in_threads(shares, seed, rows, inputs_bt, targets_bt, count)
        seed_dropout(self.model, seed, rows, self.device)
        if graph := self.graphs.get(tuple(inputs_bt.shape)):
            return graph(inputs_bt, targets_bt, 1 / count)
        with gradient_sync(self.parallel, last):
            loss = self.loss_sum(self.parallel, inputs_bt, targets_bt, self._loss_of(seed))[0] / count
            (loss * gradient_scale(self.parallel)).backward()
        return loss.detach()

    def _loss_of(self, seed: Sequence[int]) -> Loss:
        return self.losses[seed[-1] % len(self.losses)]

    def record(self, ids_bt: Tensor) -> None:
        """From now on take batches of the shape of this one by a CUDA graph. Gradients are never freed any more.

        A graph has one loss.
        """

        def run(inputs_bt: Tensor, targets_bt: Tensor, scale: Tensor) -> Tensor:
            loss = self.loss_sum(self.model, inputs_bt, targets_bt, *self.losses)[0] * scale
            loss.backward()
            return loss.detach()

        seed_dropout(self.model, (0,), range(len(ids_bt)), self.device)
        self.graphs[tuple(ids_bt.shape)] = GraphedPass(run, ids_bt)

    def forget(self) -> None:
        """Free the graphs and all gradients."""
        self.graphs.clear()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget all gradients and the tokens that experts got."""
        self.model.zero_grad(set_to_none=not self.graphs)
        for router in routers(self.model):
            if router.tokens_per_expert is not None:
                router.tokens_per_expert.zero_()

    def _in_threads(
        self, shares: int, seed: Sequence[int], rows: Sequence[int], inputs_bt: Tensor, targets_bt: Tensor, count: int
    ) -> Tensor:
        def share(i: int) -> tuple[Tensor, list[Tensor]]:
            part = slice(len(rows) * i // shares, len(rows) * (i + 1) // shares)
            seed_dropout(self.model, seed, rows[part])
            loss = self.loss_sum(self.model, inputs_bt[part], targets_bt[part], self._loss_of(seed))[0] / count
            return loss.detach(), list(torch.autograd.grad(loss, self.parameters))

        if self.pool is None:
            self.pool = ThreadPoolExecutor(self.threads - 1, "share", torch.set_num_threads, (1,))
        torch.set_num_threads(1)
        try:
            others = [self.pool.submit(share, i) for i in range(1, shares)]
            loss, gradients = share(0)
            for other in others:
                loss_there, gradients_there = other.result()
                loss += loss_there
                torch._foreach_add_(gradients, gradients_there)
        finally:
            torch.set_num_threads(self.threads)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return loss
