"""Every registered model through one battery, and each that another library has beside that library's."""

import copy
import math
from functools import partial

import pytest
import timm
import torch
from torch import nn
from torchvision import models as tv

from holocron_nb import models, papers
from holocron_nb.models.checkpoints import Checkpoint, load_folder, load_weights, save_folder
from holocron_nb.models.classification.resnet import from_holocron

ALL = models.list_models()
# on the meta device only: what they add to their smaller relatives is depth
DEEP = {
    "resnet101": "the blocks of resnet50",
    "resnet152": "the blocks of resnet50",
    "resnet110": "the blocks of resnet20",
    "resnet1202": "the blocks of resnet20, 1.2 thousand layers",
}
SMALL = [name for name in ALL if name not in DEEP]
CHECKPOINTS = {f"{name}.{m.name}": m.value for name, e in vars(models).items() if name.endswith("_Checkpoint") for m in e}


def build(name, seed=0, **kwargs):
    torch.manual_seed(seed)
    return models.get_model(name, **kwargs)


@pytest.mark.parametrize("name", ALL)
def test_builds_without_memory_for_any_classes_and_channels(name):
    with torch.device("meta"):
        model = models.get_model(name, num_classes=7, in_channels=5)
    assert all(p.is_meta for p in model.parameters())
    assert model(torch.empty(2, 5, 64, 96, device="meta")).shape == (2, 7)
    cfg = model.default_cfg
    assert cfg["arch"] == name and cfg["input_shape"][0] == 5 and cfg["kwargs"]["num_classes"] == 7
    assert len(cfg["mean"]) == len(cfg["std"]) == 3 and cfg["classes"] is None


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name):
    model = build(name, num_classes=5)
    y = model(torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)))
    nn.functional.cross_entropy(y, torch.tensor([0, 4])).backward()
    assert y.shape == (2, 5) and y.isfinite().all()
    lacking = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert not lacking


@pytest.mark.parametrize("name", SMALL)
def test_starts_with_signals_of_sensible_size(name):
    """He's initialisation keeps the scale through any depth; a wrong fan would multiply up to overflow or down to nothing."""
    y = build(name, num_classes=10).train()(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    assert 1e-2 < y.std() < 1e2


@pytest.mark.parametrize("name", SMALL)
def test_a_folder_gives_the_same_model_back(name, tmp_path):
    model = build(name, num_classes=5, in_channels=1).eval()
    again = load_folder(save_folder(model, tmp_path / name)).eval()
    x = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model(x), again(x)) and again.default_cfg["arch"] == name


@pytest.mark.parametrize("name", SMALL)
def test_memory_format_and_low_precision_change_little(name):
    model, x = build(name, num_classes=5).eval(), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x)
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        for low in (copy.deepcopy(model).bfloat16()(x.bfloat16()), _autocast(model, x)):
            # bfloat16 has 8 bits: 0.4 % an operation, and errors add up over the layers
            assert low.dtype == torch.bfloat16 and (low.float() - expected).norm() < 0.1 * expected.norm()


def _autocast(model, x):
    with torch.autocast("cpu", torch.bfloat16):
        return model(x)


@pytest.mark.parametrize("name", [n for n in SMALL if n not in ("resnet44", "resnet56")])  # resnet20's blocks once more, and slow to trace
def test_exports_for_any_batch_and_computes_the_same(name):
    model, x = build(name, num_classes=5).eval(), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},)).module()
    x = torch.cat([x, x + 1])
    with torch.no_grad():
        torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50d"])  # a model of each kind of block
def test_compiles_into_one_graph(name):
    model, x = build(name, num_classes=5).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x), rtol=1e-4, atol=1e-5)


def test_every_model_is_listed_once_and_reached_by_name():
    assert len(set(ALL)) == len(ALL)
    assert all(getattr(models, name) is models.registry.entry(name).constructor for name in ALL)
    assert {models.registry.entry(name).paper for name in ALL} <= set(papers.catalogue())


