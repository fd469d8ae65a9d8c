"""What every wrapper must do around every optimizer: state, copies, groups, schedulers, scalers, graphs, the trainer, wrong arguments.

A new wrapper enters WRAPPERS, an optimizer to wrap BASES.
"""

import copy
import io
import math
import pickle

import pytest
import torch
from accelerate import Accelerator
from steps import assert_near, assert_same, gradients, parameters, walk
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn import functional as F

from holocron_nb import optim
from holocron_nb.optim.wrapper import Lookahead, Scout
from holocron_nb.trainer import ClassificationTrainer
from holocron_nb.utils.datasets import BatchLoader, Shapes

BASES = {
    "SGD": lambda p, **kw: torch.optim.SGD(p, **{"lr": 0.1, **kw}),
    "momentum": lambda p, **kw: torch.optim.SGD(p, **{"lr": 0.1, "momentum": 0.9, **kw}),
    "AdamW": lambda p, **kw: torch.optim.AdamW(p, **{"lr": 0.1, **kw}),
    "AdamW-single": lambda p, **kw: torch.optim.AdamW(p, **{"lr": 0.1, "foreach": False, **kw}),
    "AdaBelief": lambda p, **kw: optim.AdaBelief(p, **{"lr": 0.1, **kw}),
}
WRAPPERS = {"Lookahead": Lookahead, "Scout": Scout}  # Scout measures only below `highest_rate(period)`: 0.33 for four steps


@pytest.fixture(params=list(BASES))
def base(request):
    return BASES[request.param]


@pytest.fixture(params=list(WRAPPERS))
def wrap(request):
    return WRAPPERS[request.param]


# What it computes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_rate_is_the_base_optimizer_to_the_bit(wrap, base, dtype):
    params, alone = parameters(dtype), parameters(dtype)
    assert_same(walk(wrap(base(params), 1.0, 3), params, range(10)), walk(base(alone), alone, range(10)))


def test_a_period_is_the_base_optimizer_then_the_interpolation(base):
    params, alone = parameters(torch.float64), parameters(torch.float64)
    wrapped, plain = Lookahead(base(params), 0.3, 4), base(alone)
    slow = [p.detach().clone() for p in params]
    for step in range(13):
        gradients(params, step)
        gradients(alone, step)
        wrapped.step()
        plain.step()
        if step % 4 == 3:
            with torch.no_grad():
                slow = [s + 0.3 * (p - s) for s, p in zip(slow, alone, strict=True)]
                for p, s in zip(alone, slow, strict=True):
                    p.copy_(s)
        assert_near(params, alone, rtol=1e-12, atol=1e-14)


def test_runs_agree_with_one_list(wrap, monkeypatch):
    paths = []
    for elements in (None, 1, 36, 10**9):
        monkeypatch.setattr(optim.foreach, "RUN_ELEMENTS", elements)
        params = parameters()
        paths.append(walk(wrap(torch.optim.SGD(params, lr=0.1), 0.3, 4), params, range(9)))
    for path in paths[1:]:
        assert_same(paths[0], path)


def test_groups_have_their_own_rate_and_period(wrap):
    params, alone = parameters(), parameters()
    wrapped = wrap(torch.optim.SGD(params[:2], lr=0.1), 0.2, 4)
    wrapped.add_param_group({"params": params[2:], "lr": 0.2, "sync_rate": 0.1, "sync_period": 5})
    both = [wrap(torch.optim.SGD(alone[:2], lr=0.1), 0.2, 4), wrap(torch.optim.SGD(alone[2:], lr=0.2), 0.1, 5)]
    for step in range(11):
        gradients(params, step)
        gradients(alone, step)
        wrapped.step()
        for each in both:
            each.step()
    assert_same(params, alone)


def test_a_rate_can_be_changed_on_the_way():
    params = parameters()
    optimizer = Lookahead(torch.optim.SGD(params, lr=0.1), 0.5, 2)
    before = walk(optimizer, params, range(2))
    optimizer.param_groups[0]["sync_rate"] = 0.0
    assert_same(walk(optimizer, params, range(2, 4)), before)


