"""The live page, tested in a real browser: its network gives PyTorch's results, whatever the user changes."""

import base64
import contextlib
import dataclasses
import re

import numpy as np
import pytest
import torch
from browser import NARROW, evaluate, small_network, wait_until_drawn
from helpers import ROOT, run_test
from PIL import Image, ImageDraw
from torch import nn

from model import build_model
from vit_cifar10.data import dataset
from vit_cifar10.data.images import open_image
from vit_cifar10.explain import explorer
from vit_cifar10.explain.explanation import Explanation
from vit_cifar10.explain.lens import head_contributions, logit_lens, patch_logits
from vit_cifar10.explain.live import rounded
from vit_cifar10.explain.maps import (
    attention_maps,
    grad_cam,
    gradient_rollout_by_layer,
    rollout_by_layer,
)
from vit_cifar10.explain.methods import best_method
from vit_cifar10.explain.removal import at_pixels, make_fills
from vit_cifar10.runs import checkpoint

TARGET = 3
NETWORKS = {
    "token": {"depth": 3, "num_heads": 3, "embed_dim": 24, "patch_size": 4},
    "avg": {"global_pool": "avg", "class_token": False, "embed_dim": 18},
    "avg with a class token": {"global_pool": "avg", "class_token": True, "mlp_ratio": 2.5},
    "one layer": {"depth": 1, "num_heads": 1, "patch_size": 16},
    "cnn": {"model": "cnn", "width": 6},
    "cnn of 30 pixels": {"model": "cnn", "width": 5, "img_size": 30},
    "fast cnn": {"model": "fast-cnn", "width": 6},
    "fast cnn of 30 pixels": {"model": "fast-cnn", "width": 7, "img_size": 30},
}


def random_network(config):
    """A network with weights and statistics that are large enough for every part to matter."""
    if "model" in config:
        sizes = {"num_classes": 10, "img_size": 32, **config}
        network = small_network({})
        model = build_model(sizes).eval()
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            for values, least, most in ((norm.running_mean, -1, 1), (norm.running_var, 0.5, 2), (norm.weight, 0.5, 2)):
                nn.init.uniform_(values, least, most)
            nn.init.normal_(norm.bias)
        for kernel in (module.weight for module in model.modules() if isinstance(module, nn.Conv2d)):
            if config["model"] == "fast-cnn":  # with its identity kernels, hardly anything reaches the logits
                nn.init.normal_(kernel, std=2 * kernel[0].numel() ** -0.5)
        saved = {"model_config": sizes, "dataset": "folder", "recipe": {}}
        return dataclasses.replace(network, model=model, saved=saved)
    network = small_network(config)
    for weight in (weight for weight in network.model.parameters() if weight.ndim > 1):
        weight.data *= 4
    return network


def write_live(network, path, count=2):
    """Write the live page of drawn images, and return them."""
    images, _ = dataset.draw_shapes(count, network.image_size, seed=1)
    entries = [
        explorer.page_entry(Explanation(network, image), f"image {i}", "a label") for i, image in enumerate(images)
    ]
    explorer.write_page(path, network, entries, live=True)
    return images


SHOWS_ANSWER = """() => live.asked === null && state.answer !== null
    && state.answer === live.answers.get(JSON.stringify(describeState(false)))
    && state.answer.explanations.has(state.target)"""


def wait_for_answer(page):
    """Wait until the page shows the network's answer to its present state, with the explanations of the class."""
    for _ in range(600):
        if page.evaluate(SHOWS_ANSWER):
            return wait_until_drawn(page)
        page.wait_for_timeout(20)
    raise AssertionError("the page has not answered")


def change(page, changes):
    page.evaluate(f"explorer.change({changes})")
    wait_until_drawn(page)
    wait_for_answer(page)


