"""Muon whose matrices of one shape are orthogonalized together."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon


def orthogonalized(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Each of (k, m, n) with its singular values brought near 1: Newton-Schulz steps in bfloat16, as torch's Muon.

    The quintic iteration x <- a x + (b A + c A^2) x with A = x x^T; singular values end between 0.5 and 1.5.
    """
    a, b, c = coefficients
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class BatchedMuon(Muon):
    """`torch.optim.Muon` (arXiv:2502.16982), which takes matrices one by one: some 4,000 kernels a step for 24 layers,
    that a GPU waits for (67 ms of an H100, where AdamW takes 2). Steps have the size of AdamW's, so that one learning
    rate serves both.

    It computes in bfloat16, which is slow on CPUs without units for it.

    Usage: `BatchedMuon([p for p in layers.parameters() if p.ndim == 2], lr=1e-3, weight_decay=0.1).step()`
    """

    def __init__(self, params, lr: float = 1e-3, weight_decay: float = 0.1):
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure=None):
        """One step of all matrices that have a gradient; the loss of `closure`, if it is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for parameters in alike.values():
                self.step_alike(parameters, group)
        return loss

    def step_alike(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of matrices of one shape."""
        grads = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.grad)
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        moved = torch._foreach_lerp(grads, momenta, group["momentum"]) if group["nesterov"] else momenta
        way = orthogonalized(torch.stack(moved), group["ns_coefficients"], group["ns_steps"], group["eps"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        size = 0.2 * group["lr"] * max(parameters[0].shape) ** 0.5
        torch._foreach_add_(parameters, list(way.to(parameters[0].dtype).unbind()), alpha=-size)