def test_parameters_without_gradient_stay_and_late_ones_join(wrap, base):
    params = parameters()
    optimizer = wrap(base(params), 0.5, 2)
    first = params[1].detach().clone()
    for step in range(6):
        gradients(params, step)
        if step < 3:
            params[1].grad = None
        optimizer.step()
        if step < 3:
            assert torch.equal(params[1], first) and "slow" not in optimizer.state.get(params[1], {})
        if step == 3:  # a synchronisation of what has moved once from where it was
            assert torch.equal(optimizer.state[params[1]]["slow"], params[1]) and not torch.equal(params[1], first)
    assert all(p.isfinite().all() for p in params)


def test_frozen_parameters_take_no_memory(wrap):
    params = parameters()
    params[0].requires_grad_(False)
    optimizer = wrap(torch.optim.SGD(params, lr=0.1))

    def closure():
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert params[0] not in optimizer.state and "slow" in optimizer.state[params[1]]


def test_nan_stays_in_its_group(wrap):
    params, clean = parameters(), parameters()
    optimizer, reference = (wrap(torch.optim.SGD([{"params": p[:1]}, {"params": p[1:]}], lr=0.1), 0.1, 4) for p in (params, clean))
    for step in range(9):
        gradients(params, step)
        gradients(clean, step)
        params[0].grad[0] = math.nan
        optimizer.step()
        reference.step()
    assert params[0][0].isnan().all()
    assert_same(params[1:], clean[1:])


def test_closure_is_called_by_the_base_optimizer(wrap):
    params = parameters(torch.float64)
    optimizer = wrap(torch.optim.LBFGS(params, lr=0.5, max_iter=3), 0.5, 2)

    def closure():
        optimizer.zero_grad()
        loss = sum((p - 1).square().sum() for p in params)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(8)]
    assert losses[-1] < 0.01 * losses[0]
    assert all("slow" in optimizer.state[p] for p in params)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_dtypes_in_one_group(wrap, order):
    params = [nn.Parameter(torch.ones(5, dtype=torch.float32)), nn.Parameter(torch.ones(4, dtype=torch.bfloat16))]
    optimizer = wrap(torch.optim.SGD([params[i] for i in order], lr=0.5), 0.25, 1, slow_dtype=torch.float32)
    walk(optimizer, params, range(1))
    for p in params:
        torch.testing.assert_close(p.detach().float(), (1 - 0.25 * 0.5 * p.grad.float()), rtol=1e-2, atol=0)
        assert optimizer.state[p]["slow"].dtype == torch.float32


def test_a_parameter_that_the_closure_does_not_reach(wrap):
    params = parameters()
    optimizer = wrap(torch.optim.AdamW(params, lr=0.1), 0.5, 2)
    for step in range(5):

        def closure(step=step):
            optimizer.zero_grad()
            loss = sum(p.square().sum() for p in params[step < 3 :])
            loss.backward()
            return loss

        optimizer.step(closure)
        assert ("slow" in optimizer.state.get(params[0], {})) is (step >= 3)


# State


@pytest.mark.parametrize("stop", [1, 4, 6, 9])
@pytest.mark.parametrize("dtype, slow_dtype", [(torch.float32, None), (torch.float64, None), (torch.bfloat16, torch.float32)])
def test_state_dict_resumes_to_the_bit(wrap, base, dtype, slow_dtype, stop):
    params = parameters(dtype)
    whole = walk(wrap(base(params), 0.1, 4, slow_dtype=slow_dtype), params, range(12))

    params = parameters(dtype)
    first = wrap(base(params), 0.1, 4, slow_dtype=slow_dtype)
    walk(first, params, range(stop))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = wrap(base(params, lr=0.7), 0.9, 5)
    second.load_state_dict(torch.load(file, weights_only=True))
    for p in params:
        assert second.state[p]["slow"].dtype == first.state[p]["slow"].dtype
        assert second.state[p]["slow"].data_ptr() != first.state[p]["slow"].data_ptr()
    assert_same(walk(second, params, range(stop, 12)), whole)


