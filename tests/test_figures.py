"""Texts in pictures are legible for any names. Frames and stills have the pixels that matplotlib would draw."""

import collections
import contextlib
import dataclasses
import itertools
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import ROOT
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image, ImageSequence

from vit_cifar10.explain.maps import attention_maps, attention_to_patches
from vit_cifar10.plots.canvas import Canvas, Probabilities
from vit_cifar10.plots.curves import save_comparison, save_curves, save_sample_sizes
from vit_cifar10.plots.explanations import (
    MapRow,
    attention_frames,
    class_frames,
    save_disagreements,
    save_relevance_grid,
)
from vit_cifar10.plots.gif import save_gif
from vit_cifar10.plots.overlay import gray_image, map_colors, overlay, percent_of_maximum
from vit_cifar10.plots.scores import save_class_accuracy, save_confusion_matrix, save_mistakes, save_reliability
from vit_cifar10.plots.style import COLORMAP, PERCENT, SIGNED_COLORMAP, SIGNED_PERCENT, save_figure
from vit_cifar10.runs import checkpoint
from vit_cifar10.utils.methods import METHODS
from vit_cifar10.utils.text import shorten

RUNS = [f"vit-layer6-32-cifar10-20261120-1830{index:02}-with-more" for index in range(12)]
RUNS[1] = "run \x1b[2J\udcff"  # a folder's name may hold any bytes
SHAPES = ["filled circle", "vertical stripes", "horizontal stripes", "checkerboard"]
LONG = ["a class whose name is far too long for any of the pictures", "cat \x1b[2J\udcff", "costs $5 or $6", "x" * 80]
EPOCHS = [1, 2, 12, 1200]


@pytest.fixture
def drawn(tmp_path):
    """A function that draws a picture and returns its figure and the texts in it."""

    def draw(save, *arguments, **options):
        with mock.patch.object(sys.modules[save.__module__], "save_figure", wraps=save_figure) as saved:
            save(*arguments, tmp_path / "picture.png", **options)
        figure = saved.call_args.args[0]
        with drawn_texts() as texts:
            FigureCanvasAgg(figure).draw()
        return figure, texts

    return draw


@pytest.fixture
def legible_canvases(monkeypatch):
    """Check all texts of each frame and still that is drawn. The value maps each canvas to its texts."""
    canvases, draw = collections.defaultdict(dict), Canvas.draw

    def draw_and_check(canvas):
        with drawn_texts() as texts:
            picture = draw(canvas)
        canvases[canvas] |= dict.fromkeys(texts)  # later frames draw only the texts that change
        assert_legible((canvas.figure, [text for text in canvases[canvas] if text.get_text()]))
        return picture

    monkeypatch.setattr(Canvas, "draw", draw_and_check)
    return canvases


@contextlib.contextmanager
def drawn_texts():
    """Collect the visible texts that are drawn meanwhile."""
    texts, draw_text = [], Text.draw

    def collect(text, renderer):
        if text.get_visible() and text.get_text().strip():
            texts.append(text)
        draw_text(text, renderer)

    with mock.patch.object(Text, "draw", collect):
        yield texts


def assert_legible(drawn):
    figure, texts = drawn
    boxes = {text: text.get_window_extent().padded(-1) for text in texts}
    for text, box in boxes.items():
        assert "mathdefault" not in text.get_text()
        assert min(box.x0, box.y0) > -2, text
        assert box.x1 < figure.bbox.x1 + 2, text
        assert box.y1 < figure.bbox.y1 + 2, text
    level = [(text, box) for text, box in boxes.items() if text.get_rotation() in (0, 90)]
    for (one, box), (other, other_box) in itertools.combinations(level, 2):
        assert not box.overlaps(other_box), (one, other)


def history(epochs):
    values = np.linspace(2, 1, epochs)
    names = [f"{split}_{quantity}" for split in ("train", "val", "test") for quantity in ("loss", "accuracy")]
    return [
        {"epoch": epoch, "learning_rate": 1e-3, **dict.fromkeys(names, value), "test_accuracy": value + 0.1}
        for epoch, value in enumerate(values, 1)
    ]


