"""What every optimizer must do and no single paper's notebook shows: state, copies, groups, dtypes, graphs, scalers, wrong arguments.

Every optimizer of `holocron_nb.optim` is tested with its defaults. OPTIONS adds rows that turn everything interesting on.
"""

import copy
import inspect
import io
import math
import pickle

import pytest
import torch
from steps import assert_near, assert_same, gradients, parameters, walk
from torch import nn
from torch.nn import functional as F

from holocron_nb import optim

OPTIONS = {
    "AdamP": [
        {"weight_decay": 0.1, "amsgrad": True, "delta": 1.0},
        {"weight_decay": 0.1, "decoupled_weight_decay": True, "delta": 3.0},
    ],
    "LAMB": [{"weight_decay": 0.1, "scale_clip": (0.5, 2.0)}, {"weight_decay": 0.1, "adapt": False}],
    "AdaBelief": [{"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True, "amsgrad": True}],
    "Adan": [{"weight_decay": 0.1}, {"weight_decay": 0.1, "no_prox": True, "amsgrad": True}],
    "LARS": [
        {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1, "scale_clip": (0.5, 2.0)},
        {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
        {"momentum": 0.9, "adapt": False},
    ],
    "AdEMAMix": [{"weight_decay": 0.1, "t_alpha": 4, "t_beta3": 4}, {"weight_decay": 0.1, "decoupled_weight_decay": False}],
    "TAdam": [{"weight_decay": 0.1, "dof": 3.0}, {"weight_decay": 0.1, "decoupled_weight_decay": True, "amsgrad": True}, {"dof": math.inf}],
    "RaLars": [{"weight_decay": 0.1, "scale_clip": (0.1, 2.0)}, {"weight_decay": 0.1, "force_adaptive_momentum": True}],
}
ELEMENTWISE = {"AdaBelief", "Adan", "AdEMAMix"}  # no element of a tensor knows of the others
CLASSES = {name: getattr(optim, name) for name in optim.__all__}
CLASSES = {name: cls for name, cls in CLASSES.items() if issubclass(cls, optim.ForeachOptimizer) and not inspect.isabstract(cls)}
ROWS = [(name, options) for name in CLASSES for options in ({}, *OPTIONS.get(name, []))]


@pytest.fixture(params=ROWS, ids=lambda row: "-".join([row[0], *row[1]]))
def build(request):
    """A constructor; options of a test override those of the row."""
    name, options = request.param

    def constructor(params, **others):
        return CLASSES[name](params, **{**options, **others})

    constructor.elementwise = name in ELEMENTWISE
    return constructor


@pytest.fixture(params=CLASSES)
def cls(request):
    return CLASSES[request.param]


def test_options_are_of_optimizers_that_exist():
    assert {*OPTIONS, *ELEMENTWISE, *GOLDEN} <= CLASSES.keys()


# State


@pytest.mark.parametrize("dtype, state_dtype", [(torch.float32, None), (torch.float64, None), (torch.bfloat16, torch.float32)])
def test_state_dict_resumes_to_the_bit(build, dtype, state_dtype):
    params = parameters(dtype)
    whole = walk(build(params, lr=0.01, state_dtype=state_dtype), params, range(6))

    params = parameters(dtype)
    first = build(params, lr=0.01, state_dtype=state_dtype)
    walk(first, params, range(3))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = build(params, lr=0.5, state_dtype=state_dtype)
    second.load_state_dict(torch.load(file, weights_only=True))
    for p in params:
        assert first.state[p].keys() == second.state[p].keys()
        for name, value in first.state[p].items():
            assert second.state[p][name].dtype == value.dtype
            assert torch.equal(second.state[p][name], value)
    assert_same(walk(second, params, range(3, 6)), whole)


def test_loaded_state_is_a_copy(build):
    params, others = parameters(), parameters()
    optimizer, other = build(params, lr=0.1), build(others, lr=0.1)
    walk(optimizer, params, range(2))
    other.load_state_dict(optimizer.state_dict())
    before = copy.deepcopy(optimizer.state[params[0]])
    walk(other, others, range(2))
    assert all(torch.equal(before[name], value) for name, value in optimizer.state[params[0]].items())


def test_load_state_dict_sees_what_hooks_changed(build):
    params = parameters()
    optimizer = build(params)
    walk(optimizer, params, range(2))

    def doubled(_, state_dict):
        return {**state_dict, "state": {k: {n: 2 * v for n, v in s.items()} for k, s in state_dict["state"].items()}}

    other = build(params)
    other.register_load_state_dict_pre_hook(doubled)
    other.load_state_dict(optimizer.state_dict())
    for name, value in optimizer.state[params[0]].items():
        assert torch.equal(other.state[params[0]][name], 2 * value)
    assert len(other._optimizer_load_state_dict_pre_hooks) == 1


def test_load_state_dict_of_another_size_changes_nothing(build):
    params = parameters()
    optimizer = build(params)
    walk(optimizer, params, range(2))
    with pytest.raises(ValueError, match="group"):
        optimizer.load_state_dict(build(params[:2]).state_dict())
    assert len(optimizer.state) == len(params) and not optimizer._optimizer_load_state_dict_pre_hooks


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_go_on_alike_and_apart(build, duplicate):
    params = parameters()
    optimizer = build(params, lr=0.01)
    walk(optimizer, params, range(3))
    twin = duplicate(optimizer)
    mine = walk(optimizer, params, range(3, 5))
    theirs = twin.param_groups[0]["params"]
    assert not any(torch.equal(a, b) for a, b in zip(theirs, params, strict=True))
    assert_same(walk(twin, theirs, range(3, 5)), mine)


def test_options_that_an_older_pickle_lacks_get_defaults(build):
    params = parameters()
    optimizer = build(params)
    state = optimizer.__getstate__()
    for group in state["param_groups"]:
        del group["capturable"], group["state_dtype"]
    other = build(params)
    other.__setstate__(state)
    walk(other, params, range(1))
    assert other.param_groups[0]["capturable"] is False and other.param_groups[0]["state_dtype"] is None


# Groups and gradients


def test_groups_have_their_own_options(build):
    params, alone = parameters(), parameters()
    optimizer = build([{"params": params[:2], "lr": 0.1}, {"params": params[2:]}], lr=0.01)
    both = [build(alone[:2], lr=0.1), build(alone[2:], lr=0.01)]
    for step in range(3):
        gradients(params, step)
        gradients(alone, step)
        optimizer.step()
        for each in both:
            each.step()
    assert_same(params, alone)


def test_a_late_group_starts_its_own_count(build):
    params = parameters()
    optimizer = build(params[:2])
    walk(optimizer, params[:2], range(3))
    optimizer.add_param_group({"params": params[2:], "lr": 0.1})
    walk(optimizer, params, range(2))
    assert [int(optimizer.state[p]["step"]) for p in params] == [5, 5, 2, 2, 2]


def test_parameters_without_gradient_stay(build):
    params = parameters()
    before = [p.detach().clone() for p in params]
    optimizer = build(params, lr=0.1)
    optimizer.step()
    assert not optimizer.state
    gradients(params, 0)
    params[1].grad = None
    for _ in range(2):  # TAdam's first step is nearly zero by its own equations
        optimizer.step()
    assert torch.equal(params[1], before[1]) and params[1] not in optimizer.state
    assert all(not torch.equal(a, b) for i, (a, b) in enumerate(zip(params, before, strict=True)) if i != 1)


def test_nan_stays_where_it_is(build):
    params, clean = parameters(), parameters()
    optimizer = build([{"params": params[:1]}, {"params": params[1:]}], lr=0.1)
    reference = build([{"params": clean[:1]}, {"params": clean[1:]}], lr=0.1)
    for step in range(2):
        gradients(params, step)
        gradients(clean, step)
        params[0].grad[0] = math.nan
        optimizer.step()
        reference.step()
    assert params[0][0].isnan().all() and (params[0][1:].isfinite().all() or not build.elementwise)
    assert_same(params[1:], clean[1:])


def test_gradients_are_left_as_they_are(build):
    params = parameters()
    optimizer = build(params, lr=0.1, maximize=True)
    gradients(params, 0)
    before = [p.grad.clone() for p in params]
    optimizer.step()
    assert_same([p.grad for p in params], before)


def test_maximize_is_minimize_of_the_negative(build):
    params, negative = parameters(), parameters()
    up, down = build(params, lr=0.1, maximize=True), build(negative, lr=0.1)
    for step in range(4):
        gradients(params, step)
        gradients(negative, step, scale=-1.0)
        up.step()
        down.step()
    assert_same(params, negative)


def test_closure(build):
    params = parameters()
    optimizer = build(params, lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    losses = [optimizer.step(closure) for _ in range(3)]  # TAdam's first step is nearly zero by its own equations
    assert losses[0].requires_grad and losses[2] < losses[0]


def test_no_parameters_in_a_step_of_an_empty_group(build):
    params = parameters()
    optimizer = build([{"params": []}, {"params": params}])
    walk(optimizer, params, range(1))
    assert len(optimizer.state) == len(params)


# Forms of a step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lists_and_single_tensors_agree_to_the_bit(build, dtype):
    paths = []
    for foreach in (None, True, False):
        params = parameters(dtype)
        paths.append(walk(build(params, lr=0.1, foreach=foreach), params, range(4)))
    assert_same(paths[0], paths[1])
    assert_same(paths[0], paths[2])


def test_runs_agree_with_one_list(build, monkeypatch):
    paths = []
    for elements in (None, 1, 36, 10**9):
        monkeypatch.setattr(optim.foreach, "RUN_ELEMENTS", elements)
        params = parameters()
        paths.append(walk(build(params, lr=0.1), params, range(4)))
    for path in paths[1:]:
        assert_same(paths[0], path)


@pytest.mark.parametrize("options", [{"capturable": True}, {"lr": torch.tensor(0.1)}], ids=["capturable", "tensor-lr"])
def test_step_counts_as_tensors(build, options):
    params, counted = parameters(torch.float64), parameters(torch.float64)
    path = walk(build(params, lr=0.1), params, range(5))
    assert_near(walk(build(counted, **{"lr": 0.1, **options}), counted, range(5)), path, rtol=1e-6, atol=1e-7)  # a float32 rate


def test_capturable_parameters_at_different_steps(build):
    params, counted = parameters(torch.float64), parameters(torch.float64)
    for each, capturable in ((params, False), (counted, True)):
        optimizer = build(each, lr=0.1, capturable=capturable)
        for step in range(4):
            gradients(each, step)
            if step < 2:
                each[0].grad = None
            optimizer.step()
    assert_near(params, counted, rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore")
def test_compiled_step(build):
    """One graph, compiled once: neither the step count nor the state's creation makes another one."""
    torch._dynamo.reset()
    params, compiled = parameters(torch.float64), parameters(torch.float64)
    path = walk(build(params, lr=0.1), params, range(5))
    optimizer = build(compiled, lr=0.1)
    step = torch.compile(optimizer.step, backend="aot_eager", fullgraph=True)  # inductor takes a C++ compiler and 10 s
    with torch._dynamo.config.patch(error_on_recompile=True):
        for index in range(5):
            gradients(compiled, index)
            step()
    assert_near(compiled, path, rtol=1e-9, atol=1e-11)
    assert [int(optimizer.state[p]["step"]) for p in compiled] == [5] * len(compiled)


def test_flattened_parameters(build):
    """Parameters as views of one vector, as FSDP keeps them, move as the same parameters apart."""
    params = parameters()
    flat = torch.cat([p.detach().flatten() for p in params])
    views = [nn.Parameter(v.view(p.shape)) for v, p in zip(flat.split([p.numel() for p in params]), params, strict=True)]
    assert_same(walk(build(params, lr=0.1), params, range(3)), walk(build(views, lr=0.1), views, range(3)))
    assert torch.equal(flat, torch.cat([p.detach().flatten() for p in params]))


def test_channels_last_and_strided_parameters(build):
    generator = torch.Generator().manual_seed(3)
    plain = [nn.Parameter(torch.randn(s, generator=generator)) for s in ((4, 3, 5, 5), (6, 8))]
    image, matrix = (p.detach().clone() for p in plain)
    other = [nn.Parameter(image.contiguous(memory_format=torch.channels_last)), nn.Parameter(matrix.t().contiguous().t())]
    paths = [walk(build(params, lr=0.1), params, range(3)) for params in (plain, other)]
    assert_near(*paths, rtol=1e-5, atol=1e-6)  # norms add up in another order
    assert other[0].is_contiguous(memory_format=torch.channels_last)


# Low precision


def test_bfloat16_parameters_with_float32_state(build):
    params, exact = parameters(torch.bfloat16), parameters(torch.bfloat16)
    exact = [nn.Parameter(p.detach().double()) for p in exact]
    optimizer, reference = build(params, lr=0.05, state_dtype=torch.float32), build(exact, lr=0.05)
    for step in range(10):
        gradients(params, step)
        for p, q in zip(params, exact, strict=True):
            q.grad = p.grad.double()
        optimizer.step()
        reference.step()
    # decay that passes through the state sees rounded parameters: compare what does not
    for p, q in zip(params, exact, strict=True):
        torch.testing.assert_close(p.double(), q, rtol=0.05, atol=0.05)
        for name, value in reference.state[q].items():
            assert optimizer.state[p][name].dtype == torch.float32
            torch.testing.assert_close(optimizer.state[p][name].double(), value.double(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("overflow", [False, True])
def test_grad_scaler(build, overflow):
    model = nn.Linear(4, 2)
    twin = copy.deepcopy(model)
    x, y = torch.randn(8, 4), torch.randn(8, 2)
    optimizer, plain = build(model.parameters(), lr=0.1), build(twin.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(F.mse_loss(model(x), y)).backward()
        if overflow:
            model.weight.grad[0, 0] = math.inf
        scaler.step(optimizer)
        scaler.update()
        plain.zero_grad()
        F.mse_loss(twin(x), y).backward()
        plain.step()
    if overflow:
        assert not optimizer.state and scaler.get_scale() == 2.0**7
    else:
        assert_near(model.parameters(), twin.parameters(), rtol=1e-6, atol=1e-7)


def test_schedulers(build):
    params, manual = parameters(), parameters()
    optimizer, by_hand = build(params, lr=0.1), build(manual, lr=0.1)
    cycled = {"lr", "betas", "momentum"}
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=6)
    for step in range(5):
        by_hand.param_groups[0].update({name: value for name, value in optimizer.param_groups[0].items() if name in cycled})
        gradients(params, step)
        gradients(manual, step)
        optimizer.step()
        by_hand.step()
        schedule.step()
    assert_same(params, manual)


# Wrong arguments


@pytest.mark.parametrize(
    "option, value",
    [
        ("lr", -1.0), ("lr", math.nan), ("lr", torch.ones(2)), ("eps", -1e-8), ("eps", math.inf), ("weight_decay", -0.1),
        ("betas", (1.0, 0.9)), ("betas", (0.9, -0.1)), ("betas", (0.9,)),
    ],
)
def test_wrong_options_name_argument_and_value(cls, option, value):
    if option not in inspect.signature(cls).parameters:
        pytest.skip(f"{cls.__name__} has no {option}")
    params = parameters()
    with pytest.raises(ValueError, match=option) as caught:
        cls(params, **{option: value})
    assert "got" in str(caught.value)
    optimizer = cls(params[:1])
    with pytest.raises(ValueError, match=option):
        optimizer.add_param_group({"params": params[1:], option: value})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients_and_complex_parameters_are_refused(build):
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        build(embedding.parameters()).step()
    p = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="complex64"):
        build([p]).step()


# Golden values guard against change, not against error: the notebook's parity checks do that.


# Losses after 1 and after 9 steps, with the options of each row.
GOLDEN = {
    "AdamP": ({"weight_decay": 0.01, "delta": 1.0}, 1.8584099873368347, 0.5193418821387278),
    "LAMB": ({"weight_decay": 0.01}, 1.858409974337728, 0.7054803952666728),
    "LARS": ({"momentum": 0.9, "weight_decay": 0.01}, 1.759675921732514, 0.7388741053865525),
    "AdaBelief": ({"weight_decay": 0.01}, 1.8226535383881282, 0.5151481157599852),
    "Adan": ({"weight_decay": 0.5}, 1.7230894897465387, 0.5052831324047767),
    "RaLars": ({"weight_decay": 0.5}, 1.7673128371786815, 0.6284553360721834),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_losses(name):
    x = torch.sin(torch.arange(64, dtype=torch.float64)).view(16, 4)
    y, w, losses = torch.cos(torch.arange(16, dtype=torch.float64)), nn.Parameter(torch.ones(4, dtype=torch.float64)), []
    options, first, last = GOLDEN[name]
    optimizer = CLASSES[name]([w], **{"lr": 0.1, **options})
    for _ in range(10):
        optimizer.zero_grad()
        loss = F.mse_loss(x @ w, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(first, rel=1e-9) and losses[-1] == pytest.approx(last, rel=1e-9)
