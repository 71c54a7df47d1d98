"""The kernels of a GPU on small cases, against the formulas: what is missing or wrong on a card is not used there."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mini_transformer.model import grouped, sdpa_cuda
from mini_transformer.model.sdpa import sdpa_reference
from mini_transformer.model.swiglu import clamped_swiglu
from mini_transformer.runtime import log
from mini_transformer.training.distributed import any_rank

FAR = 0.05  # relative; bfloat16 has 0.004


def far(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative difference of several tensors."""
    return max(((a.float() - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True))


def with_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The result of a function, and the gradients of its inputs for a fixed gradient of the result."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    grad = torch.sin(torch.arange(out.numel(), device=out.device, dtype=torch.float32)).view(out.shape)
    return [out, *torch.autograd.grad(out, inputs, grad.to(out.dtype))]


def attention_error(device: torch.device) -> float:
    """How far flash attention with sinks is from the formula, with a window and without, and grouped heads."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 40, 32), (2, 2, 40, 32), (2, 2, 40, 32), (4,))
    inputs = [torch.randn(shape, generator=generator).to(device, torch.bfloat16) for shape in shapes]
    errors = []
    for window in (8, 40):
        found = with_gradients(lambda *x: sdpa_cuda.FlashWithSinks.apply(*x, window), inputs)  # noqa: B023
        expected = with_gradients(lambda q, k, v, s: sdpa_reference(q, k, v, s, window)[0], [x.float() for x in inputs])  # noqa: B023
        errors.append(far(found, expected))
    return max(errors)


def experts_error(device: torch.device) -> float:
    """How far grouped products are from a loop over experts, of which one gets no row."""
    generator, counts = torch.Generator().manual_seed(0), [9, 17, 0, 24]
    shapes = ((50, 32), (4, 32, 96), (4, 96), (4, 48, 32), (4, 32))
    inputs = [(torch.randn(s, generator=generator) * s[-1] ** -0.5).to(device, torch.bfloat16) for s in shapes]
    expert_r = torch.repeat_interleave(torch.tensor(counts)).to(device)

    def loop(rows_rc: Tensor, gate_up: Tensor, gate_up_bias: Tensor, down: Tensor, bias: Tensor) -> Tensor:
        outs = []
        for e, part in enumerate(rows_rc.split(counts)):
            hidden = clamped_swiglu(*(part @ gate_up[e] + gate_up_bias[e]).chunk(2, dim=-1))
            outs.append(hidden @ down[e] + bias[e])
        return torch.cat(outs)

    found = with_gradients(lambda rows, *weights: grouped.chosen_experts(rows, expert_r, *weights), inputs)
    return far(found, with_gradients(loop, [x.float() for x in inputs]))


def prove_kernels(device: torch.device) -> None:
    """Use the kernels that find what they should, on all ranks; says which do not, and why."""
    for what, module, error in (
        ("flash attention", sdpa_cuda, attention_error),
        ("grouped products of experts", grouped, experts_error),
    ):
        try:
            off = error(device)
            good, why = off <= FAR, f"{off:.2g} from the formula"
        except Exception as failure:  # of cards and drivers that we have not seen
            good, why = False, f"{type(failure).__name__}: {failure}".splitlines()[0][:200]
        proved = not any_rank(not good)
        setattr(module, "PROVED", proved)  # noqa: B010
        if not proved:
            log(f"Not used on this GPU: {what} ({why if not good else 'another process cannot'})")
