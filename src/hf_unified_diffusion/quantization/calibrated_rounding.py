"""Rounding that spares what a layer's inputs excite: codes and scales as of `integer`, chosen by another measure.

With H the second moments of a layer's inputs, the error of a rounded row is e H e^T, the power of what it adds to the
output, instead of e e^T. Columns are rounded one after the other, each making up for those before it (GPTQ,
arXiv:2210.17323, largest moments first); then scales are fitted and codes revised in turn (coordinate descent,
arXiv:2309.01885). No row ends worse than by plain rounding. Pure functions; everything is float32 "rows columns".
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .integer import Codes, levels_of, nearest_levels, pack_levels, quantize, storable_scale

DAMPING = 0.01  # of the mean moment, added to all: for directions that the calibration rows hardly excite
SWEEPS = 3
_BLOCK = 96  # columns between two matrix products; inside, one column at a time


def quantize_calibrated(
    weight: Float[Tensor, "rows columns"],
    moments: Float[Tensor, "columns columns"],
    bits: int,
    group_size: int = 64,
    sweeps: int = SWEEPS,
) -> Codes:
    """Codes and scales as of `quantize`, of small error on inputs whose second moments X^T X are `moments`.

    By the damped moments (see `damped`) the error of every row is at most that of plain rounding.

    Raises:
        ValueError: what `quantize` refuses, or moments that are not a finite symmetric matrix of the columns.

    Usage: `packed, scale = quantize_calibrated(linear.weight, inputs.T @ inputs, bits=4)`
    """
    packed, scale = quantize(weight, bits, group_size)
    target = weight.detach().float()
    metric = damped(moments.to(target.device), target.shape[1])
    plain = Rounding(target, metric, levels_of(packed, bits).view_as(target), scale.float(), bits)
    with torch.autocast(target.device.type, enabled=False):
        found = plain.compensated()
        for _ in range(sweeps):
            found = found.with_fitted_scales().revised()
        best = plain.better_rows(found)
    return pack_levels(best.levels, bits), best.scale.to(scale.dtype)


def damped(moments: Float[Tensor, "columns columns"], columns: int) -> Float[Tensor, "columns columns"]:
    """Moments of mean diagonal 1, plus the damping; the identity where no input was ever seen."""
    if moments.shape != (columns, columns) or not bool(moments.isfinite().all()):
        raise ValueError(f"moments must be a finite {columns} x {columns} matrix, got shape {tuple(moments.shape)}")
    moments = moments.detach().float()
    mean = moments.diagonal().mean()
    identity = torch.eye(columns, device=moments.device)
    return moments / mean + DAMPING * identity if mean > 0 else identity


@dataclass(frozen=True)
class Rounding:
    """A matrix, the metric H of its errors, and levels and scales that stand for it."""

    target: Float[Tensor, "rows columns"]
    metric: Float[Tensor, "columns columns"]
    levels: Float[Tensor, "rows columns"]
    scale: Float[Tensor, "rows groups"]
    bits: int

    @property
    def steps(self) -> Float[Tensor, "rows columns"]:
        """The scale of each weight."""
        return self.scale.repeat_interleave(self.levels.shape[1] // self.scale.shape[1], dim=1)

    def errors(self) -> Float[Tensor, "rows"]:
        """e H e^T of each row."""
        error = self.target - self.levels * self.steps
        return ((error @ self.metric) * error).sum(dim=1)

    def better_rows(self, other: "Rounding") -> "Rounding":
        """Of each row the better of two roundings."""
        better = (other.errors() < self.errors())[:, None]
        levels = torch.where(better, other.levels, self.levels)
        return Rounding(self.target, self.metric, levels, torch.where(better, other.scale, self.scale), self.bits)

    def compensated(self) -> "Rounding":
        """Round anew, column by column, the columns still to come making up for each error (GPTQ)."""
        order = self.metric.diagonal().argsort(descending=True)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.metric[order][:, order].double()))
        feedback = torch.linalg.cholesky(inverse, upper=True).float()
        feedback = feedback / feedback.diagonal()[:, None]
        # columns first: each is then contiguous
        left, steps = self.target.T[order].contiguous(), self.steps.T[order].contiguous()
        levels = torch.empty_like(left)
        for start in range(0, len(left), _BLOCK):
            block = slice(start, start + _BLOCK)
            inside, errors = left[block], torch.empty_like(left[block])
            for i, row in enumerate(feedback[block, block]):
                levels[start + i] = nearest_levels(inside[i], steps[start + i], self.bits)
                errors[i] = inside[i] - levels[start + i] * steps[start + i]
                inside[i + 1 :].addr_(row[i + 1 :], errors[i], alpha=-1)
            left[block.stop :] -= feedback[block, block.stop :].T @ errors
        restored = torch.empty_like(levels)
        restored[order] = levels
        return Rounding(self.target, self.metric, restored.T.contiguous(), self.scale, self.bits)

    def revised(self) -> "Rounding":
        """Each column in turn takes the levels that are best beside all the others (coordinate descent)."""
        steps, levels, metric = self.steps.T.contiguous(), self.levels.T.contiguous(), self.metric
        slope = metric @ (self.target.T - levels * steps)
        for start in range(0, len(levels), _BLOCK):
            block = slice(start, start + _BLOCK)
            inside, changes = slope[block], torch.empty_like(slope[block])
            for i, column in enumerate(metric[block, block]):
                at = start + i
                best = nearest_levels(levels[at] * steps[at] + inside[i] / column[i], steps[at], self.bits)
                changes[i] = (best - levels[at]) * steps[at]
                levels[at] = best
                inside[i + 1 :].addr_(column[i + 1 :], changes[i], alpha=-1)
            slope[block.stop :] -= metric[block.stop :, block] @ changes
        return Rounding(self.target, self.metric, levels.T.contiguous(), self.scale, self.bits)

    def with_fitted_scales(self) -> "Rounding":
        """The scales of least error for these levels: a small linear system a row, over its groups."""
        rows, groups = self.scale.shape
        by_group = self.levels.view(rows, groups, -1)
        size = by_group.shape[2]
        power = torch.empty(rows, groups, groups, device=self.scale.device)
        for group in range(groups):
            pulled = by_group[:, group] @ self.metric[group * size : (group + 1) * size]
            power[:, group] = (pulled.view_as(by_group) * by_group).sum(-1)
        wanted = ((self.target @ self.metric).view_as(by_group) * by_group).sum(-1)
        ridge = 1e-6 * power.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(1e-12)
        power.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
        fitted = torch.linalg.solve(power, wanted)
        scale = torch.where(fitted > 0, storable_scale(fitted), self.scale)
        return Rounding(self.target, self.metric, self.levels, scale, self.bits)
