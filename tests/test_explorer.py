"""The page to explore predictions, tested in a real browser: its numbers, its keys, and that it works offline."""

import base64
import dataclasses
import io
import os
import re
import shutil

import numpy as np
import pytest
import torch
from browser import NARROW, evaluate, small_network, wait_until_drawn
from helpers import ROOT, run_test
from PIL import Image

from model import build_model
from vit_cifar10.data import dataset
from vit_cifar10.data.images import open_image
from vit_cifar10.explain import explorer
from vit_cifar10.explain.explanation import Explanation
from vit_cifar10.explain.lens import logit_lens
from vit_cifar10.explain.maps import attention_maps, grad_cam, gradient_rollout_by_layer, rollout_by_layer
from vit_cifar10.explain.methods import best_method
from vit_cifar10.explain.propagation import attn_lrp, deep_lift
from vit_cifar10.plots.style import LINE_COLORS
from vit_cifar10.runs import checkpoint

CLOSE = {"rtol": 0, "atol": 1e-5}  # attention has 16 bits, everything else is float32


@pytest.fixture(scope="module")
def pages(runs):
    """The pages of three test images for the small ViT and the small CNN."""
    networks = {name: checkpoint.load_network(runs / "model" / name, torch.device("cpu")) for name in ("vit", "cnn")}
    test = dataset.load_test("shapes", "")
    for name, network in networks.items():
        entries = [
            explorer.page_entry(Explanation(network, test.images[i]), f"image {i}", "a label") for i in (5, 10, 13)
        ]
        explorer.write_page(runs / f"{name}.html", network, entries)
    return {name: (runs / f"{name}.html", network, test.images) for name, network in networks.items()}


def read(page):
    return page.locator("#readout").inner_text()


def test_selecting_a_patch_shows_its_row_and_column_of_the_attention(pages, visit):
    path, network, images = pages["vit"]
    page = visit(path)
    maps = attention_maps(network.model, network.prepare(images[5:6]))[:, 0]
    (row, column), grid = (2, 3), 4
    token = 1 + row * grid + column
    page.locator("#tool-select").click()
    page.locator("#patches button").nth(row * grid + column).click()
    page.locator("#other summary").click()
    page.wait_for_function("byId('other-most').textContent")  # a browser tells late that something has been opened
    page.locator("#layer").fill("2")
    page.locator("#head").fill("3")  # mean, max, head 1, head 2
    page.locator("#strength").fill("100")
    wait_until_drawn(page)
    assert page.locator("#main-title").inner_text() == "Attention from row 3, column 4"
    ours = maps[1, 1]
    torch.testing.assert_close(evaluate(page, "explorer.mainMap().values"), ours[token, 1:], **CLOSE)
    torch.testing.assert_close(evaluate(page, "explorer.attentionOf(11, false).values"), ours[1:, token], **CLOSE)
    assert page.evaluate("explorer.mainMap().classToken") == pytest.approx(ours[token, 0].item(), abs=1e-5)
    check_readout(page.locator("#readout").inner_text(), ours[token, 1:], ours[1:, token], grid)
    token_percent = re.search(r"class token: ([\d.]+) %", page.locator("#tokens").inner_text())
    assert float(token_percent[1]) / 100 == pytest.approx(ours[token, 0].item(), abs=6e-4)
    for own_scale in (False, True):
        page.locator("#own-scale").set_checked(own_scale)
        wait_until_drawn(page)
        for board, values, whole in (
            ("main", ours[token, 1:], maps[:, :, token, 1:]),
            ("other", ours[1:, token], maps[:, :, 1:, token]),
        ):
            maximum = (values if own_scale else whole).max().item()
            most = re.search(r"[\d.]+", page.locator(f"#{board}-most").inner_text())
            assert float(most[0]) / 100 == pytest.approx(maximum, abs=6e-4)
            check_colors(page, f"{board}-canvas", values, maximum=maximum)
            check_uniform(page, board, maximum)
    page.locator("#head").fill("0")
    wait_until_drawn(page)
    torch.testing.assert_close(evaluate(page, "explorer.mainMap().values"), maps[1].mean(0)[token, 1:], **CLOSE)
    page.locator("#head").fill("1")
    wait_until_drawn(page)
    torch.testing.assert_close(evaluate(page, "explorer.mainMap().values"), maps[1].amax(0)[token, 1:], **CLOSE)


