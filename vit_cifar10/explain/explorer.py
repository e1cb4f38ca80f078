"""Write one HTML page in which a user can explore how a network classifies images.

    entries = [page_entry(Explanation(network, image), "cat.png", "true class: cat"), ...]
    write_page("cat.html", network, entries)

The page is one file that works offline and without a server. The numbers that it shows are computed here and embedded:
attention in 16 bits a value, or in 8 where this would be too large, and everything else as float32. A live page also
contains the network, and computes its numbers itself. The page is written in plain HTML, CSS and JavaScript, in
`page/`: the scripts in `WORKER_SCRIPTS` are the network, and the others draw the page. They are joined here.
"""

import base64
import hashlib
import html
import io
import json
import math
import re
from pathlib import Path

import torch
from PIL import Image

from vit_cifar10.explain.encoding import encode
from vit_cifar10.explain.explanation import count_explained
from vit_cifar10.explain.lens import head_contributions
from vit_cifar10.explain.live import check_live, describe_layers, encode_network, rounding_effect
from vit_cifar10.explain.methods import methods_for, shown_methods
from vit_cifar10.explain.removal import remove_each_patch
from vit_cifar10.plots.network_map import SHOWN_SCORES, draw_map
from vit_cifar10.plots.overlay import color_table
from vit_cifar10.plots.style import COLORMAP, LINE_COLORS, SIGNED_COLORMAP
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import atomic_write
from vit_cifar10.utils.text import printable

PAGE = Path(__file__).parent / "page"
PAGE_SCRIPTS = ("data", "state", "maps", "texts", "pictures", "controls", "views", "chart", "map", "save")
LIVE_SCRIPTS = ("image", "live", "edit", "strokes", "address", "walk", "cards")
WORKER_SCRIPTS = ("kernel", "matrix", "network", "gradients", "worker")
MAX_PRECISE = 4_000_000  # bytes of an image's attention that are stored with full precision
MAX_PAGE = 100_000_000  # bytes of the largest numbers of a page, in base64


def page_entry(explanation, name, label):
    """Everything the page shows about the image of an `Explanation`, as plain values and arrays from `encode`.

    Args:
        name: the image's name, such as its file name.
        label: a short text about the image, such as its true class.
    """
    model, inputs, classes = explanation.model, explanation.inputs, explanation.classes
    entry = {
        **image_entry(explanation.image, name, label),
        "scores": encode(explanation.logits),
        "probabilities": encode(explanation.probabilities),
        "explained": classes.tolist(),
        "removal": encode(remove_each_patch(model, inputs, model.grid_size)),  # (patches, classes)
    }
    for key, method in page_methods(model).items():
        if key != "attention":
            maps = explanation.maps(method)
            entry[key] = encode(maps if follows_layers(method) or not method.by_layer else maps[:, method.result])
    if model.has_attention:
        entry |= encode_attention(explanation.attention[:, 0])
        entry["lens"] = encode(explanation.lens)  # logits, (layers + 1, classes)
        parts = [head_contributions(model, *part) for part in explanation.parts(len(classes))]
        entry["contributions"] = encode(torch.cat(parts, dim=1).transpose(0, 1))  # (explained, layers, heads)
    return entry


def image_entry(image, name, label):
    """An entry without results, for further images of a live page, which computes them. `image` is uint8 (3, H, W)."""
    return {"name": name, "label": label, "pixels": encode(image.permute(1, 2, 0).cpu().numpy(), "u1")}


def page_methods(model, live=False):
    """The methods whose maps the page shows, those that are shown by default first: {name in the scripts: Method}."""
    methods, first = methods_for(model), shown_methods(model)
    in_order = [*first, *(flag for flag in methods if flag not in first)]
    return {
        methods[flag].page_key or flag: methods[flag]
        for flag in in_order
        if not methods[flag].is_slow and (methods[flag].page_key or not live)
    }


def capital(text):
    return text[:1].upper() + text[1:]


def follows_layers(method):
    """Whether the page shows the map of the selected layer. Of relevance "entering" layers, it shows the result."""
    return method.by_layer not in ("", "entering")


