"""What cuts across the layers for pooling, attention and regularisation: types, layouts, edges, compilation, state, bad arguments."""

import copy
import re

import pytest
import torch
from torch import nn

from holocron_nb import nn as hnn
from holocron_nb.nn import functional as HF

CHANNELS = 4
LAYERS = {  # name: (build, smallest side of a map that it takes)
    "BlurPool2d": (lambda: hnn.BlurPool2d(CHANNELS), 2),
    "BlurPool2d, 5, stride 3": (lambda: hnn.BlurPool2d(CHANNELS, kernel_size=5, stride=3), 3),
    "ConcatDownsample2d": (lambda: hnn.ConcatDownsample2d(2), 2),
    "DropBlock2d": (lambda: hnn.DropBlock2d(0.3, 3), 1),
    "GlobalAvgPool2d": (lambda: hnn.GlobalAvgPool2d(), 1),
    "GlobalMaxPool2d, flatten": (lambda: hnn.GlobalMaxPool2d(flatten=True), 1),
    "LambdaLayer, local": (lambda: hnn.LambdaLayer(CHANNELS, 6, 3, r=3, num_heads=2, dim_u=2), 1),
    "LambdaLayer, global": (lambda: hnn.LambdaLayer(CHANNELS, 6, 3, n=48, num_heads=2), None),
    "SAM": (lambda: hnn.SAM(CHANNELS), 1),
    "SAM, one map": (lambda: hnn.SAM(CHANNELS, pointwise=False), 1),
    "SPP": (lambda: hnn.SPP([3, 5]), 1),
    "SpatialPyramidPool2d": (lambda: hnn.SpatialPyramidPool2d([3, 1]), 1),
    "TripletAttention": (hnn.TripletAttention, 1),
    "ZPool": (hnn.ZPool, 1),
}


@pytest.fixture(params=LAYERS, ids=LAYERS)
def name(request):
    return request.param


@pytest.fixture
def layer(name):
    """The layer with parameters and buffers that are not those of the start, so that no batch norm is the identity."""
    torch.manual_seed(0)
    layer = LAYERS[name][0]()
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1)
    return layer


def maps(batch=2, height=6, width=8, dtype=torch.float32, seed=1):
    """Distinct values, so that no maximum has ties."""
    order = torch.randperm(batch * CHANNELS * height * width, generator=torch.Generator().manual_seed(seed))
    return (order.to(torch.float64) / len(order) - 0.4).view(batch, CHANNELS, height, width).to(dtype)


def run(layer, x):
    """The layer's output, with the random numbers of DropBlock the same in every call."""
    torch.manual_seed(2)
    return layer(x)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradients_are_those_of_finite_differences(layer, training, batch):
    layer = layer.double().train(training)
    leaves = [p for p in layer.parameters() if p.numel() < 200]  # of the global table of a lambda layer the notebook checks the gradient

    def function(x, *_):
        return run(layer, x)

    assert torch.autograd.gradcheck(function, (maps(batch, dtype=torch.float64).requires_grad_(), *leaves), eps=1e-7, fast_mode=True)


def test_half_precision_gives_the_float32_value(layer):
    x = maps().bfloat16()
    expected = run(layer.eval(), x.float())
    got = run(copy.deepcopy(layer).bfloat16(), x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=4e-2, atol=4e-2 * expected.abs().max().item())


def test_autocast_trains(layer):
    x = maps().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(layer, x)
    expected = run(layer, x)
    torch.testing.assert_close(got.float(), expected, rtol=4e-2, atol=4e-2 * expected.abs().max().item())
    got.float().sum().backward()
    assert x.grad.dtype == torch.float32 and x.grad.isfinite().all()


def test_layouts_do_not_matter(layer):
    x, layer = maps(), layer.eval()
    expected, stretched = run(layer, x), torch.zeros(2, CHANNELS, 12, 8)
    stretched[:, :, ::2] = x
    for other in (x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3), stretched[:, :, ::2]):
        torch.testing.assert_close(run(layer, other), expected)


def test_samples_do_not_meet_in_evaluation(layer):
    """A batch of one gives the row of the larger batch, and an empty batch an empty one of the right shape."""
    x, layer = maps(3), layer.eval()
    expected = layer(x)
    torch.testing.assert_close(layer(x[1:2]), expected[1:2])
    assert layer(x[:0]).shape == (0, *expected.shape[1:])


def test_smallest_maps(name, layer):
    side = LAYERS[name][1]
    if side is None:
        pytest.skip("a global context has one size")
    assert layer.eval()(torch.ones(2, CHANNELS, side, side)).isfinite().all()
    if side > 1:
        with pytest.raises(ValueError, match="^x: expected"):
            layer(torch.ones(2, CHANNELS, side - 1, side - 1))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiles_in_one_graph(layer, training):
    """The whole layer, forward and backward, without a break; random numbers may differ, so DropBlock is judged by its mask."""
    torch.compiler.reset()
    layer, x = layer.train(training), maps().requires_grad_()
    eager = copy.deepcopy(layer)
    got, expected = torch.compile(layer, fullgraph=True, backend="aot_eager")(x), eager(x)
    gradient = torch.autograd.grad(got.square().sum(), x)[0]
    if isinstance(layer, hnn.DropBlock2d) and training:
        dropped = got == 0
        assert dropped.any() and torch.equal(gradient == 0, dropped)
        return
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.square().sum(), x)[0])


def test_exports(layer):
    layer, x = layer.eval(), maps()
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))