def check_readout(text, row, column, grid):
    """Check the three strongest patches of both boards, with their values."""
    shown = re.findall(r"row (\d+), column (\d+) \(([\d.]+) %\)", text)
    for values, places in ((row, shown[:3]), (column, shown[3:])):
        indices = [(int(r) - 1) * grid + int(c) - 1 for r, c, _ in places]
        torch.testing.assert_close(values[indices], values.topk(3).values, rtol=0, atol=1e-5)
        fractions = torch.tensor([float(percent) / 100 for *_, percent in places])
        torch.testing.assert_close(fractions, values.topk(3).values, rtol=0, atol=6e-4)


def test_a_map_lies_over_a_faint_gray_image_and_removed_patches_have_no_color(pages, visit):
    import matplotlib

    path, network, images = pages["vit"]
    page = visit(path)
    page.evaluate("explorer.change({removed: new Set([5]), layer: 3})")
    wait_until_drawn(page)
    maps = attention_maps(network.model, network.prepare(images[5:6]))[:, 0]
    values = maps[2].mean(0)[0, 1:].view(4, 4).double()
    colors = 255 * matplotlib.colormaps["viridis"]((values / maps[:, :, 0, 1:].max()).sqrt().numpy())[..., :3]
    gray = 127.5 + 0.35 * (images[5].float().mean(0).numpy() - 127.5)
    expected = 0.75 * colors.repeat(8, 0).repeat(8, 1) + 0.25 * gray[..., None]
    board = page.evaluate("document.getElementById('main-canvas').toDataURL().split(',')[1]")
    board = np.asarray(Image.open(io.BytesIO(base64.b64decode(board))).convert("RGB")).astype(int)
    shown = board[7::15, 7::15]  # the center of each pixel of the image
    removed = np.zeros((32, 32), bool)
    removed[8:16, 8:16] = True
    np.testing.assert_allclose(shown[~removed], expected[~removed], atol=3)
    assert (np.ptp(shown[removed], axis=1) == 0).all()  # gray, with a hatching in black and white


def check_uniform(page, board, maximum):
    """Check the text below a scale, and that the scale has a white mark at 1/N, where N is the number of tokens."""
    assert page.locator(f"#{board}-uniform").inner_text() == "uniform = 1/17 = 5.88 %"
    column = round(512 * (1 / 17 / maximum) ** 0.5)
    pixel = page.evaluate(
        """([board, column]) => {
            const context = new OffscreenCanvas(1, 1).getContext("2d");
            context.drawImage(document.getElementById(`${board}-scale`), -column, -9);
            return Array.from(context.getImageData(0, 0, 1, 1).data);
        }""",
        [board, column],
    )
    assert pixel == [255] * 4


def check_colors(page, canvas, values, is_signed=False, maximum=None):
    """Check, with the overlay at 100 %, that each patch has the color of its value.

    The color is viridis of the square root of the value or, if values are signed, blue to red with white at 0.
    """
    import matplotlib

    side = round(len(values) ** 0.5)
    pixels = page.evaluate(
        """([id, side]) => {
            const shown = document.getElementById(id), cell = shown.width / side;
            const context = new OffscreenCanvas(shown.width, shown.width).getContext("2d", {willReadFrequently: true});
            context.drawImage(shown, 0, 0);
            const at = (i) => [i % side, Math.floor(i / side)].map((place) => Math.floor((place + 0.3) * cell));
            const color = (_, i) => Array.from(context.getImageData(...at(i), 1, 1).data.slice(0, 3));
            return Array.from({length: side * side}, color);
        }""",
        [canvas, side],
    )
    palette = matplotlib.colormaps["RdBu_r" if is_signed else "viridis"]
    values = values.double()
    maximum = maximum or values.abs().max()
    fractions = values / maximum / 2 + 0.5 if is_signed else (values / maximum).sqrt()
    expected = 255 * palette((255 * fractions).round().int().numpy())[:, :3]
    np.testing.assert_allclose(pixels, expected, atol=3)


