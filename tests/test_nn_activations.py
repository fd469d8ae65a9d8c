"""What every activation must do and no single paper's notebook shows: graphs, dtypes, layouts, state, in-place use, wrong arguments."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers.activations import hard_mish as timm_hard_mish
from torch import nn

from holocron_nb import nn as hnn
from holocron_nb.nn import functional as HF
from holocron_nb.nn.init import init_module

MODULES = {
    "HardMish": hnn.HardMish,
    "HardMish in place": lambda: hnn.HardMish(inplace=True),
    "NLReLU": hnn.NLReLU,
    "NLReLU, beta": lambda: hnn.NLReLU(0.3),
    "NLReLU in place": lambda: hnn.NLReLU(2.0, inplace=True),
    "FReLU": lambda: hnn.FReLU(4),
    "FReLU, 5": lambda: hnn.FReLU(4, 5),
}
PLAIN = {"HardMish": lambda x: x / 2 * (x + 2).clamp(0, 2), "NLReLU": lambda x: torch.log(1 + x.relu())}


@pytest.fixture(params=MODULES)
def module(request):
    torch.manual_seed(0)
    return MODULES[request.param]()


def maps(*shape, dtype=torch.float32, seed=0):
    shape = shape or (2, 4, 6, 5)
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def value_and_gradients(module, x):
    """The output for a copy of x (which in-place modules may overwrite), and the gradients of input and parameters."""
    x = x.detach().clone().requires_grad_()
    out = module(x.clone())
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
    return out.detach(), *torch.autograd.grad((out * weight).sum(), [x, *module.parameters()])


@pytest.mark.parametrize("name", PLAIN)
def test_functions_and_modules_agree(name):
    x, function = maps(), {"HardMish": HF.hard_mish, "NLReLU": HF.nl_relu}[name]
    for inplace in (False, True):
        torch.testing.assert_close(function(x.clone(), inplace=inplace), PLAIN[name](x))
        assert torch.equal(function(x.clone(), inplace=inplace), getattr(hnn, name)(inplace=inplace)(x.clone()))


@pytest.mark.parametrize("name", ["HardMish", "NLReLU"])
def test_in_place_overwrites_and_trains(name):
    module = getattr(hnn, name)(inplace=True)
    x = maps()
    out = module(x)
    assert out.data_ptr() == x.data_ptr() and torch.equal(out, x)
    layer, other = nn.Linear(4, 4), getattr(hnn, name)()
    rows = maps(8, 4)
    gradients = [torch.autograd.grad(f(layer(rows)).sum(), layer.weight)[0] for f in (module, other)]
    torch.testing.assert_close(*gradients)


def test_hard_mish_is_timms():
    x = maps(1000)
    torch.testing.assert_close(value_and_gradients(hnn.HardMish(), x)[:2], value_and_gradients(_Function(timm_hard_mish), x)[:2])


class _Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_frelu_is_a_maximum_and_loads_holocrons_keys():
    layer = hnn.FReLU(4)
    assert list(layer.state_dict()) == [
        "conv.weight", "conv.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"
    ]  # fmt: skip
    plain = _Function(lambda x: torch.maximum(x, layer.bn(layer.conv(x))))
    plain.layer = layer
    for mode in (True, False):
        layer.train(mode)
        torch.testing.assert_close(value_and_gradients(layer, maps()), value_and_gradients(plain, maps()))


def test_gradcheck(module):
    module, x = module.double(), maps(2, 4, 3, 3, dtype=torch.float64, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(x.clone()), x)
    if not list(module.parameters()):
        assert torch.autograd.gradgradcheck(lambda x: module(x.clone()), x)


def test_per_sample_gradients(module):
    """torch.func goes through: gradients of each sample alone."""
    if getattr(module, "inplace", False):
        pytest.skip("torch.func.vmap has no rule for a tensor that is overwritten by a function of its own")
    module.eval()
    x = maps(3, 1, 4, 6, 5)
    each = torch.func.vmap(torch.func.grad(lambda x: module(x).square().sum()))(x)
    expected = torch.stack([torch.autograd.grad(module(row).square().sum(), row)[0] for row in x.requires_grad_().unbind()])
    torch.testing.assert_close(each, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(module, dtype):
    module, x = module.eval(), maps(dtype=dtype)
    expected = module(x.float())
    module.to(dtype)
    out, *gradients = value_and_gradients(module, x)
    assert out.dtype == dtype and all(g.dtype == dtype and g.isfinite().all() for g in gradients)
    tolerance = {torch.float64: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)


def test_autocast(module):
    module.eval()
    expected = value_and_gradients(module, maps())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = value_and_gradients(module, maps())
    for a, b in zip(out, expected, strict=True):
        assert torch.isfinite(a).all() and (a.float() - b).norm() < 0.05 * b.norm() + 0.05


def test_layouts(module):
    x = maps()
    expected = value_and_gradients(module, x)
    channels_last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(value_and_gradients(module, channels_last), expected)
    assert module(channels_last.clone()).is_contiguous(memory_format=torch.channels_last)
    sliced = torch.stack([x, x], dim=-1)[..., 0]
    assert not sliced.is_contiguous()
    torch.testing.assert_close(value_and_gradients(module, sliced), expected)


def test_batch_of_one_and_none(module):
    x = maps()
    module.eval()
    torch.testing.assert_close(module(x[1:].clone()), module(x.clone())[1:])
    none = torch.zeros(0, 4, 6, 5, requires_grad=True)
    out = module(none.clone())
    out.sum().backward()
    assert out.shape == none.grad.shape == (0, 4, 6, 5)


def test_extremes_stay_finite(module):
    module.eval()
    x = torch.tensor([-1e30, -1e4, -2.0, 0.0, 1e-30, 1e4, 1e30]).view(1, 1, 1, 7).expand(1, 4, 1, 7)
    assert all(value.isfinite().all() for value in value_and_gradients(module, x))


def test_state_moves_and_loads(module):
    x = maps()
    module(x.clone())
    copy = type(module)(4, module.conv.kernel_size[0]) if isinstance(module, hnn.FReLU) else type(module)(**_arguments(module))
    copy.load_state_dict(module.state_dict())
    torch.testing.assert_close(copy.eval()(x.clone()), module.eval()(x.clone()))
    assert all(t.is_meta for t in module.to("meta").state_dict().values())
    assert module(x.to("meta")).shape == x.shape


def _arguments(module):
    return {name: getattr(module, name) for name in ("beta", "inplace") if hasattr(module, name)}


def test_compile(module):
    module.eval()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    expected = value_and_gradients(module, maps())
    x = maps().requires_grad_()
    out = compiled(x.clone())
    weight = torch.linspace(-1, 2, out.numel()).view(out.shape)
    torch.testing.assert_close((out.detach(), *torch.autograd.grad((out * weight).sum(), [x, *module.parameters()])), expected)


@pytest.mark.parametrize("name", ["HardMish", "NLReLU", "FReLU"])
def test_inductor(name):
    torch.manual_seed(0)
    module = MODULES[name]().train()
    expected = value_and_gradients(module, maps())
    torch.testing.assert_close(value_and_gradients(torch.compile(module, fullgraph=True), maps()), expected, rtol=1e-4, atol=1e-4)


def test_export(module):
    module.eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(module, (maps(),), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(maps(3, 4, 6, 5, seed=2)), module(maps(3, 4, 6, 5, seed=2)))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: hnn.NLReLU(0), ValueError, "beta: expected a finite number above 0, got 0"),
        (lambda: hnn.NLReLU(float("nan")), ValueError, "beta: .* got nan"),
        (lambda: hnn.NLReLU(True), TypeError, "beta: expected a number, got bool"),
        (lambda: HF.nl_relu(torch.ones(2), -1.0), ValueError, "beta"),
        (lambda: HF.nl_relu(torch.ones(2, dtype=torch.int64)), TypeError, "x: expected a floating tensor, got torch.int64"),
        (lambda: HF.hard_mish(torch.ones(2, dtype=torch.bool)), TypeError, "x: expected a floating tensor, got torch.bool"),
        (lambda: HF.hard_mish(1.0), TypeError, "x: expected a floating tensor, got float"),
        (lambda: hnn.FReLU(0), ValueError, "in_channels: expected at least 1, got 0"),
        (lambda: hnn.FReLU(4, 2), ValueError, "kernel_size: expected an odd number, .* got 2"),
        (lambda: hnn.FReLU(4, -1), ValueError, "kernel_size: expected at least 1, got -1"),
        (lambda: hnn.FReLU(4.0), TypeError, "in_channels: expected an integer, got float"),
        (lambda: init_module(nn.ReLU(), "swosh"), ValueError, "nonlinearity: .* got 'swosh'"),
        (lambda: init_module({}), TypeError, "module: expected a torch.nn.Module, got dict"),
    ],
)
def test_wrong_arguments_are_named(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_init_module():
    torch.manual_seed(0)
    conv = nn.ConvTranspose2d(64, 32, 3)
    net = nn.Sequential(conv, hnn.FReLU(32), nn.GroupNorm(4, 32), nn.BatchNorm2d(32, affine=False))
    for p in net.parameters():
        nn.init.constant_(p, 3.0)
    init_module(net)
    fan_out = F.conv_transpose2d(torch.ones(1, 1, 5, 5), torch.ones(1, 1, 3, 3)).max().item() * conv.weight.shape[0]
    assert abs(conv.weight.std().item() * (fan_out / 2) ** 0.5 - 1) < 0.05
    assert all((p == 0).all() for name, p in net.named_parameters() if name.endswith("bias"))
    assert (net[1].bn.weight == 1).all() and (net[2].weight == 1).all() and 0.05 < net[1].conv.weight.std() < 0.2
