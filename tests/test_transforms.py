"""Resizing and zooming out: every type of input, whole samples, determinism, arguments."""

import copy
import pickle

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from holocron_nb.transforms import RandomZoomOut, Resize, ResizeMethod
from holocron_nb.transforms.resize import letterbox

CANVASES = [(64, 64), (33, 140), (97, 61), (5, 7)]
SIZES = [(60, 100), (100, 60), (1, 50), (37, 1), (64, 64)]
TRANSFORMS = {
    "squish": Resize,
    "pad": lambda canvas: Resize(canvas, mode=ResizeMethod.PAD),
    "edge": lambda canvas: Resize(canvas, ResizeMethod.PAD, "edge"),
    "zoom": lambda canvas: RandomZoomOut(canvas, scale=(0.2, 0.8)),
}


@pytest.fixture(params=TRANSFORMS)
def build(request):
    return TRANSFORMS[request.param]


def picture(size, seed=0):
    """A tensor of bytes with a smooth picture, which resizing codes agree on."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 4, generator=generator)
    return (torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0] * 255).byte()


def seeded(transform, *inputs, seed=3):
    torch.manual_seed(seed)
    return transform(*inputs)


# Sizes and types


@pytest.mark.parametrize("canvas", CANVASES)
@pytest.mark.parametrize("size", SIZES)
def test_pil_and_tensor_agree(build, size, canvas):
    transform, x = build(canvas), picture(size)
    outputs = [seeded(transform, v) for v in (x, tv_tensors.Image(x), v2.functional.to_pil_image(x))]
    assert outputs[0].shape == (3, *canvas) and outputs[2].size == canvas[::-1]
    assert type(outputs[0]) is torch.Tensor and isinstance(outputs[1], tv_tensors.Image) and isinstance(outputs[2], Image.Image)
    assert torch.equal(outputs[0], outputs[1])
    assert (outputs[0].int() - v2.functional.pil_to_tensor(outputs[2]).int()).abs().max() <= 2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_stay(build, dtype):
    x = picture((30, 50)).to(dtype)
    y = seeded(build((24, 24)), x)
    assert y.dtype == dtype and y.shape == (3, 24, 24)
    reference = seeded(build((24, 24)), x.double())
    assert (y.double() - reference).abs().max() <= {torch.bfloat16: 2, torch.uint8: 1, torch.int32: 1, torch.float16: 0.3}.get(dtype, 1e-3)


def test_batches_and_videos(build):
    x = torch.stack([picture((30, 50), seed) for seed in range(4)])
    each = torch.stack([seeded(build((24, 20)), image) for image in x])
    assert torch.equal(seeded(build((24, 20)), x), each)
    video = seeded(build((24, 20)), tv_tensors.Video(x))
    assert isinstance(video, tv_tensors.Video) and torch.equal(video, each)


def test_the_input_is_left_alone(build):
    x = picture((30, 50))
    kept = x.clone()
    build((60, 60))(x)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I", "F"])
def test_modes_of_pil_stay(build, mode):
    assert build((20, 30))(Image.new(mode, (50, 40))).mode == mode


def test_squish_is_torchvisions_resize():
    x = picture((30, 50))
    for kwargs in ({}, {"interpolation": v2.InterpolationMode.BICUBIC}, {"antialias": False}):
        assert torch.equal(Resize((21, 34), **kwargs)(x), v2.Resize((21, 34), **kwargs)(x))


def test_padding_of_a_fitting_aspect_is_squishing():
    x = picture((30, 50))
    assert torch.equal(Resize((60, 100), ResizeMethod.PAD)(x), Resize((60, 100))(x))


@pytest.mark.parametrize("pad_mode", ["constant", "edge", "reflect", "symmetric"])
def test_borders_are_those_of_the_mode(pad_mode):
    x = picture((40, 64))
    y = Resize((64, 64), ResizeMethod.PAD, pad_mode)(x)
    torch_mode = {"constant": "constant", "edge": "replicate", "reflect": "reflect"}.get(pad_mode)
    if torch_mode:
        expected = torch.nn.functional.pad(x[None].float(), [0, 0, 12, 12], mode=torch_mode)[0]
    else:
        expected = torch.cat([x[:, :12].flip(1), x, x[:, -12:].flip(1)], 1).float()
    assert torch.equal(y.float(), expected)


def test_interpolation_reaches_the_padded_image():
    x = picture((30, 50))
    nearest = Resize((64, 64), "pad", interpolation=v2.InterpolationMode.NEAREST)(x)
    assert set(nearest.unique().tolist()) <= {0, *x.unique().tolist()}
    zoomed = seeded(RandomZoomOut((64, 64), interpolation=v2.InterpolationMode.NEAREST), x)
    assert set(zoomed.unique().tolist()) <= {0, *x.unique().tolist()}


# Whole samples


def sample_of(size, dtype=torch.float32):
    """An image with one box, the mask of that box, keypoints at its centre, labels, and a path."""
    h, w = size
    box = torch.tensor([[w // 4, h // 3, w // 2, h // 2 + 2]], dtype=dtype)
    x1, y1, x2, y2 = box[0].int().tolist()
    mask = torch.zeros(1, h, w, dtype=torch.uint8)
    mask[:, y1:y2, x1:x2] = 1
    return {
        "image": tv_tensors.Image(picture(size)),
        "target": {
            "boxes": tv_tensors.BoundingBoxes(box, format="XYXY", canvas_size=size),
            "masks": tv_tensors.Mask(mask),
            "labels": torch.tensor([3]),
            "weights": torch.rand(1, h, w),
        },
        "path": "a.png",
    }


def converted(boxes, format):
    return v2.functional.convert_bounding_box_format(boxes, new_format=tv_tensors.BoundingBoxFormat[format])


def bounds(mask):
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


@pytest.mark.parametrize("canvas", CANVASES[:3])
@pytest.mark.parametrize("size", [(60, 100), (101, 61)])
@pytest.mark.parametrize("format", ["XYXY", "XYWH", "CXCYWH"])
def test_boxes_and_masks_follow(build, size, canvas, format):
    sample = sample_of(size)
    sample["target"]["boxes"] = converted(sample["target"]["boxes"], format)
    out = seeded(build(canvas), sample)
    boxes, masks = out["target"]["boxes"], out["target"]["masks"]
    assert out["image"].shape == (3, *canvas) and masks.shape == (1, *canvas) and boxes.canvas_size == canvas
    assert isinstance(masks, tv_tensors.Mask) and set(masks.unique().tolist()) == {0, 1} and boxes.format.value == format
    assert (bounds(masks[0] > 0) - converted(boxes, "XYXY")[0]).abs().max() <= 1.01
    assert torch.equal(out["target"]["labels"], torch.tensor([3])) and out["path"] == "a.png"
    assert out["target"]["weights"] is sample["target"]["weights"]  # a plain tensor beside an image is no image


def test_pil_image_with_target(build):
    sample = sample_of((60, 100))
    image, target = seeded(build((64, 64)), v2.functional.to_pil_image(sample["image"]), sample["target"])
    same = seeded(build((64, 64)), sample)["target"]
    assert image.size == (64, 64) and torch.equal(target["boxes"], same["boxes"]) and torch.equal(target["masks"], same["masks"])


def test_no_boxes(build):
    boxes = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(60, 100))
    out = build((64, 64))(picture((60, 100)), boxes)[1]
    assert out.shape == (0, 4) and out.canvas_size == (64, 64)


@pytest.mark.skipif(not hasattr(tv_tensors, "KeyPoints"), reason="this torchvision has no keypoints")
def test_keypoints_follow(build):
    points = tv_tensors.KeyPoints(torch.tensor([[25.0, 30.0], [50.0, 32.0]]), canvas_size=(60, 100))
    corners = tv_tensors.BoundingBoxes(torch.tensor([[25.0, 30.0, 50.0, 32.0]]), format="XYXY", canvas_size=(60, 100))
    _, moved, box = seeded(build((64, 64)), picture((60, 100)), points, corners)
    torch.testing.assert_close(moved.as_subclass(torch.Tensor).flatten(), box.as_subclass(torch.Tensor).flatten())


def test_fill_by_type():
    image, mask = tv_tensors.Image(picture((60, 100))), tv_tensors.Mask(torch.ones(60, 100, dtype=torch.uint8))
    fill = {tv_tensors.Mask: 255, "others": 7}
    for transform in (Resize((64, 64), "pad", fill=fill), RandomZoomOut((64, 64), fill=fill)):
        x, m = transform(image, mask)
        assert (m[0] == 255).all() and (x[:, 0] == 7).all() and set(m.unique().tolist()) == {1, 255}


def test_mirrored_borders_refuse_boxes():
    with pytest.raises(ValueError, match="reflect"):
        Resize((64, 64), "pad", "reflect")(sample_of((60, 100)))


@pytest.mark.parametrize("pad_mode", ["reflect", "symmetric"])
def test_a_mirror_wider_than_the_picture_is_refused_for_all_types(pad_mode):
    x = picture((10, 100))
    for inpt in (x, v2.functional.to_pil_image(x)):
        with pytest.raises(ValueError, match=f"pad_mode: '{pad_mode}'"):
            Resize((64, 64), "pad", pad_mode)(inpt)


def test_a_mirror_exactly_as_wide_as_the_picture():
    x = picture((21, 63))
    assert torch.equal(Resize((63, 63), "pad", "symmetric")(x), torch.cat([x.flip(1), x, x.flip(1)], 1))
    with pytest.raises(ValueError, match="pad_mode"):  # it would need the edge twice
        Resize((63, 63), "pad", "reflect")(x)


def test_sizes_that_disagree_are_refused():
    with pytest.raises(ValueError, match="multiple"):
        Resize((64, 64), "pad")(tv_tensors.Image(picture((60, 100))), tv_tensors.Mask(torch.zeros(50, 100)))


# The zoom


def test_zoom_is_determined_by_the_seed():
    transform, x = RandomZoomOut((64, 64), scale=(0.1, 0.5)), picture((60, 100))
    assert torch.equal(seeded(transform, x, seed=1), seeded(transform, x, seed=1))
    assert not torch.equal(seeded(transform, x, seed=1), seeded(transform, x, seed=2))


def test_resize_draws_nothing(build):
    before = torch.get_rng_state()
    build((64, 64))(picture((60, 100)))
    assert torch.equal(before, torch.get_rng_state()) is isinstance(build((64, 64)), Resize)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.55])
def test_zoom_covers_the_share(share):
    y = RandomZoomOut((200, 160), scale=(share, share))(torch.ones(1, 90, 80))
    assert abs((y > 0).double().mean().item() - share) < 0.01
    rows, columns = (y[0] > 0).any(1).sum(), (y[0] > 0).any(0).sum()
    assert abs(rows / columns - 90 / 80) < 0.02


def test_full_scale_has_the_documented_size():
    """Holocron 0.3.0 returns the image as it was for scale=(1, 1)."""
    assert RandomZoomOut((64, 64), scale=(1.0, 1.0))(picture((60, 100))).shape == (3, 64, 64)
    assert torch.equal(RandomZoomOut((64, 64), scale=(1, 1))(picture((60, 100))), Resize((64, 64), "pad")(picture((60, 100))))


@pytest.mark.parametrize("area", [1.0, 0.4, 0.01])
def test_letterbox_fits_and_is_centred(area):
    for size in SIZES:
        for canvas in CANVASES:
            (h, w), (left, top, right, bottom) = letterbox(size, canvas, area)
            assert h + top + bottom == canvas[0] and w + left + right == canvas[1]
            assert 0 <= right - left <= 1 and 0 <= bottom - top <= 1 and min(h, w) >= 1


# Arguments, printing, copies, loaders


@pytest.mark.parametrize("size", [64, (64,), (64, 64, 3), (64, 0), (-1, 5), (64.0, 64), "64", None, (True, 4)])
def test_wrong_sizes_are_named(size):
    for make in (Resize, RandomZoomOut):
        with pytest.raises(ValueError, match="size") as caught:
            make(size)
        assert repr(size) in str(caught.value)


@pytest.mark.parametrize("mode", ["crop", None, 3])
def test_wrong_modes_are_named(mode):
    with pytest.raises(ValueError, match="mode") as caught:
        Resize((8, 8), mode=mode)
    assert repr(mode) in str(caught.value)


@pytest.mark.parametrize("pad_mode", ["wrap", None])
def test_wrong_pad_modes_are_named(pad_mode):
    with pytest.raises(ValueError, match="pad_mode") as caught:
        Resize((8, 8), pad_mode=pad_mode)
    assert repr(pad_mode) in str(caught.value)


@pytest.mark.parametrize("scale", [0.5, (0.5,), (0.9, 0.2), (0, 1), (-0.1, 0.5), (0.5, 1.5), ("a", "b"), None, (float("nan"), 1)])
def test_wrong_scales_are_named(scale):
    with pytest.raises(ValueError, match="scale") as caught:
        RandomZoomOut((8, 8), scale=scale)
    assert repr(scale) in str(caught.value)


def test_unknown_keywords_are_refused_at_once():
    for make in (Resize, RandomZoomOut):
        with pytest.raises(TypeError, match="colour"):
            make((8, 8), colour=3)


def test_names_and_values_of_the_modes():
    assert [str(m) for m in ResizeMethod] == ["squish", "pad"] and ResizeMethod("pad") is ResizeMethod.PAD
    assert Resize((8, 8), mode="pad").mode is ResizeMethod.PAD


def test_repr_tells_the_arguments(build):
    text = repr(build((64, 32)))
    assert "[64, 32]" in text and ("scale=(0.2, 0.8)" in text or "mode=" in text)


def test_copies_and_pickles(build):
    transform, x = build((64, 32)), picture((60, 100))
    for other in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert torch.equal(seeded(other, x), seeded(transform, x))


class Pictures(torch.utils.data.Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return self.transform(v2.functional.to_pil_image(picture((60, 100), 0)))


def test_in_the_workers_of_a_loader():
    pipeline = v2.Compose([RandomZoomOut((32, 32), scale=(0.1, 0.5)), v2.PILToTensor()])
    batches = []
    for _ in range(2):
        loader = DataLoader(Pictures(pipeline), batch_size=6, num_workers=2, generator=torch.Generator().manual_seed(0))
        batches.append(next(iter(loader)))
    assert batches[0].shape == (6, 3, 32, 32) and torch.equal(*batches)
    assert len({x.sum().item() for x in batches[0]}) > 1  # every sample has its own zoom