def test_loaded_state_is_a_copy_and_what_was_loaded_stays(wrap):
    params, others = parameters(), parameters()
    optimizer, other = (wrap(torch.optim.SGD(p, lr=0.1), 0.1, 4) for p in (params, others))
    walk(optimizer, params, range(5))
    other.register_load_state_dict_pre_hook(lambda o, d: d.update(note=1))
    saved = optimizer.state_dict()
    other.load_state_dict(saved)
    assert "note" not in saved
    before = copy.deepcopy(saved)
    walk(other, others, range(4))
    assert all(torch.equal(before["state"][i]["slow"], saved["state"][i]["slow"]) for i in before["state"])
    assert before["param_groups"][0]["sync_step"] == optimizer.param_groups[0]["sync_step"] == 1


def test_a_state_dict_of_the_bare_optimizer_loads_and_the_other_way_round(wrap, base):
    params, others = parameters(), parameters()
    bare = base(params)
    walk(bare, params, range(3))
    wrapped = wrap(base(others), 0.5, 2)
    for p, q in zip(others, params, strict=True):
        p.data.copy_(q)
    wrapped.load_state_dict(bare.state_dict())
    assert wrapped.param_groups[0]["sync_period"] == 2 and wrapped.param_groups[0]["sync_step"] == 0
    start = [p.detach().clone() for p in others]
    walk(wrapped, others, range(3, 4))
    assert_same([wrapped.state[p]["slow"] for p in others], start)
    bare.load_state_dict(wrapped.state_dict())
    walk(bare, params, range(4, 6))


def test_load_state_dict_of_another_size_changes_nothing(wrap):
    params = parameters()
    optimizer = wrap(torch.optim.AdamW(params), 0.5, 3)
    walk(optimizer, params, range(2))
    with pytest.raises(ValueError, match="group"):
        optimizer.load_state_dict(wrap(torch.optim.AdamW(parameters()[:2])).state_dict())
    assert optimizer.param_groups[0]["sync_step"] == 2 and all("slow" in optimizer.state[p] for p in params)


def test_state_dict_hooks(wrap):
    params = parameters()
    optimizer = wrap(torch.optim.SGD(params, lr=0.1), 0.5, 4)
    walk(optimizer, params, range(2))
    seen = []
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("save"))
    optimizer.register_state_dict_post_hook(lambda o, d: {**d, "note": 1})
    optimizer.register_load_state_dict_pre_hook(lambda o, d: {k: v for k, v in d.items() if k != "note"})
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(o.param_groups[0]["sync_step"]))
    saved = optimizer.state_dict()
    assert saved["note"] == 1
    optimizer.load_state_dict(saved)
    assert seen == ["save", 2] and saved["note"] == 1


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_go_on_alike_and_apart(wrap, base, duplicate):
    params = parameters()
    optimizer = wrap(base(params), 0.1, 4)
    walk(optimizer, params, range(6))
    twin = duplicate(optimizer)
    mine = walk(optimizer, params, range(6, 12))
    theirs = twin.param_groups[0]["params"]
    assert type(twin) is type(optimizer) and not any(torch.equal(a, b) for a, b in zip(theirs, params, strict=True))
    assert_same(walk(twin, theirs, range(6, 12)), mine)


def test_wrapping_again_starts_again():
    params = parameters()
    bare = torch.optim.SGD(params, lr=0.1)
    walk(Lookahead(bare, 0.5, 6), params, range(3))
    again = Lookahead(bare, 0.25, 2)
    assert all("slow" not in state for state in bare.state.values())
    group = again.param_groups[0]
    assert (group["sync_rate"], group["sync_period"], group["sync_step"]) == (0.25, 2, 0)


# Evaluation


def test_slow_weights_are_lent_and_given_back(wrap, base):
    params = parameters()
    optimizer = wrap(base(params), 0.5, 3)
    with optimizer.slow_weights():  # before the first step there is nothing to lend
        assert_same(params, parameters())
    fast = walk(optimizer, params, range(5))
    addresses = [p.data_ptr() for p in params]
    with pytest.raises(KeyError), optimizer.slow_weights():
        assert_same(params, [optimizer.state[p]["slow"] for p in params])
        raise KeyError
    assert_same(params, fast)
    assert [p.data_ptr() for p in params] == addresses
    twin = copy.deepcopy(optimizer)
    with optimizer.slow_weights():
        pass
    assert_same(walk(optimizer, params, range(5, 9)), walk(twin, twin.param_groups[0]["params"], range(5, 9)))


