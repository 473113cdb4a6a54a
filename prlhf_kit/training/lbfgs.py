"""L-BFGS on rescaled arguments; its first step is nearly Newton's."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

TOLERANCE = 0.01  # largest slope, in units of `scales`


def minimised(
    loss: Callable[..., torch.Tensor],
    starts: Sequence[torch.Tensor],
    scales: Sequence[torch.Tensor],
    steps: int = 100,
    gain: float = 0.0,
) -> tuple[torch.Tensor, ...]:
    """The arguments that minimise `loss`, a negative log-likelihood with its penalty, in nats: by L-BFGS, each argument
    divided by about its posterior's standard deviation. The first step is then nearly Newton's, and few more follow.

    Args:
        starts: of the arguments.
        scales: one over the root of about the Hessian's diagonal, of the arguments' shapes: a posterior's standard
            deviations.
        steps: at most. It ends before where slopes are below `TOLERANCE`, or five steps gain less than this share of
            the loss: `gain`.
    """
    starts = [start.detach().requires_grad_() for start in starts]
    slopes = torch.autograd.grad(loss(*starts), starts)
    size = sum((slope * scale).abs().sum().item() for slope, scale in zip(slopes, scales, strict=True))
    unit = max(size, TOLERANCE)  # torch divides its first step by the sum of slopes; in this unit it is Newton's
    scaled = [(start / scale / unit).detach() for start, scale in zip(starts, scales, strict=True)]
    free = [part.contiguous().requires_grad_() for part in scaled]
    options: dict[str, Any] = {"tolerance_change": 0, "history_size": 10, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(free, max_iter=5, tolerance_grad=TOLERANCE * unit, **options)

    def unscaled() -> tuple[torch.Tensor, ...]:
        return tuple(part * scale * unit for part, scale in zip(free, scales, strict=True))

    def closure() -> Any:
        optimizer.zero_grad()
        value = loss(*unscaled())
        value.backward()
        return value

    before = float("inf")
    for _ in range(0, steps, 5):
        value = optimizer.step(closure).item()  # the loss before these steps
        if before - value <= gain * value:
            break
        before = value
    return tuple(part.detach() for part in unscaled())