def test_state_is_saved_and_moves(name, layer, tmp_path):
    run(layer.train(), maps())  # batch norms have seen something
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    other = LAYERS[name][0]()
    other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    x = maps(seed=3)
    assert torch.equal(other.eval()(x), layer.eval()(x))
    moved = copy.deepcopy(layer).to("meta")
    assert all(t.is_meta for t in (*moved.parameters(), *moved.buffers()))
    assert moved(x.to("meta")).shape == layer(x).shape
    assert all(t.dtype == torch.float64 for t in layer.double().buffers() if t.is_floating_point())


def test_repr_names_the_arguments(name, layer):
    text = repr(layer)
    assert text.startswith(name.split(",")[0]) and "object at" not in text


BAD = [
    (lambda: hnn.BlurPool2d(0), ValueError, "channels"),
    (lambda: hnn.BlurPool2d(4, kernel_size=1), ValueError, "kernel_size"),
    (lambda: hnn.BlurPool2d(4, stride=0), ValueError, "stride"),
    (lambda: hnn.BlurPool2d(4)(torch.ones(1, 3, 8, 8)), ValueError, "x"),
    (lambda: hnn.ConcatDownsample2d(0), ValueError, "scale_factor"),
    (lambda: hnn.ConcatDownsample2d(2.0), TypeError, "scale_factor"),
    (lambda: HF.concat_downsample2d(torch.ones(1, 1, 5, 4), 2), ValueError, "x"),
    (lambda: hnn.DropBlock2d(1.1), ValueError, "p"),
    (lambda: hnn.DropBlock2d(float("nan")), ValueError, "p"),
    (lambda: hnn.DropBlock2d(block_size=0), ValueError, "block_size"),
    (lambda: HF.dropblock2d(torch.ones(1, 1, 4, 4), -0.1, 3), ValueError, "drop_prob"),
    (lambda: HF.dropblock2d(torch.ones(4, 4), 0.1, 3), ValueError, "x"),
    (lambda: hnn.GlobalAvgPool2d(flatten="yes"), TypeError, "flatten"),
    (lambda: hnn.GlobalMaxPool2d()(torch.ones(1, 2, 0, 3)), ValueError, "x"),
    (lambda: hnn.LambdaLayer(4, 4, 3), ValueError, "n, r"),
    (lambda: hnn.LambdaLayer(4, 4, 3, r=4), ValueError, "r"),
    (lambda: hnn.LambdaLayer(4, 6, 3, r=3), ValueError, "out_channels"),
    (lambda: hnn.LambdaLayer(4, 4, 3, n=9)(torch.ones(1, 4, 4, 4)), ValueError, "x"),
    (lambda: hnn.SAM(-1), ValueError, "in_channels"),
    (lambda: hnn.SAM(4)(torch.ones(1, 5, 2, 2)), ValueError, "x"),
    (lambda: hnn.SPP([4]), ValueError, "kernel_sizes"),
    (lambda: hnn.SPP(3), TypeError, "kernel_sizes"),
    (lambda: hnn.SpatialPyramidPool2d([0]), ValueError, "output_sizes"),
    (lambda: hnn.TripletAttention()(torch.ones(2, 3)), ValueError, "x"),
    (lambda: hnn.ZPool("1"), TypeError, "dim"),
    (lambda: HF.z_pool(torch.ones(2, 3), 2), ValueError, "x"),
]


@pytest.mark.parametrize(("call", "error", "argument"), BAD, ids=[f"{argument}-{i}" for i, (_, _, argument) in enumerate(BAD)])
def test_bad_arguments_are_refused_by_name(call, error, argument):
    with pytest.raises(error, match=f"^{re.escape(argument)}: expected .* got "):
        call()


def test_dropblock_drops_its_share_without_touching_the_rest_of_the_generator():
    """The mean share over many maps is p, each kept value has the same scale, and p can be scheduled."""
    layer, x = hnn.DropBlock2d(0.0, 5), torch.ones(400, 8, 14, 11)
    assert layer(x) is x
    for p in (0.05, 0.2, 0.6):
        layer.p = p
        y = run(layer, x)
        assert abs((y == 0).float().mean().item() - p) < 0.01
        assert len(y.unique()) == 2 and abs(y.mean().item() - 1) < 1e-4


def test_holocron_weights_load():
    """The parameter names and shapes of Holocron 0.3.0, so that its state dicts load."""
    shapes = {k: tuple(v.shape) for k, v in hnn.TripletAttention().state_dict().items() if "num_batches" not in k}
    branch = {"1.weight": (1, 2, 7, 7), "2.weight": (1,), "2.bias": (1,), "2.running_mean": (1,), "2.running_var": (1,)}
    assert shapes == {f"{side}_branch.compress.{k}": v for side in "chw" for k, v in branch.items()}
    assert {k: tuple(v.shape) for k, v in hnn.SAM(5, pointwise=False).state_dict().items()} == {"conv.weight": (1, 5, 1, 1), "conv.bias": (1,)}
    shapes = {k: tuple(v.shape) for k, v in hnn.LambdaLayer(6, 8, 3, r=5, dim_u=2).named_parameters()}
    assert shapes["R"] == (3, 2, 1, 5, 5) and shapes["to_q.weight"] == (12, 6, 1, 1) and shapes["to_v.weight"] == (4, 6, 1, 1)
    assert hnn.LambdaLayer(6, 8, 3, n=9).pos_emb.shape == (9, 9, 3, 1)
    assert not nn.Sequential(hnn.BlurPool2d(3), hnn.SPP([3]), hnn.ConcatDownsample2d(2), hnn.DropBlock2d()).state_dict()