def test_sync_params(wrap):
    params = parameters()
    optimizer = wrap(torch.optim.SGD(params, lr=0.1), 0.5, 6)
    start, fast = parameters(), walk(optimizer, params, range(2))
    optimizer.sync_params(0.25)
    assert_near(params, [s + 0.25 * (f - s) for s, f in zip(start, fast, strict=True)], rtol=1e-6, atol=1e-7)
    assert_same(params, [optimizer.state[p]["slow"] for p in params])
    slow = walk(optimizer, params, [])
    walk(optimizer, params, range(2, 4))
    optimizer.sync_params()
    assert_same(params, slow)
    assert optimizer.param_groups[0]["sync_step"] == 4
    with pytest.raises(ValueError, match="sync_rate.*-0.1"):
        optimizer.sync_params(-0.1)


# As torch users expect


def test_schedulers_turn_the_rates_inside(wrap):
    params, alone = parameters(), parameters()
    wrapped, plain = wrap(torch.optim.AdamW(params), 1.0, 3), torch.optim.AdamW(alone)
    schedules = [torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=8) for o in (wrapped, plain)]
    for step in range(7):
        for each, optimizer, schedule in ((params, wrapped, schedules[0]), (alone, plain, schedules[1])):
            gradients(each, step)
            optimizer.step()
            schedule.step()
    assert wrapped.base_optimizer.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
    assert wrapped.base_optimizer.param_groups[0]["betas"] == plain.param_groups[0]["betas"]
    assert_same(params, alone)


@pytest.mark.parametrize("overflow", [False, True])
def test_grad_scaler(wrap, overflow):
    model = nn.Linear(4, 2)
    twin = copy.deepcopy(model)
    x, y = torch.randn(8, 4), torch.randn(8, 2)
    optimizer, plain = (wrap(torch.optim.AdamW(m.parameters(), lr=0.1), 0.5, 2) for m in (model, twin))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(5):
        optimizer.zero_grad()
        scaler.scale(F.mse_loss(model(x), y)).backward()
        if overflow:
            model.weight.grad[0, 0] = math.inf
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        plain.zero_grad()
        F.mse_loss(twin(x), y).backward()
        plain.step()
    if overflow:
        assert not optimizer.state and optimizer.param_groups[0]["sync_step"] == 0 and scaler.get_scale() == 2.0**5
    else:
        assert_near(model.parameters(), twin.parameters(), rtol=1e-5, atol=1e-6)


def test_step_hooks_of_both(wrap):
    params, seen = parameters(), []
    optimizer = wrap(torch.optim.SGD(params, lr=0.1))
    for each in (optimizer, optimizer.base_optimizer):
        each.register_step_pre_hook(lambda o, args, kwargs: seen.append(("pre", type(o).__name__)))
        each.register_step_post_hook(lambda o, args, kwargs: seen.append(("post", type(o).__name__)))
    walk(optimizer, params, range(1))
    name = type(optimizer).__name__
    assert seen == [("pre", name), ("pre", "SGD"), ("post", "SGD"), ("post", name)]