@contextlib.contextmanager
def switched_off(model, parts):
    """Switch off parts of a ViT with hooks: "h2.1" is head 1 of layer 2, "a2" its attention, "m2" its MLP."""
    hooks = []
    for part in parts:
        layer, _, head = part[1:].partition(".")
        block = model.blocks[int(layer) - 1]
        if part[0] == "h":

            def without(_module, inputs, head=int(head) - 1, block=block):
                heads = inputs[0].unflatten(-1, (block.attn.num_heads, -1)).clone()
                heads[:, :, head] = 0
                return (heads.flatten(-2),)

            hooks.append(block.attn.proj.register_forward_pre_hook(without))
        else:
            branch = block.drop_path1 if part[0] == "a" else block.drop_path2
            hooks.append(branch.register_forward_hook(lambda _module, _inputs, output: output * 0))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_answer(page, network, inputs, parts=()):
    """Compare everything that the page computes with PyTorch, which uses the same rounded weights."""
    model, target = network.model, torch.tensor([TARGET])
    values = lambda name: evaluate(page, f"state.answer.{name}")  # noqa: E731
    explained = lambda name: evaluate(page, f"state.answer.explanations.get({TARGET}).{name}")  # noqa: E731
    with rounded(model), switched_off(model, parts):
        with torch.inference_mode():
            logits = model(inputs)[0]
        torch.testing.assert_close(values("scores"), logits, rtol=0, atol=1e-3)
        torch.testing.assert_close(values("probabilities"), logits.softmax(0), rtol=0, atol=1e-4)
        check_relative(explained("gradCam"), grad_cam(model, inputs, target))
        check_relative(explained("evidence"), best_method(model).explain(model, inputs, target))
        if not model.has_attention:
            return
        maps = attention_maps(model, inputs)
        torch.testing.assert_close(values("attention"), maps.flatten(), rtol=0, atol=1e-5)
        for part in parts:  # what is off does not count in rollout
            layer, _, head = part[1:].partition(".")
            if part[0] != "m":
                maps[int(layer) - 1, :, int(head) - 1 if head else slice(None)] = 0
        check_relative(values("rollout"), rollout_by_layer(maps, global_pool=model.global_pool))
        check_relative(explained("gradientRollout"), gradient_rollout_by_layer(model, inputs, target))
        check_relative(values("lens"), logit_lens(model, inputs))
        if model.global_pool == "avg":
            check_relative(explained("patchLogits"), patch_logits(model, inputs, target))
        contributions = head_contributions(model, inputs, target)[:, 0].clone()
        for part in parts:
            layer, _, head = part[1:].partition(".")
            if part[0] != "m":
                contributions[int(layer) - 1, int(head) - 1 if head else slice(None)] = 0
        check_relative(explained("contributions"), contributions)


def check_relative(ours, theirs):
    """Check that the largest difference is below 1e-4 of the largest value."""
    theirs = theirs.detach().flatten()
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max() + 1e-7


@pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS)
def test_the_page_computes_what_pytorch_computes(config, visit, tmp_path):
    network = random_network(config)
    images = write_live(network, tmp_path / "page.html")
    page = visit(tmp_path / "page.html")
    for index in range(len(images)):
        page.evaluate(f"selectImage({index})")
        change(page, f"{{target: {TARGET}}}")
        check_answer(page, network, network.prepare(images[index : index + 1]))


@pytest.mark.parametrize("name", ["vit-layer6-32-cifar10", "cnn-32-cifar10"])
def test_the_shipped_networks_compute_the_same_in_the_page(name, visit, tmp_path):
    network = checkpoint.load_network(ROOT / "model" / name, torch.device("cpu"))
    images = write_live(network, tmp_path / "page.html", 1)
    assert (tmp_path / "page.html").stat().st_size < 8e6
    page = visit(tmp_path / "page.html")
    wait_for_answer(page)
    change(page, f"{{target: {TARGET}}}")
    check_answer(page, network, network.prepare(images))


@pytest.mark.parametrize("fill", ["mean", "blur"])
def test_any_patches_can_be_removed(fill, visit, tmp_path):
    network = random_network(NETWORKS["token"])
    images = write_live(network, tmp_path / "page.html", 1)
    page = visit(tmp_path / "page.html")
    wait_for_answer(page)
    inputs = network.prepare(images)
    replace = make_fills(inputs, torch.Generator())[fill]
    grid = network.model.grid_size
    for removed in ([5], [0, 9, 10, 63], list(range(64))):
        mask = torch.zeros(1, grid, grid)
        mask.view(-1)[removed] = 1
        change(page, f"{{removed: new Set({removed}), fill: '{fill}', target: {TARGET}}}")
        expected = replace(at_pixels(mask, 32).bool())
        check_answer(page, network, expected)
        seen = evaluate(page, "state.answer.seen").view(32, 32, 3).permute(2, 0, 1)
        torch.testing.assert_close(seen, 255 * expected[0], rtol=0, atol=0.51)  # mean 0 and std 1 in this network
    page.evaluate("explorer.change({removed: new Set([7]), method: 'removal'})")
    wait_until_drawn(page)
    wait_for_answer(page)
    without = evaluate(page, "state.answer.removal").view(64, 10)
    masks = torch.eye(64).view(64, grid, grid)
    masks[:, 0, 7] = 1
    with rounded(network.model), torch.inference_mode():
        expected = torch.cat([network.model(replace(at_pixels(mask[None], 32).bool())) for mask in masks]).softmax(1)
    torch.testing.assert_close(without, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["token", "avg", "avg with a class token"])
