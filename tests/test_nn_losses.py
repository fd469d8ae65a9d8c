"""What every loss must do and no single paper's notebook shows: dtypes, layouts, edges, graphs, state, wrong arguments.

A row of ROWS is a loss with the kind of input it reads; a test at the end sees to it that no loss of `holocron_nb.nn` is missing.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holocron_nb import nn as hnn
from holocron_nb.nn import functional as HF

CLASSES, IGNORED = 4, -100
SPATIAL = (3, 5)


def indices(n, generator):
    return torch.randint(CLASSES, (n, *SPATIAL), generator=generator)


def image_labels(n, generator):
    return torch.randint(CLASSES, (n,), generator=generator)


def labels(n, generator):
    return torch.randint(2, (n, CLASSES, *SPATIAL), generator=generator).float()


@dataclass
class Row:
    name: str
    build: Callable[..., nn.Module]
    function: Callable[..., Tensor] | None  # the same without a module
    target: Callable[[int, torch.Generator], Tensor] = indices
    channels: int = CLASSES
    probabilities: bool = False
    reduces: bool = True

    def inputs(self, n=3, seed=0, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n, self.channels, *SPATIAL, generator=generator).to(dtype)
        return x.softmax(1) if self.probabilities else x, self.target(n, generator)


def balanced(**kwargs):
    return hnn.ClassBalancedWrapper(hnn.FocalLoss(**kwargs), torch.tensor([100, 50, 10, 1]))


ROWS = [
    Row("FocalLoss", hnn.FocalLoss, HF.focal_loss),
    Row("FocalLoss, gamma 0.5", partial(hnn.FocalLoss, 0.5), partial(HF.focal_loss, gamma=0.5)),
    Row("PolyLoss", hnn.PolyLoss, HF.poly_loss),
    Row("ComplementCrossEntropy", hnn.ComplementCrossEntropy, HF.complement_cross_entropy),
    Row("MultiLabelCrossEntropy", hnn.MultiLabelCrossEntropy, HF.multilabel_cross_entropy, labels),
    Row("MutualChannelLoss, images", hnn.MutualChannelLoss, HF.mutual_channel_loss, image_labels, 2 * CLASSES),
    Row("MutualChannelLoss, places", hnn.MutualChannelLoss, HF.mutual_channel_loss, indices, 2 * CLASSES),
    Row("DiceLoss, masks", hnn.DiceLoss, HF.dice_loss, labels, probabilities=True, reduces=False),
    Row("DiceLoss, logits", partial(hnn.DiceLoss, logits=True), partial(HF.dice_loss, logits=True), reduces=False),
    Row("ClassBalancedWrapper", balanced, None),
]
REDUCING = [row for row in ROWS if row.reduces]
IGNORING = [row for row in ROWS if row.name != "DiceLoss, masks"]  # masks have no ignored value


def each(rows):
    return pytest.mark.parametrize("row", rows, ids=[row.name for row in rows])


def run(criterion, x, target):
    """The loss and the gradient of its sum."""
    x = x.detach().requires_grad_()
    loss = criterion(x, target)
    return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]


@each(ROWS)
def test_gradient(row):
    x, target = row.inputs(2, dtype=torch.float64)
    criterion = row.build().double().eval()
    assert torch.autograd.gradcheck(criterion, (x.requires_grad_(), target))


@each(ROWS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(row, dtype):
    x, target = row.inputs(dtype=dtype)
    loss, gradient = run(row.build().eval(), x, target)
    expected, slope = run(row.build().eval(), x.float(), target)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and gradient.dtype == dtype
    torch.testing.assert_close(loss, expected.to(loss.dtype), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.float(), slope, rtol=1e-2, atol=1e-4)


@each(ROWS)
def test_autocast(row):
    x, target = row.inputs()
    criterion = row.build().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradient = run(criterion, x, target)
    expected, slope = run(criterion, x, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, slope)


@each(ROWS)
def test_layouts(row):
    x, target = row.inputs()
    criterion = row.build().eval()
    expected, slope = run(criterion, x, target)
    strided = torch.stack([x, x], -1)[..., 0]
    assert not strided.is_contiguous()
    for other in (x.to(memory_format=torch.channels_last), strided, x.transpose(0, 1).contiguous().transpose(0, 1)):
        loss, gradient = run(criterion, other, target)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradient, slope)


@each(ROWS)
def test_one_image_and_none(row):
    criterion = row.build().eval()
    x, target = row.inputs(3)
    alone, _ = run(criterion, x[:1], target[:1])
    assert alone.isfinite()
    if row.reduces:
        each_alone = torch.stack([run(criterion, x[i : i + 1], target[i : i + 1])[0] for i in range(3)])
        torch.testing.assert_close(run(criterion, x, target)[0], each_alone.mean())
    nothing, gradient = run(criterion, x[:0], target[:0])
    assert nothing.item() == 0 and gradient.shape == x[:0].shape


@each(REDUCING)
def test_reductions(row):
    x, target = row.inputs()
    single, total, mean = (row.build(reduction=reduction).eval()(x, target) for reduction in ("none", "sum", "mean"))
    assert single.shape == (target.shape if target.ndim != x.ndim else (x.shape[0], *x.shape[2:]))
    torch.testing.assert_close(single.sum(), total)
    torch.testing.assert_close(single.mean(), mean)
    changed = row.build().eval()
    changed.reduction = "none"  # read at each call
    torch.testing.assert_close(changed(x, target), single)


@each(IGNORING)
def test_all_ignored(row):
    x, target = row.inputs()
    loss, gradient = run(row.build().eval(), x, torch.full_like(target, IGNORED))
    assert loss.item() == 0 and gradient.abs().max() == 0


@each(IGNORING)
def test_an_ignored_image_counts_for_nothing(row):
    x, target = row.inputs()
    masked = target.clone()
    masked[1] = IGNORED
    loss, gradient = run(row.build().eval(), x, masked)
    rest, slope = run(row.build().eval(), x[[0, 2]], target[[0, 2]])
    torch.testing.assert_close(loss, rest)
    torch.testing.assert_close(gradient[[0, 2]], slope)
    assert gradient[1].abs().max() == 0


@each(IGNORING)
@pytest.mark.parametrize("scale", [1e4, 1e18])
def test_extreme_inputs_stay_finite(row, scale):
    x, target = row.inputs()
    for sign in (1, -1):
        loss, gradient = run(row.build().eval(), sign * scale * x, target)
        assert loss.isfinite() and gradient.isfinite().all()


@each([row for row in ROWS if not row.probabilities and row.channels == CLASSES])
@pytest.mark.parametrize("shift", [-1e3, 1e3])
def test_a_constant_on_all_logits_changes_nothing(row, shift):
    x, target = row.inputs(dtype=torch.float64)
    criterion = row.build().double()
    for moved, still in zip(run(criterion, x + shift, target), run(criterion, x, target), strict=True):
        torch.testing.assert_close(moved, still, rtol=1e-9, atol=1e-12)


@each(ROWS)
def test_one_class_everywhere(row):
    x, target = row.inputs()
    one = torch.zeros_like(target)
    if target.ndim == x.ndim:
        one[:, 0] = 1
    loss, gradient = run(row.build().eval(), x, one)
    assert loss.isfinite() and gradient.isfinite().all()


@each(ROWS)
def test_compiles_to_one_graph(row):
    x, target = row.inputs()
    criterion = row.build().eval()
    torch._dynamo.reset()
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(run(compiled, x, target), run(criterion, x, target), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_random_mask_compiles_too():
    row = next(row for row in ROWS if row.name.startswith("Mutual"))
    x, target = row.inputs()
    torch._dynamo.reset()
    loss, gradient = run(torch.compile(hnn.MutualChannelLoss().train(), fullgraph=True, backend="aot_eager"), x, target)
    assert loss.isfinite() and gradient.isfinite().all()


@each(ROWS)
def test_exports(row):
    x, target = row.inputs()
    criterion = row.build().eval()
    exported = torch.export.export(criterion, (x, target)).module()
    other, labelled = row.inputs(seed=1)
    torch.testing.assert_close(exported(other, labelled), criterion(other, labelled))


@each(ROWS)
def test_never_waits_for_values(row):
    """On the meta device there are none: whatever reads one, as a check that stops a GPU does, raises."""
    x, target = row.inputs()
    for training in (True, False):
        loss = row.build().train(training).to("meta")(x.to("meta"), target.to("meta"))
        assert loss.is_meta and loss.ndim == 0


@each(ROWS)
def test_inputs_are_left_alone(row):
    x, target = row.inputs()
    before = x.clone(), target.clone()
    run(row.build().eval(), x, target)
    assert torch.equal(x, before[0]) and torch.equal(target, before[1])


@each(ROWS)
def test_weights_are_state(row):
    x, target = row.inputs()
    weight = [1.0, 2.0, 0.5, 3.0]
    weighted = row.build(weight=weight).eval()
    torch.testing.assert_close(weighted(x, target), row.build(weight=torch.tensor(weight)).eval()(x, target))
    assert not torch.isclose(weighted(x, target), row.build().eval()(x, target))
    fresh = row.build(weight=[1.0] * CLASSES).eval()
    fresh.load_state_dict(weighted.state_dict())
    torch.testing.assert_close(fresh(x, target), weighted(x, target))
    assert all(buffer.dtype == torch.float64 for buffer in copy.deepcopy(weighted).double().buffers())


def test_one_number_weighs_two_classes():
    x, target = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0, 1, 0])
    for build in (hnn.FocalLoss, hnn.PolyLoss, hnn.ComplementCrossEntropy):
        torch.testing.assert_close(build(weight=0.25)(x, target), build(weight=[0.25, 0.75])(x, target))
    both = F.one_hot(target, 2)
    torch.testing.assert_close(hnn.DiceLoss(0.25)(x.softmax(1), both), hnn.DiceLoss([0.25, 0.75])(x.softmax(1), both))
    torch.testing.assert_close(hnn.MultiLabelCrossEntropy(0.25)(x, both), hnn.MultiLabelCrossEntropy([0.25, 0.75])(x, both))


@each([row for row in ROWS if row.function])
def test_function_and_module_agree(row):
    x, target = row.inputs()
    torch.manual_seed(0)
    by_module = row.build()(x, target)
    torch.manual_seed(0)
    assert torch.equal(row.function(x, target), by_module)


@each(ROWS)
def test_wrong_inputs_are_named(row):
    x, target = row.inputs()
    criterion = row.build().eval()
    with pytest.raises(ValueError, match="target"):
        criterion(x, target[:2])
    with pytest.raises(TypeError, match="x: expected floating"):
        criterion(x.long(), target)
    with pytest.raises(ValueError, match="weight: expected one value for each|criterion: expected weights"):
        row.build(weight=[1.0, 2.0, 3.0]).eval()(x, target)
    if target.dtype == torch.int64:
        with pytest.raises(TypeError, match="target: expected class indices"):
            criterion(x, target.float())


WRONG = [
    (hnn.FocalLoss, {"gamma": -1}, ValueError, "gamma"),
    (hnn.PolyLoss, {"eps": -1.5}, ValueError, "eps"),
    (hnn.PolyLoss, {"eps": None}, TypeError, "eps"),
    (hnn.ComplementCrossEntropy, {"gamma": float("nan")}, ValueError, "gamma"),
    (hnn.MutualChannelLoss, {"xi": 0}, ValueError, "xi"),
    (hnn.MutualChannelLoss, {"xi": 1.5}, TypeError, "xi"),
    (hnn.MutualChannelLoss, {"alpha": "one"}, TypeError, "alpha"),
    (hnn.DiceLoss, {"gamma": -0.1}, ValueError, "gamma"),
    (hnn.DiceLoss, {"eps": 0}, ValueError, "eps"),
    (hnn.MultiLabelCrossEntropy, {"ignore_index": 1.5}, TypeError, "ignore_index"),
    (hnn.ClassBalancedWrapper, {"criterion": nn.MSELoss(), "num_samples": torch.ones(3)}, TypeError, "criterion"),
    (hnn.ClassBalancedWrapper, {"criterion": nn.BCEWithLogitsLoss(), "num_samples": torch.ones(3)}, TypeError, "criterion"),
    (hnn.ClassBalancedWrapper, {"criterion": hnn.FocalLoss(), "num_samples": torch.zeros(3)}, ValueError, "num_samples"),
    (hnn.ClassBalancedWrapper, {"criterion": hnn.FocalLoss(), "num_samples": torch.ones(3), "beta": 1}, ValueError, "beta"),
]
WRONG += [(row.build, {"reduction": "average"}, error, "reduction") for row in REDUCING for error in (ValueError, NotImplementedError)]
WRONG += [(row.build, {"weight": [1.0, -1.0]}, ValueError, "weight") for row in ROWS]


@pytest.mark.parametrize("build, arguments, error, name", WRONG)
def test_wrong_arguments_are_named(build, arguments, error, name):
    with pytest.raises(error, match=f"^{name}: expected"):
        build(**arguments)


@pytest.mark.parametrize(
    "function, arguments",
    [
        (HF.focal_loss, {"gamma": -1}),
        (HF.poly_loss, {"eps": -2}),
        (HF.complement_cross_entropy, {"gamma": float("inf")}),
        (HF.dice_loss, {"gamma": -1}),
        (HF.mutual_channel_loss, {"alpha": float("nan")}),
    ],
)
def test_wrong_numbers_of_functions_are_named(function, arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        function(torch.rand(2, 4, 3, 3), torch.zeros(2, 3, 3, dtype=torch.int64), **arguments)


@each([row for row in REDUCING if row.function])
def test_functions_know_the_reductions(row):
    with pytest.raises(NotImplementedError, match="reduction: expected"):
        row.function(*row.inputs(), reduction="average")


def test_maps_must_divide_into_classes():
    with pytest.raises(ValueError, match="x: expected feature maps"):
        hnn.MutualChannelLoss(xi=3)(torch.zeros(2, 8, 4, 4), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("ignore_index", [-100, 255, 1])
def test_ignored_values_need_not_be_classes(ignore_index):
    """Holocron 0.3.0 raises for the first two, and lets the last change the loss of others."""
    x, target = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    masked, kept = target.masked_fill(target == 1, ignore_index), target != 1
    for build in (hnn.FocalLoss, hnn.PolyLoss, hnn.ComplementCrossEntropy):
        torch.testing.assert_close(build(ignore_index=ignore_index)(x, masked), build()(x[kept], target[kept]))


def test_every_loss_has_a_row():
    exported = {name for name in hnn.__all__ if inspect.isclass(cls := getattr(hnn, name)) and issubclass(cls, hnn.Loss)}
    assert exported - {"Loss"} | {"ClassBalancedWrapper"} == {row.name.split(",")[0] for row in ROWS}