def test_features_are_what_the_head_sees():
    model, x = build("resnet18").eval(), torch.randn(2, 3, 97, 61)
    with torch.no_grad():
        maps = model.forward_stages(x)
        assert torch.equal(maps[-1], model.forward_features(x))
        torch.testing.assert_close(model.fc(maps[-1].mean((2, 3))), model(x), rtol=1e-4, atol=1e-5)
    assert [m.shape[1] for m in maps] == model.stage_channels


# Beside other libraries: all parameters random, float64, both modes, an odd size


def randomise(module, seed=0):
    """Gives every parameter and buffer a random value of a sensible size, in float64; at initialisation all norms are alike."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.double().state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
            scale = value.dim() == 1 and not name.endswith(("bias", "mean"))
            value.copy_(0.5 + noise if scale else (noise - 0.5) * 2 / math.sqrt(max(1, value[0].numel())))
    return module


def compare(ours, theirs, size):
    """Output, gradients of input and parameters, and buffers of two nets with the same weights, in eval and in train mode."""
    load_weights(ours.double(), theirs.state_dict())
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for train in (False, True):
        for mine, reference, name in zip(_outcome(ours, x, train), _outcome(theirs, x, train), _names(ours), strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-10 * float(reference.abs().max()), msg=partial("{}: {}".format, name))


def _names(net):
    return ["output", "input", *(n for n, _ in net.named_parameters()), *(n for n, _ in net.named_buffers())]


def _outcome(net, x, train):
    x = x.clone().requires_grad_()
    y = net.train(train)(x)
    grads = torch.autograd.grad(y.square().sum(), [x, *net.parameters()])
    return [y.detach(), *grads, *(b.clone() for b in net.buffers())]


@pytest.mark.parametrize("name", [n for n in ALL if hasattr(tv, n)])
def test_equals_torchvision(name):
    compare(models.get_model(name), randomise(getattr(tv, name)()), (65, 41))


def test_equals_timm():
    compare(models.resnet50d(), randomise(timm.create_model("resnet50d")), (65, 41))


# Published weights


@pytest.mark.parametrize("checkpoint", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoints_describe_the_models_that_we_build(checkpoint: Checkpoint):
    with torch.device("meta"):
        model = models.get_model(checkpoint.meta.arch, num_classes=len(checkpoint.meta.categories))
    assert sum(p.numel() for p in model.parameters()) == checkpoint.meta.num_params
    assert len(checkpoint.meta.sha256) == 64 and checkpoint.meta.sha256[:8] in checkpoint.meta.url
    tensors = sum(v.numel() * v.element_size() for v in model.state_dict().values())
    assert tensors < checkpoint.meta.size < 1.01 * tensors  # the file is the tensors and their names


def in_holocrons_names(model):
    """The model's state dict as the Holocron library names it: one `features` sequence, a `conv` sequence in each block, `head`."""
    deep = isinstance(model.conv1, nn.Sequential)
    stem = [*([f"conv1.{i}" for i in range(7)] if deep else ["conv1"]), "bn1", "relu", "maxpool", *model.stage_names]
    parts = {f"{ours}.": f"features.{i}." for i, ours in enumerate(stem)} | {"fc.": "head."}
    block = {"conv1": "conv.0", "bn1": "conv.1", "conv2": "conv.3", "bn2": "conv.4", "conv3": "conv.6", "bn3": "conv.7"}
    named = {}
    for name, value in model.state_dict().items():
        start = next(p for p in parts if name.startswith(p))
        rest = name.removeprefix(start).split(".")
        if start.startswith("layer"):
            rest[1] = block.get(rest[1], rest[1])
        named[parts[start] + ".".join(rest)] = value
    return named


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet50d"])
def test_holocrons_names_lead_back_to_ours(name):
    model = build(name, num_classes=10)
    theirs = in_holocrons_names(model)
    assert len(theirs) == len(model.state_dict()) and "head.weight" in theirs and not set(theirs) & {"fc.weight", "conv1.weight"}
    back = from_holocron(theirs)
    assert {n: v.data_ptr() for n, v in back.items()} == {n: v.data_ptr() for n, v in model.state_dict().items()}
    assert from_holocron(back) is back
