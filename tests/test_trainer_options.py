"""What a trainer does only when asked: metrics, trackers, transforms of batches, compilation, another order of memory."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex
from torchmetrics.detection import MeanAveragePrecision
from torchvision.transforms import v2

from holocron_nb.trainer import BinaryClassificationTrainer, ClassificationTrainer, DetectionTrainer, SegmentationTrainer, Tracking
from holocron_nb.widgets import LRFinder


def make(tmp_path, **kwargs):
    torch.manual_seed(0)
    x = torch.randn(64, 3, 8, 8)
    data = TensorDataset(x, (x.mean((1, 2, 3)) > 0).long())
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    loaders, criterion = (DataLoader(data, 16), DataLoader(data, 24)), kwargs.pop("criterion", nn.CrossEntropyLoss())
    return ClassificationTrainer(model, *loaders, criterion, optimizer, output_file=str(tmp_path / "best.pth"), **kwargs)


def test_metrics_are_recorded_beside_the_documented_ones(tmp_path):
    metrics = {"accuracy": MulticlassAccuracy(4, average="micro"), "confusion": MulticlassConfusionMatrix(4)}
    trainer = make(tmp_path, metrics=metrics)
    trainer.fit_n_epochs(2, lr=0.01)
    last = trainer.history[-1]
    assert set(last) == {"epoch", "train_loss", "val_loss", "acc1", "acc5", "accuracy"}
    assert abs(last["accuracy"] - last["acc1"]) < 1e-6
    assert trainer.metric_values["confusion"].sum() == 64, "each sample once, in the last evaluation only"


def test_iou_of_each_class_of_a_segmenter(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(8, 3, 8, 8)
    loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 1).long()), 4)
    model = nn.Conv2d(3, 3, 1)
    trainer = SegmentationTrainer(
        model, loader, loader, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters()), output_file=str(tmp_path / "best.pth"),
        num_classes=3, metrics={"iou": MulticlassJaccardIndex(3, average=None)},
    )  # fmt: skip
    scores = trainer.evaluate()
    assert abs(trainer.metric_values["iou"].mean().item() - scores["mean_iou"]) < 1e-5 and "iou" not in scores


class Truth(nn.Module):
    """Finds the first box of each image, exactly."""

    def __init__(self, targets):
        super().__init__()
        self.targets, self.scale = targets, nn.Parameter(torch.ones(()))

    def forward(self, x, targets=None):
        if self.training:
            return {"loss": self.scale.square()}
        found = [self.targets[int(image[0, 0, 0])] for image in x]
        return [{"boxes": t["boxes"][:1], "labels": t["labels"][:1], "scores": torch.ones(1)} for t in found]


def test_mean_average_precision_of_a_detector(tmp_path):
    pytest.importorskip("pycocotools")
    boxes = torch.tensor([[0.0, 0, 40, 40], [50, 50, 90, 90]])
    targets = [{"boxes": boxes + i, "labels": torch.tensor([0, 0])} for i in range(4)]
    data = [(torch.full((3, 8, 8), float(i)), target) for i, target in enumerate(targets)]
    loader = DataLoader(data, 2, collate_fn=lambda batch: (torch.stack([x for x, _ in batch]), [t for _, t in batch]))
    model, metric = Truth(targets), MeanAveragePrecision()
    optimizer, file = torch.optim.SGD(model.parameters()), str(tmp_path / "best.pth")
    scores = DetectionTrainer(model, loader, loader, None, optimizer, output_file=file, metrics={"coco": metric}).evaluate()
    assert abs(scores["loc_err"] - (1 - 2 * 4 / 12)) < 1e-9 and scores["clf_err"] == 0 and scores["val_loss"] == 1
    assert 0.5 <= scores["coco_map"] < 0.52, "half of the boxes are found, all of them exactly: half the recall levels"


def test_mixup_and_cutmix_change_training_batches_only(tmp_path):
    for mix in (v2.MixUp(num_classes=4), v2.CutMix(num_classes=4)):
        shapes = []
        trainer = make(tmp_path, batch_transform=mix)
        trainer.criterion = lambda output, target, shapes=shapes: shapes.append(target.shape) or nn.functional.cross_entropy(output, target)
        trainer.fit_n_epochs(1, lr=0.01)
        assert shapes == [(16, 4)] * 4 + [(24,), (24,), (16,)]


@pytest.mark.parametrize("option", [{"compile": {"backend": "eager"}}, {"channels_last": True}])
def test_compiled_and_channels_last_train_as_the_plain_model(tmp_path, option):
    plain, other = make(tmp_path), make(tmp_path, **option)
    for trainer in (plain, other):
        trainer.fit_n_epochs(1, lr=0.01)
    for ours, theirs in zip(plain.model.state_dict().items(), other.model.state_dict().items(), strict=True):
        assert ours[0] == theirs[0], "the state dict keeps its names"
        torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-5)
    if "channels_last" in option:
        assert other.model[0].weight.is_contiguous(memory_format=torch.channels_last)
        x, _ = other.to_cuda(torch.zeros(2, 3, 8, 8), torch.zeros(2))
        assert x.is_contiguous(memory_format=torch.channels_last)
    else:
        assert other._model is not other.model


def test_label_smoothing_is_the_criterion_s_with_and_without_mixup(tmp_path):
    smooth = nn.CrossEntropyLoss(label_smoothing=0.2)
    for mix in (None, v2.MixUp(num_classes=4)):
        trainer = make(tmp_path, criterion=smooth, batch_transform=mix)
        trainer.fit_n_epochs(1, lr=0.01)
        x, target = trainer.val_loader.dataset.tensors
        with torch.no_grad():
            log_p = trainer.model(x).log_softmax(1)
        truth = 0.8 * nn.functional.one_hot(target, 4) + 0.05  # Szegedy et al. 2016, Section 7
        losses = -(truth * log_p).sum(1)
        assert abs(trainer.evaluate()["val_loss"] - losses.mean().item()) < 1e-5
        assert trainer.top_losses(1)[0].loss == pytest.approx(losses.max().item(), abs=1e-5)


def test_a_tensorboard_tracker_logs_two_trainings_in_one_file(tmp_path):
    from accelerate.tracking import TensorBoardTracker
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make(tmp_path, callbacks=[Tracking(TensorBoardTracker("run", str(tmp_path)))])
    for _ in range(2):
        trainer.fit_n_epochs(2, lr=0.01)
    assert len(list((tmp_path / "run").glob("events.*"))) == 1
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert set(events.Tags()["scalars"]) == {"lr", "train_loss", "val_loss", "acc1", "acc5"}
    for name in ("train_loss", "val_loss", "acc1"):
        assert [event.value for event in events.Scalars(name)] == pytest.approx([epoch[name] for epoch in trainer.history], rel=1e-6)
    assert [event.step for event in events.Scalars("lr")] == [4, 8, 12, 16]


class OneBox(nn.Module):
    """Learns where the one box of each image is."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))

    def forward(self, x, targets=None):
        boxes = self.net(torch.stack(list(x)))
        if self.training:
            return {"loss": nn.functional.mse_loss(boxes, torch.cat([t["boxes"] for t in targets]))}
        return [{"boxes": box[None], "labels": torch.zeros(1, dtype=torch.int64), "scores": torch.ones(1)} for box in boxes]