@pytest.mark.parametrize("epochs", EPOCHS)
def test_curves(epochs, drawn):
    figure, texts = drawn(save_curves, history(epochs), title=shorten("n" * 90), small_epochs=epochs // 2)
    assert_legible((figure, texts))
    shown = " ".join(text.get_text() for text in texts)
    assert ("images grow" in shown) == (epochs > 1)
    assert "test can lie above training" in shown
    for axis in figure.axes:
        shown = [label.get_text() for label in axis.get_xticklabels() if label in texts]
        assert shown
        assert all(label.isdigit() for label in shown)


@pytest.mark.parametrize("lengths", [(12, 12), (12, 1), (1200, 12, 60), (1,)])
@pytest.mark.parametrize("runs", [1, 3, 12])
def test_comparisons(lengths, runs, drawn):
    curves = [(f"{RUNS[index]}: 87.16 %", [history(lengths[index % len(lengths)])]) for index in range(runs)]
    assert_legible(drawn(save_comparison, curves))


@pytest.mark.parametrize("classes", [SHAPES, LONG, [f"class {index}" for index in range(10)]], ids=len)
def test_pictures_of_a_full_test(classes, drawn):
    count = len(classes)
    title = f"{'n' * 34}\x1b[2J\udcff: test accuracy 87.16 %"
    assert_legible(drawn(save_confusion_matrix, np.eye(count) * 1000, classes, title=title))
    calibration = {"error": 0.5, "confidence": [0.4, 0.8], "accuracy": [0.5, 1.0], "images": [10, 900]}
    calibration["accuracy_interval"] = [[0.2, 0.8], [0.99, 1.0]]
    figure, texts = drawn(save_reliability, calibration, name=shorten("n" * 90))
    assert_legible((figure, texts))
    assert "is right more often than it claims" in " ".join(figure.get_suptitle().split())
    few, many = figure.axes[0].patches
    assert few.get_alpha() < 0.5 < many.get_alpha()
    segments = figure.axes[0].containers[-1].lines[2][0].get_segments()  # of the intervals
    assert np.allclose(np.array(segments)[..., 1], [[20, 80], [99, 100]])
    images = np.zeros((25, 32, 32, 3), dtype=np.uint8)
    names = [shorten(classes[index % count], 18) for index in range(26)]
    captions = [f"label: {one}\ntaken for {other}, 100 %" for one, other in itertools.pairwise(names)]
    for shown in (25, 3):
        assert_legible(drawn(save_mistakes, images[:shown], captions[:shown], title=title))


@pytest.mark.parametrize("runs", [1, 2, 12])
def test_pictures_of_a_comparison(runs, drawn):
    recalls = {name: np.linspace((0, 0, 0.1), (0.9, 0.8, 1), len(LONG)) for name in RUNS[:runs]}
    assert_legible(drawn(save_class_accuracy, recalls, LONG, "cifar100"))
    images = [500, 1000, 40_000, 45_000, 50_000]
    assert_legible(
        drawn(save_sample_sizes, {name: {count: [(0.5, 0.4, 0.6)] for count in images} for name in RUNS[:runs]})
    )
    image, relevance = np.zeros((32, 32, 3), dtype=np.uint8), np.ones((4, 4))
    name = shorten(LONG[0], 16)
    shown = [(image, name, [(relevance, f"{name} 100 %")] * 2)] * min(runs, 4)
    panels = [(f"{'a' * 30} is right, {'b' * 30} is wrong", shown)] * 2
    assert_legible(drawn(save_disagreements, panels, ["a" * 22 + "\nGrad-CAM"] * 2))


def layers_of(maps, tokens=0):
    return MapRow("attention", maps, [f"layer {layer + 1}" for layer in range(len(maps))], True, tokens=tokens)


@pytest.mark.parametrize(
    ("heads", "has_own_scales"), [(1, False), (3, True), (4, False), (6, True), (12, False), (12, True)]
)
def test_frames_are_legible_with_any_number_of_heads(heads, has_own_scales, legible_canvases):
    random, image = np.random.RandomState(0), np.zeros((32, 32, 3), dtype=np.uint8)
    rows = [layers_of(0.1 * random.rand(2, 4, 4), tokens=17)]
    rows.append(MapRow("AttnLRP", random.randn(2, 4, 4), ["automobile", "b"], is_signed=True))
    drawn_heads = [layers_of(random.rand(2, 4, 4), tokens=17) for _ in range(heads)]
    after, classes, caption = np.array([[0.2, 0.8], [0.9, 0.1]]), ["automobile", "b"], "true class: automobile"
    for shown in (rows, rows[1:]):
        attention_frames(image, shown, drawn_heads, after, classes, caption, has_own_scales)
    class_frames(image, [dataclasses.replace(rows[1], name="DeepLIFT")], [0, 1], after[1], classes, caption)
    both, one, of_classes = ({text.get_text() for text in texts} for texts in legible_canvases.values())
    assert both > {"input", "attention in layer 2", "attention of the heads in layer 2", "uniform 5.9 %", "90.0 %"}
    assert not any("AttnLRP" in text and "layer 2" in text for text in one)
    assert "answer" in one
    assert of_classes > {"DeepLIFT: for and against automobile", "true class: automobile", "90.0 %"}


@pytest.mark.parametrize("count", [1, 4, len(METHODS)])
def test_frames_are_legible_with_any_number_of_methods(count, legible_canvases):
    random, image = np.random.RandomState(0), np.zeros((32, 32, 3), dtype=np.uint8)
    entries = list(METHODS.values())[-count:]
    titles = [LONG[0], "b"]
    rows = [MapRow(entry.name, random.rand(2, 4, 4), titles, is_signed=entry.is_signed) for entry in entries]
    class_frames(image, rows, [0, 1], [0.9, 0.1], titles, "caption")
    attention_frames(image, rows, [layers_of(random.rand(2, 4, 4), 17)], np.eye(2), titles, "caption")


def test_the_bars_follow_the_layers_and_show_every_class_that_leads(monkeypatch):
    shown, fill = [], Probabilities.fill
    monkeypatch.setattr(Probabilities, "fill", lambda *arguments: shown.append(arguments) or fill(*arguments))
    after = np.full((3, 8), 0.05)
    after[0, 7], after[1, 6], after[2, 0], after[2, 1:5] = 0.6, 0.6, 0.6, 0.07
    heads, image = [layers_of(np.ones((3, 4, 4)) / 17, 17)], np.zeros((32, 32, 3), dtype=np.uint8)
    attention_frames(image, [], heads, after, list("abcdefgh"), "caption")
    assert [marked for _, _, marked, _ in shown] == [7, 6, 0]
    assert sorted(shown[0][0].shown) == [0, 1, 2, 6, 7]
    assert shown[0][0].shown[0] == 0


@pytest.mark.parametrize("maps", [1, 3, 400])
def test_stills_are_legible(maps, legible_canvases, tmp_path):
    random, image = np.random.RandomState(0), np.zeros((32, 32, 3), dtype=np.uint8)
    layers = [f"layer {index + 1}" for index in range(maps)]
    rows = [MapRow("gradient rollout", np.zeros((maps, 4, 4)), layers, is_by_layer=True)] * 2
    rows.append(MapRow("AttnLRP", random.randn(len(LONG), 4, 4)[:maps], LONG[:maps], is_signed=True))
    for shown in (rows[:1], rows):
        save_relevance_grid(tmp_path / "still.png", image, shown, f"image: {'x' * 40}   ·   {shorten(LONG[0])}")
    texts = {text.get_text() for text in legible_canvases.popitem()[1]}
    assert texts > {"gradient rollout", "AttnLRP", "input", layers[-1], shorten(LONG[0], 14), "no positive\nevidence"}


def test_a_network_with_more_heads_than_fit_is_drawn():
    random, image = np.random.RandomState(0), np.zeros((32, 32, 3), dtype=np.uint8)
    heads = [layers_of(random.rand(1, 4, 4)) for _ in range(200)]
    frames = attention_frames(image, heads[:1], heads, np.array([[0.9, 0.1]]), ["a", "b"], "caption")
    assert frames.shape[0] == 1
    assert frames.shape[2] == 960


def test_a_panel_shows_its_map_and_not_the_photo(cifar10_root):
    """The middle and the last layer of a ViT on 30 photos."""
    network = checkpoint.load_network(ROOT / "model" / "vit-layer12-32-cifar10", torch.device("cpu"))
    images = network.load_test_images(cifar10_root, 30).images
    attention = attention_to_patches(attention_maps(network.model, network.prepare(images))).numpy()
    correlations = []
    for photo, by_layer in zip(images.permute(0, 2, 3, 1).numpy(), attention.swapaxes(0, 1), strict=True):
        for map_, percentages in zip(by_layer[[5, 11]], percent_of_maximum(by_layer)[[5, 11]], strict=True):
            panel = overlay(gray_image(photo), map_colors(percentages), 32)
            of_pixels = (relative_luminance(panel), map_.repeat(4, axis=0).repeat(4, axis=1), photo.mean(axis=2))
            correlations.append(np.corrcoef([values.ravel() for values in of_pixels])[0, 1:])
    with_map, with_photo = np.mean(correlations, axis=0)
    assert with_map > 0.9
    assert abs(with_photo) < 0.2


def relative_luminance(pixels):
    """The relative luminance (H, W) of sRGB colors, as WCAG defines it."""
    values = pixels / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return linear @ (0.2126, 0.7152, 0.0722)


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize(
    ("size", "patches", "side"), [(4, 1, 94), (32, 8, 128), (32, 8, 232), (30, 7, 232), (224, 14, 96)]
)
def test_panels_have_the_pixels_that_matplotlib_draws(size, patches, side, is_signed):
    random = np.random.RandomState(0)
    image = random.randint(0, 256, (size, size, 3)).astype(np.uint8)
    percentages = percent_of_maximum(random.randn(patches, patches), is_signed)
    canvas = Canvas(100 + side)
    canvas.add_input(image, (12, 50, side))
    canvas.add_panel(image, (24 + side, 50, side), is_signed).fill(percentages, "title")

    figure = Figure((9.6, 1 + side / 100), dpi=100)
    for left in (12, 24 + side):
        axis = figure.add_axes((left / 960, 50 / (100 + side), side / 960, side / (100 + side)))
        axis.set_axis_off()
        if left == 12:
            axis.imshow(image, interpolation="nearest")
            continue
        below = np.round(127.5 + 0.35 * (image.mean(axis=2) - 127.5)).astype(np.uint8)
        axis.imshow(below[..., None].repeat(3, axis=2), interpolation="nearest")
        colors = {"cmap": COLORMAP, "norm": PERCENT, "alpha": 0.75}
        if is_signed:
            alpha = 0.08 + 0.77 * np.sqrt(np.abs(percentages) / 100)
            colors = {"cmap": SIGNED_COLORMAP, "norm": SIGNED_PERCENT, "alpha": alpha}
        extent = (-0.5, size - 0.5, size - 0.5, -0.5)
        axis.imshow(percentages, interpolation="nearest", extent=extent, **colors)
    reference = FigureCanvasAgg(figure)
    reference.draw()
    part = slice(50, 50 + side), slice(12, 24 + 2 * side)
    drawn, expected = canvas.draw()[part], np.asarray(reference.buffer_rgba())[..., :3][part]
    assert (drawn != expected).any(axis=2).mean() < 1e-3  # matplotlib errs at few pixels between two colors


def test_a_frame_does_not_depend_on_the_frames_before_it():
    random = np.random.RandomState(0)
    image, maps = random.randint(0, 256, (32, 32, 3)).astype(np.uint8), random.randn(3, 4, 4)
    maps[1] = 0  # this frame has a note
    classes, probabilities = ["automobile", "b", "cat"], [0.7, 0.2, 0.1]

    def draw(order):
        rows = [MapRow("DeepLIFT", maps[order], [classes[index] for index in order], is_signed=True)]
        return class_frames(image, rows, order, probabilities, classes, "caption")

    frames = draw([0, 1, 2])
    assert np.array_equal(frames, draw([2, 1, 0])[::-1])
    for one, other in itertools.pairwise(frames):
        assert np.any(one[:, :632] != other[:, :632])  # the map
        assert np.any(one[:, 632:] != other[:, 632:])  # the marked class


@pytest.mark.parametrize("count", [1, 3])
def test_a_gif_keeps_the_colors_of_its_frames(count, tmp_path):
    bar = np.stack([np.arange(256), np.arange(256)[::-1], np.full(256, 128)], axis=1)
    frames = np.full((count, 200, 256, 3), 255, dtype=np.uint8)
    frames[:, 0] = bar  # few pixels with many colors
    frames[:, -1, -1] = (255, 0, 0)
    frames[:, 20:-1] = np.random.RandomState(0).randint(0, 64, (count, 179, 256, 1)) + np.array((60, 100, 140))
    save_gif(frames, tmp_path / "a.gif")
    gif = Image.open(tmp_path / "a.gif")
    durations, read = [], []
    for frame in ImageSequence.Iterator(gif):
        durations.append(frame.info["duration"])
        read.append(np.asarray(frame.convert("RGB")).astype(int))
    assert gif.info["loop"] == 0
    assert durations == [500] * (count - 1) + [2500]
    for pixels, frame in zip(read, frames, strict=True):
        assert np.abs(pixels - frame).max() <= 2
        assert np.array_equal(pixels[:20], read[0][:20])
        assert np.array_equal(pixels[1:20], frame[1:20])  # white remains white