def method_facts(key, method):
    """What the page must know of a method."""
    return {
        "key": key,
        "name": capital(method.name),
        "meaning": capital(method.legend.format(predicted="the selected class")),
        "layers": follows_layers(method),
        "heads": key == "attention",
        "classes": not method.is_class_blind,
        "signed": method.is_signed,
    }


def encode_attention(maps):
    """Attention (layers, heads, tokens, tokens) for the page, in 16 bits a value or, if that takes too much, in 8.

    In 8 bits, the square root of a value is a whole number times the scale of its row, which has the largest value 255.
    """
    if 2 * maps.numel() <= MAX_PRECISE:
        return {"attention": encode((maps * 65535).round(), "<u2")}
    roots = maps.sqrt()
    scales = roots.amax(dim=-1, keepdim=True) / 255
    return {"attention": encode((roots / scales).round(), "u1"), "attentionScales": encode(scales)}


def check_size(network, live=False, count=1):
    """Raise `UserError` if the page of `count` images would be too large, or if it cannot compute with the network."""
    model = network.model
    size = 4 * model.grid_size**2 * len(network.classes)  # bytes of the removals of an image
    if model.has_attention:
        values = len(model.blocks) * model.blocks[0].attn.num_heads * model.pos_embed.shape[1] ** 2
        size += 2 * values if 2 * values <= MAX_PRECISE else values
    size = count * size * 4 / 3
    if size > MAX_PAGE:
        images = f"{count} images" if count > 1 else "an image"
        fewer = "choose fewer images, or " if count > 1 else ""
        raise UserError(f"the page of {images} would take {size / 1e6:,.0f} MB; {fewer}leave out --html")
    if live:
        check_live(network)


def page_facts(network, live):
    """The facts about the network that the page needs, and the page's color maps."""
    model = network.model
    is_vit = model.has_attention
    palettes = {"colors": COLORMAP, "differences": SIGNED_COLORMAP}
    return {
        "network": f"{printable(network.name)}, a {model.title} {network.origin}",
        "classes": network.classes,
        "explainedClasses": count_explained(network),
        "isVit": is_vit,
        "methods": [method_facts(*pair) for pair in page_methods(model, live).items()],
        "imageSize": network.image_size,
        "grid": model.grid_size,
        "layers": len(model.blocks) if is_vit else 0,
        "heads": model.blocks[0].attn.num_heads if is_vit else 0,
        "hasClassToken": is_vit and model.cls_token is not None,
        "prefixTokens": model.num_prefix_tokens if is_vit else 0,
        "pool": model.global_pool if is_vit else None,
        "lineColors": LINE_COLORS,
        **{name: encode(color_table(palette), "u1") for name, palette in palettes.items()},
    }


def map_facts(network):
    """What `draw_map` draws of a network."""
    model, size = network.model, network.image_size
    facts = {"size": size, "classes": len(network.classes)}
    if model.has_attention:
        output = {"avg": "mean token", "distilled": "two output tokens"}.get(model.global_pool, "class token")
        parts = {"grid": model.grid_size, "tokens": model.pos_embed.shape[1], "blocks": len(model.blocks)}
        return facts | parts | {"numbers": model.embed_dim, "output": output}
    maps = []
    for layer in describe_layers(model):
        if layer["kind"] == "convolution":
            size += 2 * layer["padding"] - layer["side"] + 1
            maps.append([size, layer["outputs"]])
        elif layer["kind"] == "pool":
            size //= layer["side"]
            maps[-1][0] = size
    return facts | {"maps": maps, "numbers": size**2 * maps[-1][1], "output": "flattened maps"}


