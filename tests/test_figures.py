"""Texts in pictures are legible for any names: they are inside the picture and do not overlap."""

import dataclasses
import itertools
import sys
from unittest import mock

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from vit_cifar10.plots.canvas import Canvas
from vit_cifar10.plots.curves import save_comparison, save_curves, save_sample_sizes
from vit_cifar10.plots.explanations import MapRow, attention_frames, class_frames, save_disagreements
from vit_cifar10.plots.scores import save_class_accuracy, save_confusion_matrix, save_mistakes, save_reliability
from vit_cifar10.plots.style import save_figure
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
        return figure, drawn_texts(figure)

    return draw


def drawn_texts(figure):
    """The texts that are visible when a figure is drawn."""
    texts, draw_text = [], Text.draw

    def collect(text, renderer):
        if text.get_visible() and text.get_text().strip():
            texts.append(text)
        draw_text(text, renderer)

    with mock.patch.object(Text, "draw", collect):
        FigureCanvasAgg(figure).draw()
    return texts


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
        {"epoch": epoch, "learning_rate": 1e-3, **dict.fromkeys(names, value)} for epoch, value in enumerate(values, 1)
    ]


@pytest.mark.parametrize("epochs", EPOCHS)
def test_curves(epochs, drawn):
    figure, texts = drawn(save_curves, history(epochs), title=shorten("n" * 90))
    assert_legible((figure, texts))
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
    calibration = {"error": 0.5, "confidence": [0.5, 0.9], "accuracy": [0.5, 1.0], "images": [10, 900]}
    assert_legible(drawn(save_reliability, calibration, title=title))
    images = np.zeros((25, 32, 32, 3), dtype=np.uint8)
    names = [shorten(classes[index % count], 18) for index in range(26)]
    captions = [f"label: {one}\ntaken for {other}, 100 %" for one, other in itertools.pairwise(names)]
    for shown in (25, 3):
        assert_legible(drawn(save_mistakes, images[:shown], captions[:shown], title=title))


@pytest.mark.parametrize("runs", [1, 2, 12])
def test_pictures_of_a_comparison(runs, drawn):
    recalls = {name: np.linspace(0, 1, len(LONG)) for name in RUNS[:runs]}
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


@pytest.mark.parametrize("heads", [1, 3, 4, 6, 12])
def test_frames_are_legible_with_any_number_of_heads(heads, monkeypatch):
    canvases, draw = [], Canvas.draw
    monkeypatch.setattr(Canvas, "draw", lambda canvas: canvases.append(canvas) or draw(canvas))
    random, image = np.random.RandomState(0), np.zeros((32, 32, 3), dtype=np.uint8)
    rows = [MapRow("attention", random.rand(1, 4, 4), ["layer 1"], is_by_layer=True)]
    rows.append(MapRow("AttnLRP", random.randn(2, 4, 4), ["automobile", "b"], is_signed=True))
    shown = [0.9, 0.1], ["automobile", "b"], "true class: automobile"
    attention_frames(image, rows, random.rand(1, heads, 4, 4), *shown)
    class_frames(image, [dataclasses.replace(rows[1], name="DeepLIFT")], [0, 1], *shown)
    for canvas in canvases:
        assert_legible((canvas.figure, drawn_texts(canvas.figure)))


def test_a_network_with_more_heads_than_fit_is_drawn():
    random = np.random.RandomState(0)
    rows = [MapRow("attention", random.rand(1, 4, 4), ["layer 1"], is_by_layer=True)]
    rows.append(MapRow("AttnLRP", random.randn(2, 4, 4), ["a", "b"], is_signed=True))
    image, heads = np.zeros((32, 32, 3), dtype=np.uint8), random.rand(1, 200, 4, 4)
    frames = attention_frames(image, rows, heads, np.array([0.9, 0.1]), ["a", "b"], "caption")
    assert frames.shape[0] == 1
    assert frames.shape[2] == 960