def test_zero_grad(wrap):
    params = parameters()
    optimizer = wrap(torch.optim.SGD(params, lr=0.1))
    gradients(params, 0)
    optimizer.zero_grad(set_to_none=False)
    assert all((p.grad == 0).all() for p in params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


@pytest.mark.filterwarnings("ignore")
def test_compiled_step(wrap):
    """The base optimizer's graph is compiled at most twice: the count and the slow weights make no more of them."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    params, compiled = parameters(torch.float64), parameters(torch.float64)
    path = walk(wrap(torch.optim.AdamW(params), 0.2, 4), params, range(10))
    optimizer = wrap(torch.optim.AdamW(compiled), 0.2, 4)
    step = torch.compile(optimizer.step, backend="aot_eager")
    for index in range(10):
        gradients(compiled, index)
        step()
    assert_near(compiled, path, rtol=1e-5, atol=1e-6)  # compiled, torch's AdamW corrects the biases in float32
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_flattened_parameters(wrap, base):
    """Parameters as views of one vector, as FSDP keeps them, move as the same parameters apart."""
    params = parameters()
    flat = torch.cat([p.detach().flatten() for p in params])
    views = [nn.Parameter(v.view(p.shape)) for v, p in zip(flat.split([p.numel() for p in params]), params, strict=True)]
    assert_same(walk(wrap(base(params), 0.2, 4), params, range(9)), walk(wrap(base(views), 0.2, 4), views, range(9)))
    assert torch.equal(flat, torch.cat([p.detach().flatten() for p in params]))


def test_channels_last_keeps_its_format(wrap):
    p = nn.Parameter(torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last))
    optimizer = wrap(torch.optim.SGD([p], lr=0.1), 0.5, 2)
    walk(optimizer, [p], range(3))
    assert p.is_contiguous(memory_format=torch.channels_last)
    assert optimizer.state[p]["slow"].is_contiguous(memory_format=torch.channels_last)


def test_bfloat16_with_float32_slow_weights():
    """Slow weights in float32 keep the small differences that halves of bfloat16 lose."""
    errors = {}
    for slow_dtype in (None, torch.float32):
        params = [nn.Parameter(torch.full((64,), 1.0, dtype=torch.bfloat16))]
        optimizer = Lookahead(torch.optim.SGD(params, lr=2.0**-7), 0.1, 1, slow_dtype=slow_dtype)
        for _ in range(40):
            params[0].grad = torch.ones_like(params[0])
            optimizer.step()
        slow = optimizer.state[params[0]]["slow"]
        assert slow.dtype == (slow_dtype or torch.bfloat16)
        errors[slow_dtype] = (slow.float() - (1 - 40 * 0.1 * 2.0**-7)).abs().max().item()
    assert errors[torch.float32] < 0.1 * errors[None]


@pytest.mark.parametrize("period", [1, 4])
def test_capturable_is_the_same_walk(period):
    walks = []
    for capturable in (False, True):
        params = parameters(torch.float64)
        optimizer = Lookahead(torch.optim.SGD(params, lr=0.1, momentum=0.9), 0.3, period)
        optimizer.param_groups[0]["capturable"] = capturable
        walks.append(walk(optimizer, params, range(6)))
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        other = Lookahead(torch.optim.SGD(params, lr=0.1, momentum=0.9))
        other.load_state_dict(torch.load(file, weights_only=True))
        assert isinstance(other.param_groups[0]["sync_step"], torch.Tensor) is capturable
        walks.append(walk(other, params, range(6, 12)))
    assert_near(walks[0], walks[2], rtol=1e-12, atol=1e-14)
    assert_near(walks[1], walks[3], rtol=1e-12, atol=1e-14)


# Checkpoints of others


def linear(wrap):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    return model, wrap(torch.optim.AdamW(model.parameters(), lr=0.1), 0.1, 4)


def test_distributed_checkpoint(wrap):
    """torch's state dicts by parameter name, which FSDP saves, resume to the bit."""
    model, optimizer = linear(wrap)
    walk(optimizer, list(model.parameters()), range(6))
    twin, state = copy.deepcopy(model), copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    assert "slow" in state["state"]["weight"]
    other = wrap(torch.optim.AdamW(twin.parameters(), lr=0.7))
    set_optimizer_state_dict(twin, other, state)
    assert_same(*(walk(o, list(m.parameters()), range(6, 11)) for o, m in ((optimizer, model), (other, twin))))


def test_accelerate_saves_and_loads(wrap, tmp_path):
    model, optimizer = linear(wrap)
    accelerator = Accelerator(cpu=True)
    model, prepared = accelerator.prepare(model, optimizer)
    walk(prepared, list(model.parameters()), range(6))
    accelerator.save_state(str(tmp_path))
    end = walk(prepared, list(model.parameters()), range(6, 11))
    accelerator.load_state(str(tmp_path))
    assert optimizer.param_groups[0]["sync_step"] == 2
    assert_same(walk(prepared, list(model.parameters()), range(6, 11)), end)


# The toolkit's trainer, on Accelerate


def trainer_of(optimizer_of, tmp_path, steps=8):
    torch.manual_seed(0)
    data = Shapes(16 * steps, size=16, num_classes=4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 4))
    batches = BatchLoader(data, 16, shuffle=True, mean=(0.5,) * 3, std=(0.25,) * 3, seed=0)
    held_out = BatchLoader(data, 16, mean=(0.5,) * 3, std=(0.25,) * 3)
    optimizer = optimizer_of(model.parameters())
    return ClassificationTrainer(model, batches, held_out, nn.CrossEntropyLoss(), optimizer, output_file=str(tmp_path / "c.pth"))


