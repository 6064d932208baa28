"""RMSprop for weights of which every step samples a few."""

from typing import Any

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
        found_inf = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group, found_inf)

    def _update(
        self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], found_inf: Tensor | None
    ) -> None:
        state = self.state[parameter]
        share: Tensor | float = 1.0
        gradient = gradient + group["weight_decay"] * parameter
        if found_inf is not None:
            share = 1.0 - found_inf  # 0: nothing moves
            gradient = torch.where(found_inf == 0, gradient, torch.zeros_like(gradient))
        state["step"] += share
        # lerp: v + (g^2 - v) * weight
        state["square_avg"].lerp_(gradient.square(), share * (1.0 - SQUARES_KEPT))
        corrected = state["square_avg"] / (1.0 - SQUARES_KEPT ** state["step"])
        parameter -= group["lr"] * gradient / (corrected.sqrt_() + _EPSILON)