def test_any_part_of_the_network_can_be_switched_off(name, visit, tmp_path):
    network = random_network(NETWORKS[name])
    images = write_live(network, tmp_path / "page.html", 1)
    page = visit(tmp_path / "page.html")
    wait_for_answer(page)
    for parts in (["h2.1"], ["h2.1", "h1.2", "m2"], ["a2"], ["a1", "h2.2"], ["m1"], []):
        change(page, f"{{off: new Set({parts}), target: {TARGET}}}")
        check_answer(page, network, network.prepare(images), parts)


def test_without_simd_the_results_are_the_same(visit, tmp_path):
    network = random_network(NETWORKS["avg"])
    images = write_live(network, tmp_path / "page.html", 1)
    text = (tmp_path / "page.html").read_text()
    (tmp_path / "page.html").write_text(text.replace("new WebAssembly.Memory", "new WebAssembly.Missing"))
    page = visit(tmp_path / "page.html")
    wait_for_answer(page)
    assert not page.evaluate("live.isFast")
    change(page, f"{{target: {TARGET}}}")
    check_answer(page, network, network.prepare(images))


def odd_images(folder):
    """Image files of odd sizes, formats, orientations and transparency."""
    random = np.random.RandomState(0)
    modes = ["RGB", "RGBA", "L", "LA", "P", "1"]
    for number in range(30):
        width, height = random.randint(1, 400, 2) if number else (32, 32)
        grid = random.randint(0, 256, (int(random.randint(1, 9)), int(random.randint(1, 9)), 4)).astype(np.uint8)
        image = Image.fromarray(grid).resize((int(width), int(height)), Image.Resampling.BICUBIC)
        ImageDraw.Draw(image).line((0, 0, int(width), int(height)), (255, 0, 0, 255), 3)
        image = image.convert(modes[number % len(modes)])
        suffix = ["png", "webp", "bmp", "gif"][number % 4] if image.mode in ("RGB", "L") else "png"
        exif = Image.Exif()
        exif[0x0112] = 1 + number % 8  # the orientation
        options = {"exif": exif} if suffix in ("png", "webp") else {}
        path = folder / f"image-{number}.{suffix}"
        image.save(path, **options, **({"lossless": True} if suffix == "webp" else {}))
        yield path


def test_images_are_read_as_pillow_reads_them(visit, tmp_path):
    network = random_network({"depth": 1})
    write_live(network, tmp_path / "page.html", 1)
    page = visit(tmp_path / "page.html")
    wait_for_answer(page)
    worst = {}
    for number, path in enumerate(odd_images(tmp_path)):
        page.locator("#file").set_input_files(path)
        for _ in range(200):
            if page.evaluate("images.length") == number + 2:
                break
            page.wait_for_timeout(20)
        ours = evaluate(page, "images.at(-1).pixels").view(32, 32, 3).permute(2, 0, 1)
        worst[path.name] = (ours - open_image(path, 32).float()).abs().max().item()
    assert max(worst.values()) <= 1, worst


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_an_image_can_be_dropped_or_pasted(way, visit, tmp_path):
    write_live(random_network({"depth": 1}), tmp_path / "page.html", 1)
    page = visit(tmp_path / "page.html")
    wait_for_answer(page)
    event = {"drop": "DragEvent('drop', {dataTransfer", "paste": "ClipboardEvent('paste', {clipboardData"}[way]
    letters = base64.b64encode((ROOT / "examples" / "cat.png").read_bytes()).decode()
    for content, expected in ((f"bytes('{letters}')", 2), ("'no image'", 2)):
        page.evaluate(
            f"""() => {{
                const transfer = new DataTransfer();
                transfer.items.add(new File([{content}], "a cat.png", {{type: "image/png"}}));
                document.dispatchEvent(new {event}: transfer, cancelable: true}}));
            }}"""
        )
        page.wait_for_timeout(500)
        wait_for_answer(page)
        assert page.evaluate("images.length") == expected
    assert page.locator("#subtitle").inner_text().startswith("a cat.png · your image · ")
    assert page.locator("#editing-note").inner_text() == "a cat.png is not an image that this browser can read."