def test_trainer_trains_and_starts_each_training_afresh(wrap, tmp_path):
    weights = []
    for _ in range(2):
        trainer = trainer_of(lambda p: wrap(torch.optim.AdamW(p), 0.1, 5), tmp_path)
        trainer.fit_n_epochs(2, 1e-3)
        weights.append(trainer.model[1].weight.detach().clone())
        assert trainer.optimizer.param_groups[0]["sync_step"] == 16 % 5
    assert torch.equal(*weights)
    assert trainer.history[-1]["train_loss"] < trainer.history[0]["train_loss"]


def test_rate_finder_leaves_no_trace(wrap, tmp_path):
    weights = []
    for search in (False, True):
        trainer = trainer_of(lambda p: wrap(torch.optim.AdamW(p), 0.1, 5), tmp_path)
        walk_some(trainer, range(4))
        if search:
            trainer.find_lr(num_it=5)
        assert trainer.optimizer.param_groups[0]["sync_step"] == 4
        walk_some(trainer, range(4, 9))
        weights.append(trainer.model[1].weight.detach().clone())
    assert torch.equal(*weights)


def walk_some(trainer, steps):
    walk(trainer.optimizer, list(trainer.model.parameters()), steps)


# Scout


def scouts(params, **kw):
    return Scout(torch.optim.SGD(params, lr=0.1), 0.0, 6, **kw)


def test_scout_measures_what_the_rule_says():
    params = parameters(torch.float64, shapes=[(40, 50), (7,), (30,)])
    optimizer = scouts(params, samples=None)
    weights = [walk(optimizer, params, [])]
    for step in range(6):
        weights.append([w - 0.1 * g for w, g in zip(weights[-1], gradients_of(params, step), strict=True)])
    walk(optimizer, params, range(6))
    shares = []
    for tensor in zip(*weights, strict=True):
        updates = torch.stack(tensor).diff(dim=0)
        shares.append((updates.std(dim=0) / (updates - updates.mean(dim=0)).abs().amax(dim=0)).mean())
    rate = 1 - torch.stack(shares).mean()
    torch.testing.assert_close(optimizer.param_groups[0]["last_rate"], rate, rtol=1e-10, atol=0)
    assert_near(params, [a + rate * (b - a) for a, b in zip(weights[0], weights[-1], strict=True)], rtol=1e-10, atol=1e-12)


def gradients_of(params, step):
    gradients(params, step)
    return [p.grad for p in params]


def test_scout_on_a_sample_is_near_the_whole():
    shapes = [(100, 30), (70, 20), (513,)] * 20
    params = parameters(shapes=shapes)
    sampled, whole = scouts(params), scouts(parameters(shapes=shapes), samples=None)
    for optimizer in (sampled, whole):
        walk(optimizer, optimizer.param_groups[0]["params"], range(6))
    rates = [float(o.param_groups[0]["last_rate"]) for o in (sampled, whole)]
    assert rates[0] != rates[1] and abs(rates[0] - rates[1]) < 0.01


def test_scout_keeps_a_small_record_of_many_tensors():
    params = parameters(shapes=[(1000,)] * 600)
    optimizer = scouts(params)
    walk(optimizer, params, range(5))
    rows = optimizer.param_groups[0]["rows"]
    assert len(rows) == 7 and 0.5 * 256 * 64 < rows[0].numel() <= 256 * 64
    assert rows[:6].isfinite().all() and rows[6].isnan().all()
    whole = scouts(params, samples=None)
    walk(whole, params, range(1))
    assert whole.param_groups[0]["rows"].shape == (7, 600 * 1000)


@pytest.mark.parametrize("rate, period", [(0.52, 6), (0.0, 2), (0.3, 1)])
def test_scout_measures_nothing_where_the_floor_decides(rate, period):
    params, others = parameters(), parameters()
    optimizer = Scout(torch.optim.SGD(params, lr=0.1), rate, period)
    for step in range(7):
        walk(optimizer, params, [step])
        assert optimizer.param_groups[0]["rows"] is None
    assert_same(params, walk(Lookahead(torch.optim.SGD(others, lr=0.1), rate, period), others, range(7)))


