"""RMSprop for weights of which every step samples a few."""

import torch
from torch import Tensor, nn

SQUARES_KEPT = 0.9
"""Share of a parameter's mean square that an update keeps."""
_EPSILON = 1e-8


class RmsProp(torch.optim.Optimizer):
    """RMSprop with bias correction: Adam (arXiv 1412.6980) whose first beta is zero, so that it
    keeps no more than SGD with momentum, one tensor as large as the weights.

    Its step does not depend on how many losses' gradients were summed, nor on how seldom an
    operation is sampled; a parameter without a gradient keeps value, mean square and count. As
    PyTorch's fused optimizers it reads ``found_inf`` on the device, where that is set: a step
    whose gradients are not finite changes nothing, and the host waits for nothing.
    """

    found_inf: Tensor

    def __init__(self, module: nn.Module, *, lr: float, weight_decay: float) -> None:
        super().__init__(module.parameters(), {"lr": lr, "weight_decay": weight_decay})
        for parameter in module.parameters():
            self.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float64, device=parameter.device),
                "square_avg": torch.zeros_like(parameter),
            }

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; closures are not supported."""
        for group in self.param_groups:
            sampled = [one for one in group["params"] if one.grad is not None]
            if sampled:
                self._update(sampled, group["lr"], group["weight_decay"])

    def _update(self, sampled: list[Tensor], lr: float, weight_decay: float) -> None:
        """Update these, all at once: a call for each would take longer than the arithmetic."""
        steps, squares = (
            [self.state[one][name] for one in sampled] for name in ("step", "square_avg")
        )
        given = [one.grad for one in sampled if one.grad is not None]
        gradients = list(torch._foreach_add(given, sampled, alpha=weight_decay))
        share: Tensor | float = 1.0
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None:  # where it is set nothing moves
            share, finite = 1.0 - found_inf, found_inf == 0
            gradients = [torch.where(finite, one, 0.0) for one in gradients]
        torch._foreach_add_(steps, share)
        # v + (g^2 - v) * weight
        weight = share * (1.0 - SQUARES_KEPT)
        towards = torch._foreach_sub(torch._foreach_mul(gradients, gradients), squares)
        torch._foreach_add_(squares, torch._foreach_mul(towards, weight))
        bias = torch._foreach_sub(torch._foreach_pow(SQUARES_KEPT, steps), 1.0)
        scale = torch._foreach_sqrt(torch._foreach_neg(torch._foreach_div(squares, bias)))
        torch._foreach_add_(scale, _EPSILON)
        torch._foreach_add_(sampled, torch._foreach_div(gradients, scale), alpha=-lr)
