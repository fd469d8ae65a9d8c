"""What cuts across the convolutions of the room nn: dtypes, layouts, sizes, compilers, state, bad arguments."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import holocron_nb.nn as hnn
from holocron_nb.nn import functional as HF

# What each makes of (N, 8, H, W): small, with the options that take another path through its code.
LAYERS = {
    "involution": lambda: hnn.Involution2d(8, 3, padding=1, groups=2, reduction_ratio=2),
    "involution, stride, norm": lambda: hnn.Involution2d(8, 5, padding=1, stride=2, groups=4, norm_layer=nn.BatchNorm2d),
    "pyconv": lambda: hnn.PyConv2d(8, 16, 3, num_levels=3, padding=1),
    "pyconv, stride, dilation": lambda: hnn.PyConv2d(8, 8, 1, num_levels=2, stride=2, dilation=2, bias=False),
    "norm_conv": lambda: hnn.NormConv2d(8, 6, 3, padding=1, eps=1e-3),
    "norm_conv, groups, reflect": lambda: hnn.NormConv2d(8, 6, 3, 2, 1, groups=2, padding_mode="reflect", eps=1e-3),
    "adder": lambda: hnn.Add2d(8, 6, 3, padding=1),
    "adder, groups, slices": lambda: hnn.Add2d(8, 6, 3, 2, 1, groups=2, normalize_slices=True, eps=1e-3),
    "adder, adaptive": lambda: hnn.Add2d(8, 6, 3, padding=1, padding_mode="circular", adaptive_gradient=True),
    "slim_conv": lambda: hnn.SlimConv2d(8, 3, padding=1),
}
EXACT = [name for name in LAYERS if name != "adder, adaptive"]  # its gradient is not a derivative


@pytest.fixture(params=LAYERS)
def layer(request):
    torch.manual_seed(0)
    return LAYERS[request.param]()


def feature_map(n=2, h=8, w=9, dtype=torch.float32):
    return torch.randn(n, 8, h, w, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("name", EXACT)
def test_gradcheck(name):
    torch.manual_seed(0)
    layer = LAYERS[name]().double()
    x = feature_map(h=5, w=6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()), fast_mode=True)


def test_trains_behind_another_layer(layer):
    net = nn.Sequential(nn.Conv2d(8, 8, 1), layer)
    net(feature_map()).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
    assert net[0].weight.grad.abs().sum() > 0


def test_bfloat16(layer):
    """Within the rounding of input, weights and output to 8 bits, and of that dtype."""
    layer.eval()
    x = feature_map().bfloat16()
    half = copy.deepcopy(layer).bfloat16()
    with torch.no_grad():
        expected = copy.deepcopy(half).float()(x.float())
        y = half(x)
    assert y.dtype == torch.bfloat16
    assert (y.float() - expected).abs().max() <= 0.03 * expected.abs().max()


def test_autocast(layer):
    layer.eval()
    x = feature_map().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    y.float().square().sum().backward()
    expected = layer(x)
    assert (y.float() - expected).abs().max() <= 0.03 * expected.abs().max()
    assert x.grad.isfinite().all() and all(p.grad.dtype == torch.float32 for p in layer.parameters())


def test_layouts(layer):
    """Channels-last, transposed and strided inputs give the values and gradients of a contiguous one."""
    layer.eval()
    x = feature_map(h=8, w=8)
    pull = torch.randn(layer(x).shape, generator=torch.Generator().manual_seed(2))
    expected = grads(layer, x, pull)
    strided = torch.zeros(2, 16, 8, 8)
    strided[:, ::2] = x
    for same in (x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3), strided[:, ::2]):
        assert not same.is_contiguous()
        torch.testing.assert_close(grads(layer, same, pull), expected, rtol=1e-4, atol=1e-4)


def grads(layer, x, pull):
    """Output, and the gradients by input and parameters."""
    x = x.detach().requires_grad_()
    y = layer(x)
    return y, torch.autograd.grad(y, (x, *layer.parameters()), pull)


def test_images_do_not_mix(layer):
    """In evaluation a batch gives what its images give one by one; an empty batch gives an empty map and zero gradients."""
    layer.eval()
    x = feature_map(n=3)
    alone = torch.cat([layer(image[None]) for image in x])
    torch.testing.assert_close(layer(x), alone, rtol=1e-4, atol=1e-4)
    empty = torch.zeros(0, 8, 8, 9, requires_grad=True)
    y = layer(empty)
    assert y.shape == (0, *alone.shape[1:])
    y.sum().backward()
    assert empty.grad.shape == empty.shape
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in layer.parameters())


def test_batch_of_one_trains(layer):
    """Not where a batch norm would have one value a channel."""
    if isinstance(layer, hnn.SlimConv2d):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layer(feature_map(n=1))
        return
    layer(feature_map(n=1)).sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_state_dict(layer):
    """All state is in parameters and buffers: it moves, saves, loads, and survives a copy."""
    layer.eval()
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(other(feature_map()), layer(feature_map()))
    assert {p.device.type for p in layer.to("meta").parameters()} == {"meta"}


@pytest.mark.parametrize("name", ["involution", "pyconv", "norm_conv", "adder", "adder, adaptive", "slim_conv"])
def test_compile(name):
    """One graph, forward and backward, with the values and gradients of eager mode. Traced without code generation: seconds."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer = LAYERS[name]().eval()
    x = feature_map()
    pull = torch.randn(layer(x).shape, generator=torch.Generator().manual_seed(2))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(grads(compiled, x, pull), grads(layer, x, pull), rtol=1e-4, atol=1e-4)


