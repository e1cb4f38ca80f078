"""Tests of predictions and features as files, and of folders of images that are classified."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from helpers import exits_with, run_test
from PIL import Image

from vit_cifar10.data import dataset
from vit_cifar10.data.images import open_image
from vit_cifar10.evaluation import full_test, predictions
from vit_cifar10.runs import checkpoint

pytestmark = pytest.mark.quick


def read_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def probabilities(row):
    return [float(value) for name, value in row.items() if name.startswith("p_")]


def save_shapes(folder, names, count=3, seed=5):
    """Save images of these classes in folder/NAME/, and return the files by their paths below the folder."""
    images, labels = dataset.draw_shapes(100, 32, seed)
    classes, files = list(dataset.SHAPES), {}
    for name in names:
        chosen = images[labels == classes.index(name)][:count]
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(chosen):
            files[f"{name}/{number}.png"] = folder / name / f"{number}.png"
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(files[f"{name}/{number}.png"])
    return files


@pytest.mark.parametrize("run", ["vit", "cnn"])
@pytest.mark.usefixtures("no_pictures")
def test_predictions_and_features_of_all_test_images_are_files(run, runs, tmp_path, monkeypatch):
    attention = " --attention" if run == "vit" else ""
    flags = f"--model_path model/{run} --output_path {tmp_path} --csv --embeddings {tmp_path}/all.npz{attention}"
    run_test(runs, flags, monkeypatch)
    tested = torch.load(tmp_path / run / "test_logits.pt", weights_only=True)
    results = json.loads((tmp_path / run / "test_results.json").read_text())
    rows = read_rows(tmp_path / run / "predictions.csv")
    assert list(rows[0])[:4] == ["index", "true_class", "prediction", "p_circle"]
    assert [int(row["index"]) for row in rows] == list(range(1000))
    assert sum(row["true_class"] == row["prediction"] for row in rows) / 1000 == results["accuracy"]
    ours = torch.tensor([probabilities(row) for row in rows])
    torch.testing.assert_close(ours, tested["logits"].softmax(dim=1), atol=1e-5, rtol=1e-4)
    network = checkpoint.load_network(runs / "model" / run, torch.device("cpu"))
    with np.load(tmp_path / "all.npz") as arrays:
        assert set(arrays) == {"features", "logits", "labels", "classes"} | ({"attention"} if attention else set())
        assert arrays["classes"].tolist() == network.classes
        assert np.array_equal(arrays["labels"], tested["labels"])
        head = network.model.get_submodule(network.model.head_name)
        torch.testing.assert_close(head(torch.tensor(arrays["features"])).detach(), tested["logits"], atol=1e-4, rtol=0)
        if attention:
            image = network.load_test_images("").images[700:701]
            _, layers = network.model.forward_with_attention(network.prepare(image))
            expected = torch.stack(layers)[:, 0, :, 0, 1:].unflatten(-1, (4, 4)).detach()
            torch.testing.assert_close(torch.tensor(arrays["attention"][700]).float(), expected, atol=1e-3, rtol=0)


def test_all_images_of_a_folder_are_classified(runs, tmp_path, monkeypatch, capsys):
    files = save_shapes(tmp_path / "photos", ["circle", "vertical stripes"])
    (tmp_path / "photos" / "circle").rename(tmp_path / "photos" / "Circle")
    (tmp_path / "photos" / "unsorted" / "deep").mkdir(parents=True)
    Image.new("RGB", (60, 20), "navy").save(tmp_path / "photos" / "unsorted" / "deep" / "=wide, ß.jpg")
    Image.new("RGB", (20, 20), "gold").save(tmp_path / "photos" / "top.webp")
    for name in ("broken.png", "notes.txt", "Thumbs.db"):
        (tmp_path / "photos" / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    before = sorted((tmp_path / "photos").rglob("*"))
    flags = f"--model_path model/vit --output_path {tmp_path} --mode custom --image_path {tmp_path}/photos --embeddings"
    run_test(runs, flags, monkeypatch)
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        f"note: 1 images in {tmp_path}/photos: cut to the square at the center; --resize squash or pad keeps the rest",
        f"skipped: 2 of the 10 files in {tmp_path}/photos cannot be read as an image: broken.png, notes.txt",
        "note: no classes of the network have the names unsorted, so the true class of these images is unknown",
    ]
    assert sorted((tmp_path / "photos").rglob("*")) == before
    folder = tmp_path / "vit-on-photos"
    assert {path.name for path in folder.iterdir()} == {"predictions.csv", "embeddings.npz", "overview.png"}
    rows = {row["file"]: row for row in read_rows(folder / "predictions.csv")}
    assert len(rows) == len(files) + 2 == 8
    truth = {"Circle": "circle", "vertical stripes": "vertical stripes"}
    network = checkpoint.load_network(runs / "model" / "vit", torch.device("cpu"))
    for name, row in rows.items():
        expected = network.logits(open_image(tmp_path / "photos" / name, 32)[None])[0].softmax(dim=0)
        assert probabilities(row) == pytest.approx(expected.tolist(), abs=1e-5)
        assert row["prediction"] == network.classes[expected.argmax()]
        assert row["true_class"] == truth.get(name.split("/")[0], "")
        assert f"{100 * expected.max():6.2f} %  {row['prediction']}  {name}" in printed.out
    right = sum(row["true_class"] == row["prediction"] for row in rows.values())
    assert f"accuracy {100 * right / 6:.2f} % on the 6 images" in printed.out
    with np.load(folder / "embeddings.npz") as arrays:
        assert arrays["files"].tolist() == list(rows)
        assert sorted(arrays["labels"]) == [-1, -1, 0, 0, 0, 8, 8, 8]


def test_a_folder_without_classes_gives_no_true_class_and_a_page(runs, tmp_path, monkeypatch, capsys):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (32, 32), "teal").save(tmp_path / name)
    flags = f"--model_path model/cnn --output_path {tmp_path}/out --mode custom --image_path {tmp_path}"
    with monkeypatch.context() as patch, exits_with(2):  # the results would be among the images
        run_test(runs, flags, patch)
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / name).rename(tmp_path / "photos" / name)
    flags = f"--model_path model/cnn --output_path {tmp_path}/out --mode custom --image_path {tmp_path}/photos"
    with monkeypatch.context() as patch, exits_with(130):
        patch.setattr(predictions, "predict", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        run_test(runs, flags, patch)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    run_test(runs, f"{flags} --csv {tmp_path}/my.csv --html {tmp_path}/page.html", monkeypatch)
    assert list(read_rows(tmp_path / "my.csv")[0])[:4] == ["index", "file", "prediction", "p_circle"]
    assert "true class" not in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert '"name": "a.png"' in page
    assert '"name": "b.png"' in page


def test_mistakes_name_the_files_of_a_folder(runs, tmp_path, monkeypatch, capsys):
    save_shapes(tmp_path / "photos", ["circle", "square", "moon"], count=8)
    (tmp_path / "photos" / "circle").rename(tmp_path / "photos" / "ring")  # so that circles are mistakes
    captions = []
    monkeypatch.setattr(full_test, "save_mistakes", lambda _, texts, *__: captions.extend(texts))
    flags = f"--dataset folder --data_path {tmp_path}/photos --model_path model/vit --output_path {tmp_path}"
    run_test(runs, f"{flags} --csv", monkeypatch)
    printed = capsys.readouterr().out
    wrong = {row["file"] for row in read_rows(tmp_path / "vit-on-folder" / "predictions.csv") if is_wrong(row)}
    assert len(wrong) >= 5
    assert {caption.splitlines()[0] for caption in captions} == wrong
    named = printed.split("the most confident mistakes:")[1].splitlines()[1:6]
    assert {line.split("  ")[-1] for line in named} <= wrong
    run_test(runs, f"{flags} --mode cifar-single --index 9 --no_gif --no_image", monkeypatch)
    assert "ring/1.png, true class: ring" in capsys.readouterr().out


def is_wrong(row):
    return row["true_class"] != row["prediction"]


@pytest.mark.usefixtures("no_pictures")
def test_one_class_is_enough_and_some_classes_may_be_renamed(runs, tmp_path, monkeypatch, capsys):
    save_shapes(tmp_path / "photos", ["moon"])
    flags = f"--dataset folder --data_path {tmp_path}/photos --model_path model/vit --output_path {tmp_path}"
    run_test(runs, flags, monkeypatch)
    assert "classes without test images, left out here and in the macro mean: 9" in capsys.readouterr().out
    counts = np.array(json.loads((tmp_path / "vit-on-folder" / "test_results.json").read_text())["confusion_matrix"])
    assert counts.sum(axis=1).tolist() == [0] * 6 + [3] + [0] * 3
    (tmp_path / "photos" / "moon").rename(tmp_path / "photos" / "crescent")
    with exits_with(2):
        run_test(runs, flags, monkeypatch)
    (tmp_path / "names.txt").write_text("crescent = Moon\nO = ring\n")
    run_test(runs, f"{flags} --class_names {tmp_path}/names.txt", monkeypatch)
    results = json.loads((tmp_path / "vit-on-folder" / "test_results.json").read_text())
    assert results["confusion_matrix"] == counts.tolist()
    assert (results["classes"][5:7], results["classes"][0]) == (["O", "crescent"], "circle")
    for content, reason in (("crescent = sun\n", "renames sun"), ("a = moon\nb = moon\n", "renames a class .* twice")):
        (tmp_path / "names.txt").write_text(content)
        capsys.readouterr()
        with exits_with(2):
            run_test(runs, f"{flags} --class_names {tmp_path}/names.txt", monkeypatch)
        assert re.search(reason, capsys.readouterr().err)


def test_the_overview_shows_a_sample_of_many_images(tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(
        predictions, "save_mistakes", lambda *arguments: shown.update(zip("icpn", arguments, strict=True))
    )
    images = torch.randint(256, (250, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(250) % 4 - 1
    files = [f"{number}.png" for number in range(250)]
    split = dataset.Split(images, labels, ("a", "b", "c"), torch.zeros(3), torch.ones(3), files=files)
    logits = torch.randn(250, 3)
    predictions.save_overview(logits, split, tmp_path / "overview.png", "photos")
    assert shown["n"] == "photos: 100 of 250 images"
    texts = [caption.splitlines() for caption in shown["c"]]
    assert [text[1][0] for text in texts] == sorted(text[1][0] for text in texts)
    for image, (file, predicted, *wrong) in zip(shown["i"], texts, strict=True):
        place = int(file.removesuffix(".png"))
        assert np.array_equal(image, images[place].permute(1, 2, 0))
        assert predicted[0] == "abc"[logits[place].argmax()]
        assert bool(wrong) == (labels[place] not in (-1, logits[place].argmax()))
