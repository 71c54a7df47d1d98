"""The learning rate: a linear warm-up, then a linear decay to zero (Bergsma et al. 2025, arXiv 2502.15938)."""


def learning_rate(iteration: int, iters: int, peak: float, warmup_iters: int) -> float:
    """The rate of one iteration (from 0) of a phase of `iters`; the warm-up takes a tenth of the phase at most."""
    warmup = min(warmup_iters, iters // 10)
    if iteration < warmup:
        return peak * (iteration + 1) / (warmup + 1)
    return peak * (iters - iteration) / (iters - warmup)