def test_changes_can_be_undone_and_are_in_the_address(visit, tmp_path):
    write_live(random_network(NETWORKS["token"]), tmp_path / "page.html")
    page = visit(tmp_path / "page.html")
    wait_for_answer(page)
    board = page.locator("#patches").bounding_box()

    def at(row, column):
        """The center of a patch on the screen."""
        left, top = (
            board[axis] + board[side] * (place + 0.5) / 8
            for axis, side, place in (("x", "width", column), ("y", "height", row))
        )
        return left, top

    page.mouse.move(*at(1, 1))
    page.mouse.down()
    page.mouse.move(*at(1, 4), steps=2)  # faster than one event per patch
    page.mouse.up()
    removed = lambda: sorted(page.evaluate("[...state.removed]"))  # noqa: E731
    assert removed() == [9, 10, 11, 12]
    page.mouse.move(*at(6, 6))
    page.mouse.down()
    page.wait_for_timeout(700)
    page.mouse.up()  # a long press is one removal, too
    assert removed() == [9, 10, 11, 12, 54]
    page.keyboard.press("Control+z")
    page.locator("#tool-paint").click()
    page.mouse.click(*at(4, 4))
    painted = page.evaluate("Array.from(state.pixels)")
    wait_for_answer(page)  # the answer may move what is below it, between press and release
    page.locator("#switch-mlp").click()
    wait_for_answer(page)
    assert page.locator("#answers-title").inner_text() == (
        "Probabilities with your painting, without 4 patches, without the MLP of layer 3"
    )
    assert " → " in page.locator("h1").inner_text()
    probabilities = evaluate(page, "state.answer.probabilities")
    page.wait_for_timeout(600)  # the address follows after a moment
    address = page.url
    page.keyboard.press("Control+z")
    assert page.evaluate("state.off.size") == 0
    page.locator("#undo").click()
    assert page.evaluate("state.pixels") is None
    page.locator("#undo").click()
    assert removed() == []
    page.locator("#redo").click()
    assert removed() == [9, 10, 11, 12]
    page.locator("#reset").click()
    wait_for_answer(page)
    assert page.locator("#answers-title").inner_text() == "Class probabilities"

    page.evaluate(f"location.hash = {address.split('#')[1]!r}")  # in the same page
    page.wait_for_timeout(100)
    wait_for_answer(page)
    torch.testing.assert_close(evaluate(page, "state.answer.probabilities"), probabilities)

    other = visit(tmp_path / "page.html", fragment=address.split("#")[1])
    wait_for_answer(other)
    assert other.evaluate("Array.from(state.pixels)") == painted
    wait_until_drawn(other)
    torch.testing.assert_close(evaluate(other, "state.answer.probabilities"), probabilities)


def press(page, name):
    """Press a button of the open card and return the card's result."""
    page.locator("#card-actions").get_by_text(name, exact=True).click()
    for _ in range(600):
        page.wait_for_timeout(20)
        if not page.evaluate("game.busy") and page.evaluate(SHOWS_ANSWER):
            wait_until_drawn(page)
            return page.locator("#card-result").inner_text()
    raise AssertionError("the card has not answered")