def test_the_other_maps_match_explain_for_every_class_and_layer(pages, visit):
    path, network, images = pages["vit"]
    page = visit(path)
    page.evaluate("explorer.change({image: 1})")
    inputs = network.prepare(images[10:11])
    classes = torch.arange(10)
    many = inputs.expand(10, -1, -1, -1)
    maps = attention_maps(network.model, inputs)
    rollouts, gradients = rollout_by_layer(maps)[:, 0], gradient_rollout_by_layer(network.model, many, classes)
    cams, evidence = grad_cam(network.model, many, classes), attn_lrp(network.model, many, classes)
    for target in (0, 7):
        for layer in (1, 3):
            page.evaluate(f"explorer.change({{target: {target}, layer: {layer}}})")
            for method, expected in (
                ("rollout", rollouts[layer - 1]),
                ("gradientRollout", gradients[layer - 1, target]),
                ("gradCam", cams[target]),
                ("evidence", evidence[target]),
            ):
                page.evaluate(f"explorer.change({{method: '{method}'}})")
                values = evaluate(page, "explorer.mainMap().values")
                torch.testing.assert_close(values, expected.flatten(), **CLOSE)


def test_the_maps_of_a_cnn_match_deep_lift_and_grad_cam(pages, visit):
    path, network, images = pages["cnn"]
    page = visit(path)
    assert page.locator("#methods [aria-checked=true]").inner_text() == "DeepLIFT"
    assert page.locator("#methods button").all_inner_texts() == ["DeepLIFT", "Grad-CAM", "Removal"]
    many = network.prepare(images[5:6]).expand(10, -1, -1, -1)
    for method, explain in (("evidence", deep_lift), ("gradCam", grad_cam)):
        expected = explain(network.model, many, torch.arange(10))
        for target in range(10):
            page.evaluate(f"explorer.change({{method: '{method}', target: {target}}})")
            torch.testing.assert_close(evaluate(page, "explorer.mainMap().values"), expected[target].flatten(), **CLOSE)


@pytest.mark.parametrize(("name", "method"), [("vit", "AttnLRP"), ("cnn", "DeepLIFT")])
def test_red_patches_count_for_the_selected_class_and_blue_ones_against_it(name, method, pages, visit):
    path, network, images = pages[name]
    page = visit(path)
    model, inputs = network.model, network.prepare(images[5:6])
    maps = best_method(model).for_classes(model, inputs, torch.arange(10)[None])[0].flatten(1)
    target = torch.minimum(maps.amax(1), -maps.amin(1)).argmax().item()  # the class with most of both signs
    page.locator(f"#classes [data-class='{target}']").click()  # the open map of the ViT is the same for every class
    page.locator("#strength").fill("100")
    wait_until_drawn(page)
    values, class_name = evaluate(page, "explorer.mainMap().values"), network.classes[target]
    torch.testing.assert_close(values, maps[target], **CLOSE)
    assert page.locator("#main-title").inner_text() == f"{method}: for (red) and against (blue) “{class_name}”"
    check_colors(page, "main-canvas", values, is_signed=True)
    with torch.inference_mode():
        score = model(inputs)[0, target].item()
        mean_color_score = model(torch.zeros_like(inputs))[0, target].item()
    number, largest = r"([+−]?[\d.e-]+)", values.abs().max().item()
    rest = "everything else (.*)" if name == "vit" else "an image in the mean color()"
    together = rf"All patches together: {number}; {rest}: {number}; the score of “{class_name}”: {number}. Point at .*"
    sum_shown, _, rest_shown, score_shown = re.fullmatch(together, read(page)).groups()
    check_number(sum_shown, values.sum().item())
    check_number(rest_shown, score - values.sum().item() if name == "vit" else mean_color_score)
    check_number(score_shown, score)
    for end, word, expected in (("least", "against", -largest), ("most", "for", largest)):
        check_number(page.locator(f"#main-{end}").inner_text().removeprefix(f"{word}: "), expected)
    for patch in (values.argmin().item(), values.argmax().item()):
        page.locator("#patches button").nth(patch).hover()
        wait_until_drawn(page)
        place = f"Row {patch // model.grid_size + 1}, column {patch % model.grid_size + 1}"
        check_number(
            re.fullmatch(rf"{place}: {number} of the score of “{class_name}”\.", read(page))[1], values[patch].item()
        )