def test_export(layer):
    layer.eval()
    program = torch.export.export(layer, (feature_map(),))
    torch.testing.assert_close(program.module()(feature_map()), layer(feature_map()), rtol=1e-4, atol=1e-4)


def test_exported_adder_holds_no_pairs():
    """No tensor of the exported graph has as many values as there are pairs of a window's value and a filter's."""
    program = torch.export.export(hnn.Add2d(8, 16, 3, padding=1), (torch.zeros(1, 8, 32, 32),))
    sizes = [node.meta["val"].numel() for node in program.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    assert max(sizes) < 32 * 32 * 16 * 72


@pytest.mark.parametrize("adaptive", [False, True])
def test_adder_saves_memory(adaptive):
    """Neither pass makes a tensor of N x HW x C_out x C k k values."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for value in out if isinstance(out, list | tuple) else [out]:
                largest = max(largest, value.numel() if isinstance(value, torch.Tensor) else 0)
            return out

    x = torch.randn(1, 64, 16, 16, requires_grad=True)
    with Watch():
        hnn.Add2d(64, 64, 3, padding=1, adaptive_gradient=adaptive)(x).sum().backward()
    assert largest <= 2**19 < 256 * 64 * 576


COMMON = {"in_channels": 8, "kernel_size": 3}
BOTH = {**COMMON, "out_channels": 8}


@pytest.mark.parametrize(
    ("build", "arguments", "wrong", "error"),
    [
        (hnn.Involution2d, COMMON, {"kernel_size": 4}, ValueError),
        (hnn.Involution2d, COMMON, {"padding": 2}, ValueError),
        (hnn.Involution2d, COMMON, {"groups": 3}, ValueError),
        (hnn.Involution2d, COMMON, {"reduction_ratio": 9}, ValueError),
        (hnn.Involution2d, COMMON, {"stride": 1.5}, TypeError),
        (hnn.PyConv2d, BOTH, {"num_levels": 0}, ValueError),
        (hnn.PyConv2d, BOTH, {"num_levels": 2.0}, TypeError),
        (hnn.PyConv2d, BOTH, {"out_channels": 6, "num_levels": 4}, ValueError),
        (hnn.PyConv2d, BOTH, {"groups": [1, 2, 4]}, ValueError),
        (hnn.PyConv2d, BOTH, {"groups": 2}, TypeError),
        (hnn.NormConv2d, BOTH, {"eps": -1.0}, ValueError),
        (hnn.NormConv2d, BOTH, {"padding_mode": "mirror"}, ValueError),
        (hnn.NormConv2d, BOTH, {"kernel_size": 0}, ValueError),
        (hnn.Add2d, BOTH, {"groups": 3}, ValueError),
        (hnn.Add2d, BOTH, {"eta": 0.0}, ValueError),
        (hnn.Add2d, BOTH, {"padding": -1}, ValueError),
        (hnn.SlimConv2d, COMMON, {"in_channels": 6}, ValueError),
        (hnn.SlimConv2d, COMMON, {"r": 0}, ValueError),
        (hnn.SlimConv2d, COMMON, {"groups": 4}, ValueError),
    ],
)
def test_bad_arguments_are_named(build, arguments, wrong, error):
    with pytest.raises(error, match=f"^{next(iter(wrong))}"):
        build(**{**arguments, **wrong})


def test_bad_inputs_are_named(layer):
    for x in (torch.zeros(2, 7, 8, 8), torch.zeros(8, 8, 8)):
        with pytest.raises(ValueError, match="^x: expected a feature map"):
            layer(x)
    with pytest.raises(TypeError, match="^x: expected a floating"):
        layer(torch.zeros(2, 8, 8, 8, dtype=torch.int64))


def test_functions_name_what_does_not_fit():
    x = torch.zeros(1, 4, 6, 6)
    with pytest.raises(ValueError, match="^weight"):
        HF.norm_conv2d(x, torch.zeros(3, 3))
    with pytest.raises(ValueError, match="^bias"):
        HF.add2d(x, torch.zeros(3, 4, 3, 3), torch.zeros(4))
    with pytest.raises(ValueError, match="^x: expected a map of at least"):
        HF.add2d(x, torch.zeros(3, 4, 7, 7))
    with pytest.raises(ValueError, match="^kernel"):
        HF.involution2d(x, torch.zeros(1, 2, 3, 3, 6, 6))


@pytest.mark.parametrize("name", ["norm_conv", "adder", "adder, groups, slices", "adder, adaptive"])
def test_extreme_values_stay_finite(name):
    torch.manual_seed(0)
    layer = LAYERS[name]()
    for x in (torch.zeros(1, 8, 6, 6), torch.full((1, 8, 6, 6), 3e4), 1e10 * feature_map(n=1)):
        x.requires_grad_()
        y = layer(x)
        y.sum().backward()
        assert y.isfinite().all() and x.grad.isfinite().all()


def test_a_convolution_is_the_limit_of_each():
    """Involution with constant kernels, one level, and a normalised window of unit variance are `F.conv2d`."""
    x = feature_map(dtype=torch.float64)
    one = hnn.PyConv2d(8, 4, 3, num_levels=1, padding=1).double()
    torch.testing.assert_close(one(x), F.conv2d(x, one[0].weight, one[0].bias, padding=1))
    kernel = torch.randn(1, 2, 3, 3, 1, 1, dtype=torch.float64)
    weight = kernel[0, :, None, :, :, 0, 0].repeat_interleave(4, dim=0)
    y = HF.involution2d(x, kernel.expand(2, 2, 3, 3, 8, 9), padding=1)
    torch.testing.assert_close(y, F.conv2d(x, weight, padding=1, groups=8))
    weight = torch.randn(4, 8, 3, 3, dtype=torch.float64)
    windows = F.unfold(x, 3)
    unit = (windows - windows.mean(1, keepdim=True)) / windows.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(HF.norm_conv2d(x, weight).flatten(2), weight.flatten(1) @ unit, rtol=1e-8, atol=1e-8)
