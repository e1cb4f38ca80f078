"""Pictures of the pages that test.py writes, taken in Chromium: how a user explores a prediction.

    draw_explorer(network, image, name, note, path)      # a PNG: a patch is selected
    draw_live_page(network, image, name, note, path)     # a GIF: patches, pixels and a head are changed

`image` is uint8 (3, H, W); `name` and `note` are shown next to it. The network must be a ViT.
"""

import contextlib
import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from playwright.sync_api import sync_playwright

from vit_cifar10.explain import explorer
from vit_cifar10.explain.explanation import Explanation
from vit_cifar10.plots.gif import save_gif
from vit_cifar10.utils.errors import UserError

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
CURSOR = [(0, 0), (0, 17), (4, 13), (7, 19), (10, 18), (7, 12), (12, 12)]  # the mouse pointer, in pixels
GIF_WIDTH = 800
BLUE = "#2a5fb0"
IS_SETTLED = """live.asked === null && state.answer !== null && state.answer.explanations.has(state.target)
    && state.answer === live.answers.get(JSON.stringify(describeState(false)))"""
MOST_RELEVANT = """(() => {
    const evidence = state.answer.explanations.get(state.target).evidence;
    return Array.from(evidence.keys()).sort((a, b) => evidence[b] - evidence[a]);
})()"""
SELECT_STRONGEST_HEAD = """(() => {
    const moves = Array.from(state.answer.explanations.get(state.target).contributions);
    const strongest = moves.indexOf(Math.max(...moves)), layer = Math.floor(strongest / data.heads) + 1;
    change({ tool: "remove" });
    change({ layer, head: FIRST_HEAD + strongest % data.heads, token: defaultToken });
})()"""


def draw_explorer(network, image, name, note, path):
    """Save the whole page with the mouse over the most relevant patch."""
    with open_page(network, image, name, note, is_live=False, width=1180, height=900) as (page, html):
        page.goto(html.as_uri())
        page.wait_for_timeout(500)
        evidence = page.evaluate("Array.from(answer().explanations.get(state.target).evidence)")
        page.locator("#patches button").nth(evidence.index(max(evidence))).hover()
        page.wait_for_timeout(300)
        page.screenshot(path=path, full_page=True)


def draw_live_page(network, image, name, note, path):
    """Save a GIF of the three kinds of changes to the live page."""
    with open_page(network, image, name, note, width=1000, height=770) as (page, html):
        page.goto(html.as_uri())
        film = Film(page, network.model.grid_size)
        film.shoot(1500)
        film.remove_patches()
        film.paint()
        film.switch_off_head()
    film.save(path)


@contextlib.contextmanager
def open_page(network, image, name, note="", is_live=True, width=1280, height=720):
    """Write the page of an image to a temporary file, and start Chromium without a window.

    Yields:
        An empty page of Playwright, and the path of the file to open in it.

    Raises:
        UserError: Chromium is not installed.
    """
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        raise UserError("Chromium is not installed; install it with the package manager of your system")
    options = {"executable_path": chromium, "args": ("--no-sandbox", "--disable-gpu")}
    with (
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as playwright,
        playwright.chromium.launch(**options) as browser,
    ):
        path = Path(folder) / "page.html"
        explorer.write_page(path, network, [explorer.page_entry(Explanation(network, image), name, note)], is_live)
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
        yield page, path


class Film:
    """Screenshots of a live page that is being used, with a mouse pointer drawn on them."""

    def __init__(self, page, grid_size):
        self.page, self.grid_size = page, grid_size
        self.frames, self.durations = [], []  # durations in milliseconds
        self.cursor = None

    def shoot(self, duration):
        """Wait for the page's answer and add a frame."""
        self.settle()
        frame = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        if self.cursor:
            x, y = self.cursor
            ImageDraw.Draw(frame).polygon([(x + dx, y + dy) for dx, dy in CURSOR], fill="white", outline="black")
        self.frames.append(frame)
        self.durations.append(duration)

    def settle(self):
        """Wait until the page has drawn its answer. Its security policy forbids Playwright's own way to wait."""
        while not self.page.evaluate(IS_SETTLED):
            self.page.wait_for_timeout(20)
        self.page.wait_for_timeout(120)

    def move(self, x, y):
        self.cursor = (x, y)
        self.page.mouse.move(x, y)
        self.settle()

    def click(self):
        self.page.mouse.down()
        self.page.mouse.up()

    def undo(self, times=1):
        """Take changes back, without the pointer in the frame."""
        for _ in range(times):
            self.page.keyboard.press("Control+z")
        self.cursor = None
        self.shoot(700)

    def place(self, row, column):
        """The coordinates of a place in the image, in patches."""
        box = self.page.locator("#patches").bounding_box()
        return box["x"] + box["width"] * column / self.grid_size, box["y"] + box["height"] * row / self.grid_size

    def remove_patches(self, count=4):
        """Remove the most relevant patches, one after the other."""
        for patch in self.page.evaluate(MOST_RELEVANT)[:count]:
            row, column = divmod(patch, self.grid_size)
            self.move(*self.place(row + 0.5, column + 0.5))
            self.click()
            self.shoot(900)
        self.shoot(1200)
        self.undo(count)

    def paint(self):
        """Paint a blue stripe along the lower edge."""
        self.page.locator("#tool-paint").click()
        self.page.evaluate(f"change({{ color: '{BLUE}', brush: 3 }})")
        self.shoot(700)
        for column in range(self.grid_size):
            self.move(*self.place(0.93 * self.grid_size, column + 0.5))
            if column == 0:
                self.page.mouse.down()
            self.shoot(180)
        self.page.mouse.up()
        self.shoot(1500)
        self.undo()

    def switch_off_head(self):
        """Switch off the head that moves the score of the predicted class most."""
        self.page.evaluate(SELECT_STRONGEST_HEAD)
        self.shoot(1000)
        box = self.page.locator("#switch-head").bounding_box()
        self.move(box["x"] + 30, box["y"] + 12)
        self.shoot(500)
        self.click()
        self.shoot(900)
        self.cursor = None
        self.shoot(2000)

    def save(self, path):
        """Write the GIF. All frames share their colors, which keep gradients smooth, so that nothing flickers."""
        height = round(self.frames[0].height * GIF_WIDTH / self.frames[0].width)
        frames = [frame.resize((GIF_WIDTH, height), Image.Resampling.LANCZOS) for frame in self.frames]
        save_gif(np.stack(frames), path, self.durations)