def check_number(text, value):
    """Check a signed number with two decimals or, if it is small, two significant digits."""
    assert text[0] == ("−" if value < 0 else "+")
    tolerance = 0.05 * abs(value) if abs(value) < 0.0995 else 0.005
    assert float(text.replace("−", "-")) == pytest.approx(value, rel=0, abs=tolerance + 1e-5)


def test_a_map_without_any_evidence_says_so(visit, tmp_path):
    network = small_network({"depth": 1})
    torch.nn.init.zeros_(network.model.head.weight)
    entry = explorer.page_entry(Explanation(network, dataset.draw_shapes(1, 32, seed=0)[0][0]), "image", "")
    explorer.write_page(tmp_path / "page.html", network, [entry])
    page = visit(tmp_path / "page.html")
    page.locator("#classes button").first.click()
    wait_until_drawn(page)
    assert re.fullmatch(r"AttnLRP for “class \d”: all values are 0", page.locator("#main-title").inner_text())
    assert read(page).startswith("All patches together: 0.00; ")


@pytest.mark.parametrize("name", ["vit", "cnn"])
def test_removing_one_patch_shows_the_measurement_and_removing_two_shows_no_guess(name, pages, visit):
    path, network, images = pages[name]
    page = visit(path)
    grid = 4 if name == "vit" else 8
    inputs = network.prepare(images[5:6])
    side = inputs.shape[-1] // grid
    inputs[:, :, side : 2 * side, 2 * side : 3 * side] = 0  # the patch in row 2, column 3
    with torch.inference_mode():
        whole = network.model(network.prepare(images[5:6])).softmax(1)[0]
        expected = network.model(inputs).softmax(1)[0]
    page.locator("#patches button").nth(grid + 2).click()
    wait_until_drawn(page)
    for choice in page.locator("#classes button").all():
        index = int(choice.get_attribute("data-class"))
        text = choice.inner_text().split("→")[1]
        assert float(re.search(r"[\d.]+", text)[0]) / 100 == pytest.approx(expected[index].item(), abs=6e-4)
    assert page.locator("#answers-title").inner_text() == "Probabilities without row 2, column 3"
    predicted = whole.argmax()
    before, after = re.search(r"Without row 2, column 3: .*? ([\d.]+) → ([\d.]+) %", read(page)).groups()
    assert float(before) / 100 == pytest.approx(whole[predicted].item(), abs=6e-4)
    assert float(after) / 100 == pytest.approx(expected[predicted].item(), abs=6e-4)
    kept = whole.argmax() == expected.argmax()
    assert re.search(r": still .* → " if kept else r"; now ", page.locator("#removal-note").inner_text())
    for target in (0, 7):
        page.evaluate(f"explorer.change({{method: 'removal', target: {target}}})")
        lost = page.evaluate(f"explorer.mainMap().values[{grid + 2}]")
        assert lost == pytest.approx((whole[target] - expected[target]).item(), abs=1e-6)
    page.locator("#patches button").nth(0).click()
    wait_until_drawn(page)
    assert "is unknown" in page.locator("#removal-note").inner_text()
    assert "→" not in page.locator("#classes").inner_text()
    page.locator("#restore").click()
    wait_until_drawn(page)
    assert not page.evaluate("explorer.state.removed.size")