def test_cards_measure_the_network(visit, tmp_path):
    network = random_network(NETWORKS["token"])
    inputs = network.prepare(write_live(network, tmp_path / "page.html", 1))
    page = visit(tmp_path / "page.html", fragment="card=fool")
    wait_for_answer(page)
    order = page.evaluate("ranking(64)")

    def predict(inputs):
        with rounded(network.model), torch.inference_mode():
            return network.model(inputs)[0].softmax(0)

    def without(patches):
        mask = torch.zeros(1, 8, 8)
        mask.view(-1)[patches] = 1
        return predict(torch.where(at_pixels(mask, 32).bool(), 0.0, inputs))

    whole = predict(inputs)
    was = whole.argmax().item()
    fewest = next(count for count in range(1, 65) if without(order[:count]).argmax() != was)
    assert press(page, "Let AttnLRP try").startswith(f"AttnLRP needs {fewest}: ")
    change(page, f"{{removed: new Set({order[:fewest]})}}")
    assert page.locator("#card-result").inner_text().startswith("Fooled! ")
    assert page.locator("#count").inner_text() == f"{fewest} of 64 removed"

    page.evaluate("edit({removed: new Set()})")
    page.evaluate("openCard('head')")
    change(page, "{layer: 2, head: 3}")
    result = press(page, "Measure all heads")
    losses = {}
    for layer in range(1, 4):
        for head in range(1, 4):
            with switched_off(network.model, [f"h{layer}.{head}"]):
                losses[layer, head] = predict(inputs)[was].item()
    ranked = sorted(losses, key=losses.get)
    assert result.startswith("1. Without head {1} of layer {0}: ".format(*ranked[0]))
    assert f"number {ranked.index((2, 2)) + 1} of 9: " in result

    page.evaluate("openCard('guess')")
    press(page, "Start")
    for patch in (0, 1, order[0]):
        page.locator("#patches button").nth(patch).click()
    result = press(page, "Show the map")
    assert f"You found {len({0, 1, order[0]} & set(order[:3]))} of 3" in result
    assert page.evaluate("state.removed.size") == 0
    assert page.locator("#main-title").inner_text().startswith("AttnLRP")