def trainer_of(task, tmp_path):
    """A small trainer of a task, with 40 batches of 4."""
    torch.manual_seed(0)
    x = torch.randn(160, 3, 8, 8)
    yes = (x.mean((1, 2, 3)) > 0).long()
    boxes = [{"boxes": torch.tensor([[0.0, 0, 4, 4]]) + i % 2, "labels": torch.tensor([0])} for i in range(160)]
    kinds = {
        "classification": (ClassificationTrainer, nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), yes, nn.CrossEntropyLoss()),
        "binary": (BinaryClassificationTrainer, nn.Sequential(nn.Flatten(), nn.Linear(192, 1)), yes.float(), nn.BCEWithLogitsLoss()),
        "segmentation": (SegmentationTrainer, nn.Conv2d(3, 3, 1), (x[:, 0] > 0).long() + (x[:, 1] > 1).long(), nn.CrossEntropyLoss()),
        "detection": (DetectionTrainer, OneBox(), boxes, None),
    }  # fmt: skip
    kind, model, targets, criterion = kinds[task]
    loader = DataLoader(
        list(zip(x, targets, strict=True)), 4,
        collate_fn=(lambda batch: (torch.stack([x for x, _ in batch]), [t for _, t in batch])) if task == "detection" else None,
    )  # fmt: skip
    classes = {"num_classes": 3} if task == "segmentation" else {}
    optimizer, file = torch.optim.SGD(model.parameters(), momentum=0.9), str(tmp_path / "best.pth")
    return kind(model, loader, loader, criterion, optimizer, output_file=file, **classes)


@pytest.mark.parametrize("task", ["classification", "binary", "segmentation", "detection"])
def test_the_finder_searches_with_every_trainer_leaves_no_trace_and_trains_with_the_choice(tmp_path, task):
    trainer = trainer_of(task, tmp_path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    finder = LRFinder(trainer, start_lr=1e-5, end_lr=10)
    assert set(finder.run()) == {"steepest", "valley", "minimum/10", "slide"} and len(finder.curve["lrs"]) == 40
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    untrained = trainer.evaluate()["val_loss"]
    finder.train(2)
    assert finder.status == "trained" and trainer.history[-1]["val_loss"] < untrained
    assert [epoch["val_loss"] for epoch in finder.training["epochs"]] == [epoch["val_loss"] for epoch in trainer.history]