def test_scout_takes_the_floor_where_a_parameter_joins_within_the_round():
    params = parameters()
    optimizer = Scout(torch.optim.SGD(params, lr=0.1), 0.125, 6)
    for step in range(12):
        gradients(params, step)
        params[0].grad = None if step < 3 else params[0].grad
        optimizer.step()
        if step == 5:
            assert optimizer.param_groups[0]["last_rate"] == 0.125
    assert float(optimizer.param_groups[0]["last_rate"]) > 0.125


def test_scout_does_not_measure_rows_of_another_round():
    params = parameters()
    optimizer = Scout(torch.optim.SGD(params, lr=0.1), 0.125, 6)
    group = optimizer.param_groups[0]
    walk(optimizer, params, range(6))
    for rate, steps in ((0.125, range(6, 9)), (0.9, range(9, 14)), (0.125, range(14, 18))):
        group["sync_rate"] = rate
        walk(optimizer, params, steps)
    assert float(group["last_rate"]) == 0.125
    walk(optimizer, params, range(18, 24))
    assert float(group["last_rate"]) > 0.125


def test_scout_takes_the_floor_where_nothing_deviates_or_all_is_nan():
    for gradient in (0.0, math.nan):
        params = parameters()
        optimizer = Scout(torch.optim.SGD(params, lr=0.1), 0.25, 6)
        for _ in range(6):
            for p in params:
                p.grad = torch.full_like(p, gradient)
            optimizer.step()
        assert float(optimizer.param_groups[0]["last_rate"]) == 0.25
        assert all(p.isfinite().all() for p in params) is (gradient == 0.0)


def test_scout_with_bfloat16_and_float32_slow_weights():
    params = parameters(torch.bfloat16)
    optimizer = scouts(params, slow_dtype=torch.float32)
    walk(optimizer, params, range(12))
    assert 0.1 < float(optimizer.param_groups[0]["last_rate"]) < 0.52


def test_scout_refuses_capturable_groups():
    params = parameters()
    with pytest.raises(ValueError, match="capturable"):
        Scout(optim.AdaBelief(params, capturable=True))
    optimizer = Scout(optim.AdaBelief(params[:1]))
    with pytest.raises(ValueError, match="capturable"):
        optimizer.add_param_group({"params": params[1:], "capturable": True})


@pytest.mark.parametrize("samples", [0, -1, 2.5, True])
def test_scout_refuses_wrong_samples(samples):
    with pytest.raises(ValueError, match="samples"):
        Scout(torch.optim.SGD(parameters(), lr=0.1), samples=samples)


# Wrong arguments


@pytest.mark.parametrize(
    "option, value",
    [("sync_rate", -0.1), ("sync_rate", 1.1), ("sync_rate", math.nan), ("sync_period", 0), ("sync_period", 2.0), ("sync_period", True)],
)
def test_wrong_options_name_argument_and_value(wrap, option, value):
    params = parameters()
    bare = torch.optim.SGD(params[:1], lr=0.1)
    with pytest.raises(ValueError, match=option) as caught:
        wrap(bare, **{option: value})
    assert repr(value) in str(caught.value) and "sync_rate" not in bare.param_groups[0]
    optimizer = wrap(bare)
    with pytest.raises(ValueError, match=option):
        optimizer.add_param_group({"params": params[1:], option: value})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("wrong", [None, nn.Linear(2, 2), [nn.Parameter(torch.ones(2))]])
def test_what_is_no_optimizer_is_refused(wrap, wrong):
    with pytest.raises(ValueError, match="base_optimizer"):
        wrap(wrong)


def test_a_wrapper_of_a_wrapper_is_refused(wrap):
    with pytest.raises(ValueError, match="base_optimizer.*Lookahead"):
        wrap(Lookahead(torch.optim.SGD(parameters(), lr=0.1)))


def test_repr_names_both(wrap):
    text = repr(wrap(torch.optim.SGD(parameters(), lr=0.1)))
    assert text.startswith(f"{wrap.__name__} of SGD") and "sync_rate: 0.5" in text and "sync_period: 6" in text