@pytest.mark.parametrize("name", ["token", "cnn"])
def test_the_walk_and_the_page_fit_a_phone(name, visit, tmp_path):
    write_live(random_network(NETWORKS[name]), tmp_path / "page.html")
    page = visit(tmp_path / "page.html", NARROW, has_touch=True)
    wait_for_answer(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("#explain").is_visible() == (name == "token")
    if name == "cnn":
        return
    page.locator("#explain").tap()
    page.locator("#walk-steps button").nth(5).tap()
    page.wait_for_timeout(300)
    scores = page.locator("#walk-picture ol").inner_text()
    for changed in ("{removed: new Set([5, 6])}", "{removed: new Set()}"):
        change(page, changed)
        page.wait_for_timeout(300)
        assert (page.locator("#walk-picture ol").inner_text() == scores) == ("5" not in changed)
    for step in range(6):
        page.locator("#walk-steps button").nth(step).tap()
        wait_until_drawn(page)
        page.wait_for_timeout(100)
        assert page.locator("#walk-picture").locator("canvas, ol").count() >= 1
        assert "NaN" not in page.locator("#walk").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("name", ["token", "avg"])
def test_the_walk_shows_the_numbers_of_pytorch(name, visit, tmp_path):
    network = random_network(NETWORKS[name])
    images = write_live(network, tmp_path / "page.html", 1)
    page = visit(tmp_path / "page.html")
    wait_for_answer(page)
    page.evaluate("drawWalk = (numbers) => { window.walked = numbers; }")
    model, patch, head = network.model, 9, 1
    token = patch + model.num_prefix_tokens

    def followed(rows):
        """The row of what the head reads: the class token or the mean of the patches."""
        return rows[0, 0] if model.global_pool == "token" else rows[0, model.num_prefix_tokens :].mean(0)

    with rounded(model), torch.inference_mode():
        tokens = model.embed(network.prepare(images))
        position = model.pos_embed[0]
        expected = {
            "projected": tokens[0, token] - position[token],
            "similarity": torch.cosine_similarity(position[token][None], position[model.num_prefix_tokens :]),
        }
        for layer, block in enumerate(model.blocks, start=1):
            mixed, weights = block.attn.forward_with_weights(block.norm1(tokens))
            query, key, value = (part[:, head - 1] for part in block.attn.project(block.norm1(tokens)))
            made = block.mlp(block.norm2(tokens + mixed))
            expected |= {
                "query": followed(query),
                "key": key[0, token],
                "products": followed(query) * key[0, token] * block.attn.scale,
                "scores": followed(query @ key.mT * block.attn.scale),
                "weights": followed(weights[:, head - 1]),
                "mixed": followed(weights[:, head - 1] @ value),
                "before": followed(tokens),
                "gathered": followed(mixed),
                "made": followed(made),
                "after": followed(tokens + mixed + made),
            }
            tokens = tokens + mixed + made
            page.evaluate("delete window.walked")
            change(page, f"{{step: 4, layer: {layer}, head: {head + 1}, token: {patch}}}")
            page.wait_for_timeout(100)
            for part, values in expected.items():
                check_relative(evaluate(page, f"walked.{part}"), values)
        last = {"last": followed(tokens), "logits": model(network.prepare(images))[0]}
        norm = model.fc_norm if model.global_pool == "avg" else model.norm
        for part, values in {**last, "final": norm(last["last"])}.items():
            check_relative(evaluate(page, f"walked.{part}"), values)


def test_a_page_without_an_image_opens_with_drawn_ones_for_drawn_classes(runs, visit, monkeypatch):
    run_test(runs, "--model_path model/vit --html live.html --live", monkeypatch)
    page = visit(runs / "live.html")
    wait_for_answer(page)
    names = page.locator("#images").inner_text().split()
    assert names == ["drawn", "circle", "drawn", "square", "drawn", "triangle", "drawn", "diamond"]


def test_a_page_without_an_image_opens_with_photos(tmp_path, visit, monkeypatch):
    run_test(tmp_path, f"--model_path {ROOT / 'model' / 'cnn-32-cifar10'} --html live.html --live", monkeypatch)
    page = visit(tmp_path / "live.html")
    wait_for_answer(page)
    assert re.fullmatch(r"cat \d\d %", page.locator("h1").inner_text())
    network = checkpoint.load_network(ROOT / "model" / "cnn-32-cifar10", torch.device("cpu"))
    for name in ("deer", "truck", "bird"):
        page.get_by_role("button", name=name, exact=True).first.click()
        wait_until_drawn(page)
        wait_for_answer(page)
        with rounded(network.model):
            expected = network.logits(open_image(ROOT / "examples" / f"{name}.png", 32)[None]).softmax(1)[0]
        torch.testing.assert_close(evaluate(page, "state.answer.probabilities"), expected, rtol=0, atol=1e-4)
        assert page.locator("h1").inner_text() == f"{network.classes[expected.argmax()]} {100 * expected.max():.0f} %"


def test_changes_keep_what_one_watches(visit, tmp_path):
    images = write_live(random_network(NETWORKS["token"]), tmp_path / "page.html")
    page = visit(tmp_path / "page.html")
    wait_for_answer(page)
    change(page, "{token: 20, layer: 2}")
    scale = page.locator("#main-scale, #main-most, #main-uniform").all_inner_texts()
    for board in ("#photo-board", "#main-board"):
        page.locator(board).click(position={"x": 10, "y": 10})
        wait_for_answer(page)
        assert page.locator("#main-title").inner_text() == "Attention from row 3, column 5"
        assert page.locator("#main-scale, #main-most, #main-uniform").all_inner_texts() == scale
        assert page.evaluate("state.removed.has(0)") == (board == "#photo-board")  # the second click restores it
    page.locator("#tool-paint").click()
    page.locator("#photo-board").click()
    page.evaluate("selectImage(1)")
    wait_until_drawn(page)
    wait_for_answer(page)
    assert page.locator("#strength-name").inner_text() == "75 %"
    assert evaluate(page, "shownPicture().color.getContext('2d').getImageData(0, 0, 1, 1).data")[:3].tolist() == (
        images[1][:, 0, 0].tolist()
    )


def test_the_page_reports_what_the_rounding_of_the_weights_changes(runs, visit, monkeypatch):
    run_test(runs, "--model_path model/cnn --mode cifar-single --index 3 --html live.html --live", monkeypatch)
    text = visit(runs / "live.html").locator("#origin").inner_text()
    network = checkpoint.load_network(runs / "model" / "cnn", torch.device("cpu"))
    test = network.load_test_images(str(runs / "data"))
    original = network.logits(test.images)
    with rounded(network.model):
        changed = network.logits(test.images)
    after, before = (100 * (logits.argmax(1) == test.labels).double().mean().item() for logits in (changed, original))
    change = 100 * (changed.softmax(1) - original.softmax(1))[3].abs().max().item()
    measured = re.search(
        r"by at most ([\d.]+) points\. It classifies ([\d.]+) % of 1000 test images correctly, and with its original "
        r"weights ([\d.]+) %",
        text,
    )
    assert [float(number) for number in measured.groups()] == pytest.approx([change, after, before], abs=0.051)


def test_live_needs_a_page(runs, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_test(runs, "--model_path model/vit --live", monkeypatch)
    assert stopped.value.code == 2
    assert "add --html" in capsys.readouterr().err