def write_map(path, network, image):
    """Write the map of a network as an SVG file in light and dark colors, with an image, uint8 (3, H, W)."""
    probabilities, classes = network.logits(image[None])[0].softmax(dim=0).topk(min(SHOWN_SCORES, len(network.classes)))
    scores = [(network.classes[index], value) for index, value in zip(classes, probabilities.tolist(), strict=True)]
    picture = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(picture, format="png")
    address = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    css, map_css = ((PAGE / f"{name}.css").read_text("utf-8") for name in ("page", "map"))
    map_css += "svg { background: var(--panel); }\n"
    light, dark = (  # the colors that the map uses
        "".join(color for color in re.findall(r"--[\w-]+: [^;]+;", block) if f"var({color.split(':')[0]})" in map_css)
        for block in re.findall(r"^:root.*?\{(.*?)\}", css, re.DOTALL | re.MULTILINE)[:2]
    )
    style = f":root {{{light}}}\n@media (prefers-color-scheme: dark) {{ :root {{{dark}}} }}\n{map_css}"
    start, rest = draw_map(map_facts(network), image=address, scores=scores).split(">", 1)
    with atomic_write(path) as partial:
        namespace = 'xmlns="http://www.w3.org/2000/svg"'
        partial.write_text(f"{start} {namespace}><style>\n{style}</style>{rest}\n", encoding="utf-8")


def fill_page(network, entries, live=False, test=None):
    """The page as a string. Its Content-Security-Policy allows its own script and style, and no network access.

    With `live`, the page contains the network with rounded weights, and a worker computes with it. The page reports how
    much the rounding changes, also on images of `test`, a `Split` of test images.
    """
    script = join_scripts(PAGE_SCRIPTS + (LIVE_SCRIPTS if live else ()) + ("start",))
    style = "".join((PAGE / f"{name}.css").read_text("utf-8") for name in ("page", "map"))
    allowed = {"script-src": f"'sha256-{sha256(script)}'", "style-src": f"'sha256-{sha256(style)}'"}
    if live:
        allowed |= {"script-src": f"{allowed['script-src']} 'wasm-unsafe-eval'", "worker-src": "blob:"}
    rules = "; ".join(f"{directive} {source}" for directive, source in allowed.items())
    title = f"{', '.join(entry['name'] for entry in entries)}: how {printable(network.name)} classifies"
    data = {**page_facts(network, live), "images": entries}
    if live:
        data["rounding"] = rounding_effect(network, torch.stack([read_pixels(entry) for entry in entries]), test)
    shapes = () if network.model.kind == "other" else (False, True)  # of the map of a network whose layers are known
    parts = {
        "policy": f"default-src 'none'; {rules}; img-src data: blob:; base-uri 'none'; form-action 'none'",
        "title": html.escape(title),
        "css": style,
        "map": "".join(draw_map(map_facts(network), is_narrow) for is_narrow in shapes),
        "js": script,
        "data": to_json(data),
        "live": embed_network(network) if live else "",
    }
    template = (PAGE / "page.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)  # a single pass leaves inserted text alone


def embed_network(network):
    """The elements of a live page that hold the network, and the script of the worker that computes with it."""
    return (
        f'<script type="application/json" id="network">{to_json(encode_network(network))}</script>\n'
        f'<script type="text/plain" id="worker">{join_scripts(WORKER_SCRIPTS)}</script>\n'
    )


def read_pixels(entry):
    """The image of an entry from `page_entry`, uint8 (3, H, W)."""
    pixels = torch.frombuffer(bytearray(base64.b64decode(entry["pixels"])), dtype=torch.uint8)
    side = math.isqrt(len(pixels) // 3)
    return pixels.view(side, side, 3).permute(2, 0, 1)


def join_scripts(names):
    """The scripts of the page with these names as one script, without indentation and lines of comments."""
    lines = (line.strip() for name in names for line in (PAGE / f"{name}.js").read_text("utf-8").splitlines())
    return "\n".join(['"use strict";', *(line for line in lines if line and not line.startswith(("//", "/*", "*")))])


def sha256(text):
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def to_json(value):
    """JSON that can be embedded in HTML."""
    return json.dumps(value, ensure_ascii=True).replace("<", "\\u003c")


def write_page(path, network, entries, live=False, test=None):
    """Write the page for the images, which are entries from `page_entry`; see `fill_page`.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_write(path) as partial:
        partial.write_text(fill_page(network, entries, live, test), encoding="utf-8")
