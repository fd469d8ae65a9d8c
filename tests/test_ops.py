"""What every measure of boxes must do and no single paper's notebook shows: graphs, dtypes, layouts, edges, parity, wrong arguments."""

import pytest
import torch
import torchvision.ops as tv
from torch import nn

from holocron_nb import ops
from holocron_nb.ops import boxes as box_ops

PAIRWISE = ["box_giou", "iou_penalty", "diou_loss", "aspect_ratio_consistency", "ciou_loss"]
PARITY = {"box_giou": tv.generalized_box_iou, "diou_loss": tv.distance_box_iou, "ciou_loss": tv.complete_box_iou}  # the losses are 1 - theirs


@pytest.fixture(params=PAIRWISE)
def function(request):
    return getattr(box_ops, request.param)


def random_boxes(n, seed, dtype=torch.float32, scale=1.0):
    u = torch.rand(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    corner = u[:, :2] - 0.5
    return (scale * torch.cat([corner, corner + 0.05 + 0.9 * u[:, 2:]], dim=1)).to(dtype)


def value_and_gradient(function, boxes1, boxes2):
    boxes1 = boxes1.detach().clone().requires_grad_()
    value = function(boxes1, boxes2)
    return value, torch.autograd.grad((value * torch.linspace(0.5, 1.5, value.numel()).view_as(value)).sum(), boxes1)[0]


def test_names():
    """The names that Holocron documents, and those that its losses are made of."""
    assert set(PAIRWISE) | {"aspect_ratio"} == set(box_ops.__all__)
    assert all(getattr(ops, name) is getattr(box_ops, name) for name in ("box_giou", "diou_loss", "ciou_loss"))


@pytest.mark.parametrize("name", PARITY)
def test_parity_with_torchvision(name):
    boxes1, boxes2 = random_boxes(37, 0, torch.float64, 100), random_boxes(23, 1, torch.float64, 100)
    sign, offset = (1, 0) if name == "box_giou" else (-1, 1)
    ours = value_and_gradient(getattr(box_ops, name), boxes1, boxes2)
    theirs = value_and_gradient(lambda a, b: offset + sign * PARITY[name](a, b), boxes1, boxes2)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)  # theirs has 1e-7 added to denominators


def test_gradcheck(function):
    inputs = random_boxes(4, 2, torch.float64).requires_grad_(), random_boxes(3, 3, torch.float64).requires_grad_()
    if function is not box_ops.ciou_loss:
        assert torch.autograd.gradcheck(function, inputs)
        return
    # alpha is a constant of the CIoU loss: hold it where the inputs are
    v, loss = box_ops.aspect_ratio_consistency(*inputs).detach(), 1 - tv.box_iou(*inputs).detach()
    alpha = v / (loss + v)

    def held(a, b):
        return box_ops.diou_loss(a, b) + alpha * box_ops.aspect_ratio_consistency(a, b)

    assert torch.autograd.gradcheck(held, inputs)
    torch.testing.assert_close(value_and_gradient(function, *inputs), value_and_gradient(held, *inputs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(function, dtype):
    boxes1, boxes2 = (torch.tensor(rows).to(dtype) for rows in ([[0, 0, 100, 60], [30, 20, 240, 90]], [[10, 10, 100, 50]]))
    out = function(boxes1, boxes2)
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(out, function(boxes1.to(out.dtype), boxes2.to(out.dtype)))


def test_dtypes_mix_and_large_boxes_stay_in_range(function):
    large = torch.tensor([[0, 0, 60000, 60000], [1000, 1000, 50000, 2000]])  # areas beyond half precision
    exact = function(large.double(), large.double())
    torch.testing.assert_close(function(large.half(), large.double()), exact, rtol=1e-3, atol=1e-3)
    assert function(large.half(), large.half()).isfinite().all()


def test_float64_keeps_its_digits(function):
    boxes1, boxes2 = random_boxes(5, 4, torch.float64), random_boxes(6, 5, torch.float64)
    single = function(boxes1.float(), boxes2.float()).double()
    double = function(boxes1, boxes2)
    assert 1e-9 < (single - double).abs().max() < 1e-5
    torch.testing.assert_close(function(boxes1 * 2**40, boxes2 * 2**40), double, rtol=1e-12, atol=1e-14)


def test_autocast(function):
    boxes1, boxes2 = random_boxes(5, 4), random_boxes(6, 5)
    expected = value_and_gradient(function, boxes1, boxes2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(value_and_gradient(function, boxes1, boxes2), expected)


def test_layouts(function):
    boxes1, boxes2 = random_boxes(8, 6), random_boxes(5, 7)
    expected = function(boxes1[::2], boxes2)
    assert not boxes1.T.contiguous().T.is_contiguous()
    torch.testing.assert_close(function(boxes1.T.contiguous().T[::2], boxes2.T.contiguous().T), expected)
    torch.testing.assert_close(function(boxes2, boxes1[::2]).T, expected)  # all are symmetric


def test_one_box_and_none(function):
    boxes1, boxes2 = random_boxes(4, 8), random_boxes(3, 9)
    whole = function(boxes1, boxes2)
    torch.testing.assert_close(function(boxes1[1:2], boxes2[2:]), whole[1:2, 2:])
    none = boxes1[:0].requires_grad_()
    assert function(none, boxes2).shape == (0, 3) and function(boxes2, none).shape == (3, 0) and function(none, none).shape == (0, 0)
    function(none, boxes2).sum().backward()
    assert none.grad.shape == (0, 4)


def test_empty_boxes_stay_finite(function):
    points = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 4], [1, 1, 5, 1], [1, 1, 1, 1], [0, 0, 9, 9], [1e-30, 1e-30, 2e-30, 2e-30]])
    value, gradient = value_and_gradient(function, points, points)
    assert value.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("name", ["iou_penalty", "diou_loss", "aspect_ratio_consistency", "ciou_loss"])
