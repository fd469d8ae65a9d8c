"""Small parameters with known gradients, and steps of an optimizer over them: shared by the tests of optimizers and of wrappers."""

import torch
from torch import nn

SHAPES = [(7, 5), (5,), (3, 2, 2), (1,), ()]


def parameters(dtype=torch.float32, seed=0, shapes=SHAPES):
    """Random parameters of many shapes, the same in all dtypes up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]


def gradients(params, step, scale=1.0):
    """Gives parameters the random gradients of a step."""
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = (scale * torch.randn(p.shape, generator=generator, dtype=torch.float64)).to(p.dtype)


def walk(optimizer, params, steps):
    """Takes the steps, and returns where they lead."""
    for step in steps:
        gradients(params, step)
        optimizer.step()
    return [p.detach().clone() for p in params]


def assert_same(first, second):
    """Tensors that are equal to the bit, and in dtype."""
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def assert_near(first, second, **tolerance):
    """Tensors that agree within a tolerance."""
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, **tolerance)