def test_everything_works_from_the_keyboard(pages, visit):
    page = visit(pages["vit"][0])
    state = lambda: page.evaluate("({...explorer.state, removed: [...explorer.state.removed]})")  # noqa: E731
    page.keyboard.press("[")
    page.keyboard.press(".")
    page.keyboard.press(".")
    assert (state()["layer"], state()["head"]) == (2, 2)
    page.locator("#layer").focus()
    page.keyboard.press("ArrowLeft")
    assert state()["layer"] == 1
    page.locator("#patches button").first.focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft", "ArrowLeft", "Enter"):
        page.keyboard.press(key)
    wait_until_drawn(page)
    assert (state()["token"], state()["hover"], state()["removed"]) == ("class", 8, [8])  # it stops at the edge
    assert page.locator("#patches button").nth(8).get_attribute("aria-label").endswith(", removed")
    page.locator("#methods button").first.focus()
    for method, button in (("evidence", "AttnLRP"), ("rollout", "Rollout")):
        page.keyboard.press("ArrowRight")
        wait_until_drawn(page)
        assert state()["method"] == method
        assert page.locator("#methods [aria-checked=true]").inner_text() == button
    for name, value in (("Layer", "1 of 3"), ("Overlay", "75 %")):
        slider = page.get_by_role("slider", name=name)
        assert slider.get_attribute("aria-valuetext") == value
    page.locator("#tool-remove").press("ArrowRight")
    page.locator("#patches [tabindex='0']").press("Enter")
    wait_until_drawn(page)
    assert state()["token"] == 8
    assert page.locator("#patches [aria-selected=true]").get_attribute("aria-label") == "row 3, column 1, removed"
    assert not page.locator("#announcement").inner_text()
    page.keyboard.press("r")  # only now does a screen reader read the value
    page.wait_for_timeout(200)
    assert page.locator("#announcement").inner_text() == read(page)
    page.keyboard.press("Escape")
    wait_until_drawn(page)
    assert state()["token"] == "class"
    page.locator("#thumbnails [tabindex='0']").press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert (state()["method"], state()["layer"], state()["head"]) == ("attention", 2, 3)
    page.evaluate("explorer.change({layer: 1})")
    page.locator("#play").press("Space")
    for _ in range(100):  # Playwright's own waiting evaluates strings, which the page's policy forbids
        page.wait_for_timeout(100)
        if (state()["layer"], state()["timer"]) == (3, None):
            break
    assert (state()["layer"], state()["timer"]) == (3, None)
    unnamed = "[...document.querySelectorAll('button')].filter((b) => !b.innerText.trim() && !b.ariaLabel).length"
    assert page.evaluate(unnamed) == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(ids) == len(set(ids))


def test_the_select_tool_keeps_a_patch_while_the_mouse_moves_on(pages, visit):
    path, network, _ = pages["vit"]
    page, grid = visit(path), network.model.grid_size
    title = lambda: page.locator("#main-title").inner_text()  # noqa: E731
    page.locator("#tool-select").click()
    page.locator("#patches button").nth(grid + 1).click()
    page.locator("#patches button").nth(0).hover()
    wait_until_drawn(page)
    assert title() == "Attention from row 2, column 2"
    page.locator("#patches button").nth(grid + 1).click()  # the same patch again clears the selection
    wait_until_drawn(page)
    assert title() == "Attention from the class token"
    assert page.evaluate("explorer.state.removed.size") == 0


def test_a_click_on_the_chart_selects_a_layer(pages, visit):
    path, network, images = pages["vit"]
    page = visit(path)
    lens = logit_lens(network.model, network.prepare(images[5:6]))[:, 0].softmax(1)
    assert page.locator("#lens .column").count() == 1 + 3
    for layer in range(1, 4):
        page.locator("#lens .column").nth(layer).click(force=True)
        assert page.evaluate("explorer.state.layer") == layer
        wait_until_drawn(page)
        values = page.locator("#lens .column title").nth(layer).text_content().removeprefix(f"after layer {layer}: ")
        for class_name, value in (part.removesuffix(" %").rsplit(" ", 1) for part in values.split(", ")):
            expected = lens[layer, network.classes.index(class_name)].item()
            assert float(value) == pytest.approx(100 * expected, abs=0.051)


