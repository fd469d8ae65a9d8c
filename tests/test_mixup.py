"""Mixup on every kind of batch, in loaders and on every device, beside what its notebook shows."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from holocron_nb.utils.data import Mixup, mixup


def seeded(mix, *batch, seed=0):
    torch.manual_seed(seed)
    return mix(*batch)


def batch(n=8, num_classes=4, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 5, 6, generator=generator).to(device, dtype), (torch.arange(n) % num_classes).to(device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [1, 2, 7])
def test_dtypes_shapes_and_sums(dtype, num_classes):
    x, y = batch(8, max(num_classes, 2), dtype)
    mixed, soft = seeded(Mixup(num_classes, 1.0), x, y)
    assert mixed.dtype == dtype and mixed.shape == x.shape and soft.shape == (8, num_classes)
    assert soft.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = y[:, None].double() if num_classes == 1 else nn.functional.one_hot(y, num_classes).double()
    torch.testing.assert_close(soft.double().sum(0), expected.sum(0), rtol=1e-6, atol=1e-6)
    if num_classes > 1:
        torch.testing.assert_close(soft.double().sum(1), torch.ones(8, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("integer", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_index_types_and_vectors_agree(integer):
    x, y = batch()
    reference = seeded(Mixup(4, 0.5), x, y)
    for targets in (y.to(integer), nn.functional.one_hot(y, 4), nn.functional.one_hot(y, 4).double(), nn.functional.one_hot(y, 4).bool()):
        mixed, soft = seeded(Mixup(4, 0.5), x, targets)
        assert torch.equal(mixed, reference[0]) and torch.equal(soft, reference[1])


def test_soft_labels_are_mixed_as_they_are():
    x, _ = batch()
    labels = torch.rand(8, 4, generator=torch.Generator().manual_seed(2))
    mixed, soft = seeded(Mixup(4, 1.0), labels.clone(), labels)
    assert torch.equal(mixed, soft)


@pytest.mark.parametrize("targets", [torch.tensor([0, 1, 1, 0]), torch.tensor([0.0, 1, 1, 0]), torch.tensor([[0.0], [1], [1], [0]])])
def test_binary_labels(targets):
    x, _ = batch(4)
    soft = seeded(Mixup(1, 1.0), x, targets)[1]
    assert soft.shape == (4, 1) and soft.dtype == torch.float32 and 0 <= soft.min() <= soft.max() <= 1
    assert torch.equal(soft, seeded(Mixup(1, 1.0), x, torch.tensor([0, 1, 1, 0]))[1])


@pytest.mark.parametrize("alpha", [0, 0.0])
def test_alpha_zero_is_the_batch(alpha):
    x, y = batch()
    before = torch.get_rng_state()
    same, hot = Mixup(4, alpha)(x, y)
    assert same is x and torch.equal(hot, nn.functional.one_hot(y, 4).float()) and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("alpha", [1e-12, 1e-6, 1e-3, 0.2, 1.0, 100.0, 1e9])
def test_every_alpha_gives_weights_between_zero_and_one(alpha):
    mix = Mixup(2, alpha)
    soft = torch.stack([seeded(mix, torch.eye(2), torch.arange(2), seed=seed)[1][0] for seed in range(200)])
    assert soft.isfinite().all() and soft.min() >= 0 and soft.max() <= 1
    half = ((soft - 0.5).abs() < 0.01).all(1).double().mean()
    assert half < 0.05 if alpha < 0.1 else half < 0.9  # torch's Beta gives a half nearly always for tiny alpha


def test_the_batch_is_left_alone():
    x, y = batch()
    kept = x.clone(), y.clone()
    seeded(Mixup(4, 1.0), x, y)
    assert torch.equal(x, kept[0]) and torch.equal(y, kept[1])


@pytest.mark.parametrize("n", [0, 1])
def test_small_batches(n):
    x, y = batch(n)
    mixed, soft = Mixup(4, 1.0)(x, y)
    assert torch.equal(mixed, x) and soft.shape == (n, 4)


def test_memory_formats():
    x, y = batch()
    reference = seeded(Mixup(4, 1.0), x, y)[0]
    last = seeded(Mixup(4, 1.0), x.to(memory_format=torch.channels_last), y)[0]
    assert last.is_contiguous(memory_format=torch.channels_last) and torch.equal(last, reference)
    strided = torch.empty(8, 3, 5, 12)[..., ::2].copy_(x)
    assert torch.equal(seeded(Mixup(4, 1.0), strided, y)[0], reference)


def test_meta_and_gpu_batches_stay_there():
    devices = ["meta"] + (["cuda"] if torch.cuda.is_available() else [])
    for device in devices:
        x, y = batch(device=device)
        mixed, soft = seeded(Mixup(4, 1.0), x, y)
        assert mixed.device == x.device and soft.device == x.device and mixed.shape == x.shape and soft.shape == (8, 4)
    if "cuda" in devices:
        x, y = batch()
        here, there = seeded(Mixup(4, 1.0), x, y), seeded(Mixup(4, 1.0), x.cuda(), y.cuda())
        torch.testing.assert_close(there[0].cpu(), here[0])


def test_gradients_flow_to_the_inputs():
    x, y = batch(dtype=torch.float64)
    x.requires_grad_()
    mixed, _ = seeded(Mixup(4, 1.0), x, y)
    mixed.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))  # every example's weights add to one over the batch


def test_mixup_is_exact_at_both_ends():
    x, hot = batch()[0], torch.eye(8)
    partner = torch.arange(8).roll(3)
    assert torch.equal(mixup(x, hot, 1.0, partner)[0], x) and torch.equal(mixup(x, hot, 0.0, partner)[0], x[partner])


@pytest.mark.parametrize("num_classes", [0, -1, 2.0, True, None, "3"])
def test_wrong_num_classes(num_classes):
    with pytest.raises(ValueError, match="num_classes") as caught:
        Mixup(num_classes)
    assert repr(num_classes) in str(caught.value)


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf"), None, "1"])
def test_wrong_alpha(alpha):
    with pytest.raises(ValueError, match="alpha") as caught:
        Mixup(3, alpha)
    assert repr(alpha) in str(caught.value)


@pytest.mark.parametrize(
    "inputs, targets, error, name",
    [
        (torch.zeros(2, 3, dtype=torch.uint8), torch.tensor([0, 1]), TypeError, "inputs"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), TypeError, "targets"),
        (torch.zeros(2, 3), torch.tensor([True, False]), TypeError, "targets"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), ValueError, "targets"),
        (torch.zeros(2, 3), torch.tensor([-1, 1]), ValueError, "targets"),
        (torch.zeros(2, 3), torch.tensor([0, 1, 2]), ValueError, "targets"),
        (torch.zeros(2, 3), torch.zeros(2, 4), ValueError, "targets"),
        (torch.zeros(2, 3), torch.zeros(2, 5, 5, dtype=torch.int64), ValueError, "targets"),
    ],
)
def test_wrong_batches(inputs, targets, error, name):
    with pytest.raises(error, match=f"^{name}: expected"):
        Mixup(3)(inputs, targets)


def test_copies_pickles_and_repr():
    mix = Mixup(4, 0.3)
    assert repr(mix) == "Mixup(num_classes=4, alpha=0.3)" and not mix.state_dict()
    for other in (copy.deepcopy(mix), pickle.loads(pickle.dumps(mix))):
        assert torch.equal(seeded(other, *batch())[0], seeded(mix, *batch())[0])


def test_collate_in_workers():
    data = TensorDataset(torch.eye(8), torch.arange(8))
    runs = []
    for _ in range(2):
        loader = DataLoader(data, 4, num_workers=2, collate_fn=Mixup(8, 1.0).collate, generator=torch.Generator().manual_seed(0))
        runs.append(list(loader))
    for (x, soft), (again, same) in zip(*runs, strict=True):
        assert torch.equal(x, again) and torch.equal(soft, same) and torch.equal(x, soft)
    largest = [soft.amax(1).min().item() for _, soft in runs[0]]
    assert largest[0] != largest[1]


def test_collate_in_a_spawned_worker():
    loader = DataLoader(TensorDataset(torch.eye(4), torch.arange(4)), 4, num_workers=1, multiprocessing_context="spawn", collate_fn=Mixup(4, 1.0).collate)
    x, soft = next(iter(loader))
    assert torch.equal(x, soft) and x.shape == (4, 4)


def test_documented_use_with_a_lambda():
    mix, data = Mixup(num_classes=4, alpha=0.4), TensorDataset(*batch())
    loader = DataLoader(data, 8, collate_fn=lambda b: mix(*torch.utils.data.default_collate(b)))
    torch.manual_seed(3)
    x, soft = next(iter(loader))
    torch.manual_seed(3)
    again, same = next(iter(DataLoader(data, 8, collate_fn=mix.collate)))
    assert x.shape == (8, 3, 5, 6) and torch.equal(x, again) and torch.equal(soft, same)


def test_training_step_with_bfloat16_logits():
    x, y = batch()
    mixed, soft = seeded(Mixup(4, 1.0), x, y)
    layer = nn.Linear(90, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = layer(mixed.flatten(1))
        loss = nn.CrossEntropyLoss()(logits, soft)
    loss.backward()
    assert logits.dtype == torch.bfloat16 and loss.isfinite() and layer.weight.grad.isfinite().all()