def test_swapped_corners_count_as_empty_in_losses(name):
    swapped = torch.tensor([[3.0, 3, 1, 1], [5, 0, 2, 4], [10, 10, 1, 1]])
    value, gradient = value_and_gradient(getattr(box_ops, name), swapped, torch.tensor([[0.0, 0, 4, 4], [3, 3, 1, 1], [5, 5, 5, 5]]))
    assert value.isfinite().all() and gradient.isfinite().all()
    low, high = {"diou_loss": (1, 2), "ciou_loss": (1, 3)}.get(name, (0, 1))  # no overlap with anything
    assert value.min() >= low and value.max() <= high


def test_giou_refuses_swapped_corners():
    good, swapped = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[0.0, 0, 1, 1], [2, 0, 1, 1]])
    for arguments, name in (((swapped, good), "boxes1"), ((good, swapped), "boxes2")):
        for error in (AssertionError, ValueError):  # the first is documented by Holocron
            with pytest.raises(error, match=rf"{name}: expected x1 <= x2 .* got \[2.0, 0.0, 1.0, 1.0\] in row 1"):
                box_ops.box_giou(*arguments)
    assert box_ops.box_giou(torch.tensor([[1.0, 1, 1, 1]]), good).isfinite().all()  # equal corners are in order


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ([[0, 0, 1, 1]], TypeError, "expected a tensor, got list"),
        (torch.ones(4), ValueError, r"expected shape \(number of boxes, 4\), got \(4,\)"),
        (torch.ones(2, 5), ValueError, r"got \(2, 5\)"),
        (torch.ones(1, 2, 4), ValueError, r"got \(1, 2, 4\)"),
        (torch.ones(2, 4, dtype=torch.bool), TypeError, "expected real coordinates, got torch.bool"),
        (torch.ones(2, 4, dtype=torch.complex64), TypeError, "got torch.complex64"),
        (torch.ones(2, 4, device="meta"), ValueError, "device"),
    ],
)
def test_wrong_arguments_are_named(function, wrong, error, message):
    good = torch.tensor([[0.0, 0, 1, 1]])
    with pytest.raises(error, match="boxes2.*" + message):
        function(good, wrong)
    with pytest.raises(error, match="boxes" + (".*" if message == "device" else "1.*") + message):
        function(wrong, good)


def test_aspect_ratio():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 0, 3], [0, 0, 3, 0], [1, 1, 1, 1]])
    torch.testing.assert_close(box_ops.aspect_ratio(boxes), torch.tensor([torch.pi / 4, 0, torch.pi / 2, 0]))
    with pytest.raises(ValueError, match="boxes"):
        box_ops.aspect_ratio(torch.ones(3))


def test_meta(function):
    boxes1, boxes2 = torch.empty(7, 4, device="meta"), torch.empty(3, 4, device="meta")
    assert function(boxes1, boxes2).shape == (7, 3)


def test_compile(function):
    """One graph, no break, the same values and gradients; box_giou leaves its look at values out."""
    boxes1, boxes2 = random_boxes(6, 10), random_boxes(4, 11)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(value_and_gradient(compiled, boxes1, boxes2), value_and_gradient(function, boxes1, boxes2))


@pytest.mark.parametrize("name", ["box_giou", "ciou_loss"])
def test_inductor(name):
    boxes1, boxes2 = random_boxes(6, 10), random_boxes(4, 11)
    function = getattr(box_ops, name)
    compiled = torch.compile(function, fullgraph=True)
    torch.testing.assert_close(value_and_gradient(compiled, boxes1, boxes2), value_and_gradient(function, boxes1, boxes2))


def test_export(function):
    class Measure(nn.Module):
        def forward(self, boxes1, boxes2):
            return function(boxes1, boxes2)

    m = torch.export.Dim("m", min=2)
    program = torch.export.export(Measure(), (random_boxes(6, 10), random_boxes(4, 11)), dynamic_shapes=({0: m}, None))
    boxes1, boxes2 = random_boxes(9, 12), random_boxes(4, 13)
    torch.testing.assert_close(program.module()(boxes1, boxes2), function(boxes1, boxes2))