def test_classes_have_their_own_lines_in_the_colors_of_the_other_pictures(pages, visit):
    page = visit(pages["vit"][0])
    lines = page.evaluate("data.classes.map((_, index) => lineOf(index, images[0]))")
    assert len({(line["stroke"], line["stroke-dasharray"]) for line in lines}) == 10
    assert {line["stroke"].replace("currentColor", "#000000") for line in lines} == set(LINE_COLORS)


@pytest.mark.quick
def test_borders_and_bars_have_enough_contrast_in_both_themes():
    def luminance(color):
        parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return np.dot(linear, (0.2126, 0.7152, 0.0722))

    themes = re.findall(r"^:root.*?\{(.*?)\}", (explorer.PAGE / "page.css").read_text(), re.DOTALL | re.MULTILINE)[:2]
    for theme in themes:
        colors = dict(re.findall(r"--([\w-]+): (#\w{6})", theme))
        for name, least in (("edge", 3), ("bar", 3), ("mark", 3), ("accent", 3), ("soft", 4.5)):
            for ground in ("panel", "ground"):
                darker, lighter = sorted(luminance(colors[part]) for part in (name, ground))
                assert (lighter + 0.05) / (darker + 0.05) >= least, (name, ground)


def test_the_map_shows_the_scores_and_a_click_on_a_block_selects_its_layer(pages, visit):
    path, network, images = pages["vit"]
    page = visit(path)
    page.evaluate("explorer.change({method: 'evidence'})")  # which has no layers
    page.locator(".wide .block").nth(1).click()
    wait_until_drawn(page)
    assert page.evaluate("[explorer.state.layer, explorer.state.method]") == [2, "attention"]
    assert page.locator(".wide .block.selected").get_attribute("data-layer") == "2"
    top = network.logits(images[5:6]).softmax(1)[0].topk(3)
    shown = page.locator(".wide .score").all_text_contents()
    for text, index, value in zip(shown, top.indices.tolist(), top.values.tolist(), strict=True):
        assert text.startswith(network.classes[index])
        assert float(re.search(r"([\d.]+) %", text)[1]) / 100 == pytest.approx(value, abs=6e-4)
    page.set_viewport_size(NARROW)
    assert page.locator(".narrow .block").count() == 3
    assert page.locator(".narrow").is_visible()
    assert not page.locator(".wide").is_visible()


@pytest.mark.parametrize("config", [{"width": 6}, {"model": "fast-cnn", "width": 6}])
def test_the_map_of_a_cnn_has_the_sizes_of_its_layers(config):
    config = {"model": "cnn", "num_classes": 10, "img_size": 32, **config}
    network = dataclasses.replace(small_network({}), model=build_model(config).eval(), saved={"model_config": config})
    sizes = []  # of the input of every convolution and of the head
    for module in network.model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[1:]))
    network.model(torch.zeros(1, 3, 32, 32))
    convolutions = [size for size in sizes if len(size) == 3]
    facts = explorer.map_facts(network)
    assert [(channels, side, side) for side, channels in facts["maps"]][:-1] == convolutions[1:]
    assert facts["numbers"] == sizes[len(convolutions)].numel()


def test_the_diagram_in_the_readme_is_the_map_of_the_page(tmp_path):
    network = checkpoint.load_network(ROOT / "model" / "vit-layer12-32-cifar10", torch.device("cpu"))
    explorer.write_map(tmp_path / "network.svg", network, open_image(ROOT / "examples" / "cat.png", 32))
    drawn, stored = (
        re.sub(r"""scale\([\d.e-]+|\d+ %|base64,[^"]+""", "", (folder / "network.svg").read_text())
        for folder in (tmp_path, ROOT / "examples")
    )
    assert drawn == stored, "run benchmarks/showcase.py map"
    assert stored.count('class="block"') == 12


def test_thumbnails_images_and_themes_can_be_selected(pages, visit):
    page = visit(pages["vit"][0], color_scheme="dark")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.get_by_label("layer 1, head 2").click()
    wait_until_drawn(page)
    assert page.locator("#layer-name").inner_text() == "1 of 3"
    assert page.locator("#head-name").inner_text() == "2 of 2"
    page.locator("#images button").nth(2).click()
    wait_until_drawn(page)
    assert page.locator("#subtitle").inner_text().startswith("image 13 · ")


