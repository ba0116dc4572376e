"""Check that every input and weight of a family changes its output: otherwise a fault in it would be hidden."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .compare import SEEDS, call, difference
from .family import Family, tensors

#: By how much weights are changed to see whether they matter, of their size.
CHANGE = 0.3
#: A bias of keys adds the same to every score of a row, and softmax takes it out again.
IDLE = (r"\b(k|key|k_proj|k_head|linear_k|key_proj|projection_key)\.(#\.)?bias$",)


def assert_inputs_matter(family: Family) -> None:
    """Every floating-point output is finite, has values of a size to see, and depends on the inputs."""
    with torch.no_grad():
        one, other = (tensors(family.build()(*args, **kwargs)) for args, kwargs in map(family.inputs, SEEDS))
    floats = [i for i, tensor in enumerate(one) if tensor.is_floating_point() or tensor.is_complex()]
    assert floats, "no output is of floating point"
    for i in floats:
        size = one[i].abs().max().item()
        assert one[i].isfinite().all(), f"output {i} is not finite"
        if i not in family.fixed:
            assert 0.02 < size < 1e3, f"the largest value of output {i} is {size:g}"
            change = difference([other[i]], [one[i]])
            assert change > 100 * family.tolerance, f"other inputs change output {i} by {change:g}"


def weight_groups(model: nn.Module) -> dict[str, list[Tensor]]:
    """Weights and floating-point buffers by their names without numbers: those of all layers together."""
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in _weights(model):
        if tensor.is_floating_point() and tensor.numel() and tensor.isfinite().all():
            groups.setdefault(re.sub(r"\d+", "#", name), []).append(tensor)
    return groups


def assert_weights_matter(family: Family) -> None:
    """A change of any group of weights that forward reads shows in the output, far above the tolerance."""
    model = family.build()
    saved = {name: tensor.clone() for name, tensor in _weights(model)}
    generator = torch.Generator().manual_seed(0)

    def changed(group: list[Tensor], change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        for name, tensor in _weights(model):
            tensor.copy_(saved[name])
        for tensor in group:
            tensor.copy_(change(tensor))
        return call(model, family.inputs(0))

    def noisy(tensor: Tensor) -> Tensor:
        return tensor + CHANGE * tensor.float().abs().mean() * torch.randn(tensor.shape, generator=generator)

    def lost(group: list[Tensor]) -> bool:
        """Whether forward does not read them."""
        try:
            results = changed(group, lambda tensor: torch.full_like(tensor, torch.nan))
        except RuntimeError:
            return False
        return len(results) == len(expected) and all(map(torch.equal, results, expected))

    with torch.no_grad():
        expected = changed([], noisy)
        for name, group in weight_groups(model).items():
            change = difference(changed(group, noisy), expected)
            if change < 10 * family.tolerance and not any(re.search(p, name) for p in (*IDLE, *family.idle)):
                assert lost(group), f"other values of {name} change the output by {change:g}"


def _weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