@pytest.mark.parametrize("name", ["vit", "cnn"])
def test_it_fits_a_phone_and_responds_to_touch(name, pages, visit):
    page = visit(pages[name][0], NARROW, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    cell = page.locator("#patches button").nth(5)
    for removed in (1, 0):  # the second tap restores the patch
        cell.tap()
        assert page.evaluate("explorer.state.removed.size") == removed
    page.locator("#tool-select").tap()
    cell.tap()
    wait_until_drawn(page)
    assert page.evaluate("[explorer.state.token, explorer.state.removed.size]") == [5, 0]
    small = """[...document.querySelectorAll("button, select, summary, input[type=range]")].filter((control) => {
        const { width, height } = control.getBoundingClientRect();
        return width && Math.min(width, height) < (control.closest("#patches") ? 40 : 44);
    }).length"""
    assert page.evaluate(small) == 0
    assert page.locator("#classes").bounding_box()["y"] < 740  # a phone's first screen


@pytest.mark.parametrize(("method", "palette"), [("attention", "viridis"), ("evidence", "RdBu_r")])
def test_the_view_is_saved_as_a_picture(method, palette, pages, visit, tmp_path):
    import matplotlib

    page = visit(pages["vit"][0])
    page.evaluate(f"explorer.change({{method: '{method}'}})")
    wait_until_drawn(page)
    with page.expect_download() as download:
        page.locator("#export").click()
    assert download.value.suggested_filename == f"image-5-{method}.png"
    download.value.save_as(tmp_path / "view.png")
    picture = np.asarray(Image.open(tmp_path / "view.png").convert("RGB")).astype(int)
    top, margin, side = 98, 24, 480  # 3.8 lines of 26 pixels
    for place, name in enumerate(("photo", "main")):
        board = page.evaluate(f"document.getElementById('{name}-canvas').toDataURL().split(',')[1]")
        board = np.asarray(Image.open(io.BytesIO(base64.b64decode(board))).convert("RGB")).astype(int)
        left = margin + place * (side + margin)
        assert abs(picture[top + 1 : top + side, left : left + side] - board[:-1]).mean() < 3
    ends = picture[top + side + 15, [left, left + side - 1]]  # of the color scale
    alpha = 0.85 if method == "evidence" else 0.75
    expected = alpha * 255 * matplotlib.colormaps[palette]([0.0, 1.0])[:, :3] + (1 - alpha) * 127.5
    np.testing.assert_allclose(ends, expected, atol=3)
    background = picture[2, 2]
    for part in (np.s_[8:36, 24:100], np.s_[645:668, 24:500], np.s_[98:300, -360:-24]):  # title, readout, classes
        assert (abs(picture[part] - background).max(axis=2) > 100).mean() > 0.01  # it contains text
    probability = evaluate(page, "answer().probabilities").max().item()
    bar = (abs(picture[106, 1140:1250] - background).max(axis=1) > 60).sum()  # of the first class
    assert bar == pytest.approx(0.32 * 340 * probability, abs=3)


HOSTILE = '"><script>alert(1)<\\script><img src=x onerror=alert(2)>{{data}}\u2028.png'


def test_names_from_any_source_stay_text(pages, visit, tmp_path):
    _, network, images = pages["vit"]
    name = "</script><script>alert(1)</script><!--<script>{{js}}"
    hostile = dataclasses.replace(network, name=name, classes=[f"{name} {i}" for i in range(10)])
    entry = explorer.page_entry(Explanation(hostile, images[0]), name, name)
    explorer.write_page(tmp_path / "page.html", hostile, [entry])
    page = visit(tmp_path / "page.html")
    assert page.locator("script").count() == 2
    assert page.locator("h1").inner_text().startswith(name)
    assert page.locator("#subtitle").inner_text().startswith(f"{name} · {name} · ")
    assert page.title().startswith(name)


def test_a_file_name_stays_text_and_the_page_sends_nothing(runs, visit, monkeypatch):
    shutil.copy(ROOT / "examples" / "cat.png", runs / HOSTILE)
    monkeypatch.chdir(runs)
    import test as test_command

    flags = ["--model_path", "model/vit", "--mode", "custom", "--no_gif", "--no_image", "--html", "hostile.html"]
    test_command.main([*flags, "--image_path", HOSTILE])
    page = visit(runs / "hostile.html")
    assert page.locator("#subtitle").inner_text().startswith(HOSTILE.replace("\u2028", "\ufffd"))
    assert page.locator("script").count() == 2
    assert page.locator("img").count() == 0
    blocked = page.evaluate(
        """new Promise((done) => {
            document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
            new Image().src = "http://127.0.0.1:9/secret";
        })"""
    )
    assert blocked == "img-src"
    assert all("Content Security Policy" in message for message in visit.messages)
    visit.messages.clear()
    visit.requests.remove("http://127.0.0.1:9/secret")  # Playwright reports it although it was blocked


def test_the_shipped_networks_page_of_three_images_is_small(tmp_path):
    network = checkpoint.load_network(ROOT / "model" / "vit-layer12-32-cifar10", torch.device("cpu"))
    images, _ = dataset.draw_shapes(3, 32, seed=0)
    explorer.write_page(
        tmp_path / "page.html",
        network,
        [explorer.page_entry(Explanation(network, image), "image", "") for image in images],
    )
    assert os.path.getsize(tmp_path / "page.html") < 1_550_000


@pytest.mark.parametrize(
    "config",
    [
        {"global_pool": "avg", "class_token": False},
        {"global_pool": "avg", "class_token": True},
        {"depth": 1, "num_heads": 1},
        {"patch_size": 16, "num_classes": 31},
    ],
)
def test_networks_of_other_shapes_have_pages(config, visit, tmp_path):
    network = small_network(config)
    model, num_classes = network.model, len(network.classes)
    images, _ = dataset.draw_shapes(1, 32, seed=0)
    entry = explorer.page_entry(Explanation(network, images[0]), "image", "")
    explorer.write_page(tmp_path / "page.html", network, [entry])
    page = visit(tmp_path / "page.html")
    for method in ("attention", "evidence", "rollout", "gradientRollout", "gradCam", "removal"):
        for token in ("'class'" if model.num_prefix_tokens else "'all'", "'all'", "0"):
            page.evaluate(f"explorer.change({{method: '{method}', token: {token}}})")
            wait_until_drawn(page)
            assert "NaN" not in read(page) + page.locator("main").inner_text()
    maps = attention_maps(model, network.prepare(images))[-1, 0].mean(0)
    page.evaluate("explorer.change({method: 'attention', token: 'all', head: 0})")
    expected = maps[model.num_prefix_tokens :, model.num_prefix_tokens :].mean(0)
    torch.testing.assert_close(evaluate(page, "explorer.mainMap().values"), expected, **CLOSE)
    assert page.locator("#rest").is_visible() == (num_classes > 20)
    if num_classes > 20:
        assert "10 most probable of 31" in page.locator("#rest").inner_text()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--mode custom --image_path {cat} --html page.txt", "ends in .html"),
        ("--mode custom --image_path {cat} --html=", "its value is empty"),
        ("--mode cifar --html page.html", "add --mode cifar-single"),
        ("--mode custom --image_path {cat} --html {cat}/page.html", "cannot write"),
        ("--mode cifar-single --index 1 2 --gif_path a.gif", "give one --index"),
    ],
)
def test_invalid_pages_are_refused_before_anything_is_written(flags, reason, runs, monkeypatch, capsys):
    before = sorted(runs.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        run_test(runs, f"--model_path model/vit {flags.format(cat=ROOT / 'examples' / 'cat.png')}", monkeypatch)
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err
    assert sorted(runs.rglob("*")) == before


def test_several_test_images_make_one_page_and_one_gif_each(runs, monkeypatch):
    run_test(runs, "--model_path model/vit --mode cifar-single --index 3 4 --html page.html", monkeypatch)
    assert all((runs / "attention_map_gif" / f"shapes-index-{index}.gif").exists() for index in (3, 4))
    assert (runs / "page.html").read_text().count('"name": "test image') == 2
