"""A map of a network, from the image to the class scores, as SVG: for the HTML page and as a file.

    draw_map({"size": 32, "grid": 8, "tokens": 65, "width": 192, "blocks": 12, "output": "class token", "classes": 10})

The colors follow from the classes of the elements, in explain/page/map.css. On the page, map.js shows the image and the
scores and marks the selected block.
"""

import html

WIDE, NARROW = 1184, 392  # width of a map; one unit is a pixel on a screen of 1280 or 390 pixels
TALL, LABELS, GAP = 56, 45, 22  # height of a stage, of its labels with the space below, and the space between stages
SHOWN_SCORES = 3
IN_ROW = 12  # blocks in a row of the narrow map


def draw_map(network, is_narrow=False, image="", scores=()):
    """An SVG element as a string.

    Args:
        network: "size" of the image in pixels, "output", the name of what the head reads, "numbers", how many numbers
            that are, and "classes", their number. Of a ViT also "grid", "tokens" and "blocks", the number of patches in
            a row, of tokens and of blocks; of a CNN "maps", the (side, channels) after each convolution.
        is_narrow: whether to use several rows, for a phone.
        image: the address of a picture.
        scores: (name, probability) of the most probable classes.
    """
    width = NARROW if is_narrow else WIDE
    rows = [list(describe_stages(network, is_narrow, image, scores))]
    if is_narrow:  # what comes before the blocks, the blocks, what comes after
        at = next(place for place, stage in enumerate(rows[0]) if stage[1] is None)
        rows = [rows[0][:at], rows[0][at : at + 1], rows[0][at + 1 :]]
    parts, top = [], 0
    for row in rows:
        rest = width - sum(stage[1] or 0 for stage in row) - GAP * (len(row) - 1)  # for the blocks
        left = 0 if any(stage[1] is None for stage in row) else rest / 2
        for place, (step, own, draw, name, note) in enumerate(row):
            slot = own or rest
            drawn, height = draw(slot)
            if place:
                parts.append(f'<path class="arrow" d="M{left - 18:g} {top + 28}h13m-4 -4l4 4-4 4"/>')
            frame = f'<rect class="frame" x="-3" y="-3" width="{slot + 6:g}" height="{height + 43}" rx="5"/>'
            labels = text(slot / 2, height + 18, "name", name) + text(slot / 2, height + 35, "note", note)
            parts.append(f'<g class="stage" data-step="{step}" transform="translate({left:g} {top})">')
            parts.append(f"{frame}{drawn}{labels}</g>")
            left += slot + GAP
        top += height + LABELS
    kind = "narrow" if is_narrow else "wide"
    names = f'aria-label="The network: {", ".join(stage[3] for row in rows for stage in row)}"'
    return f'<svg class="map {kind}" role="img" {names} viewBox="-4 -4 {width + 8} {top}">{"".join(parts)}</svg>'


def describe_stages(network, is_narrow, image, scores):
    """(step of the walk, width or None for the rest, function of the width that draws it, name, note) of each stage."""
    size, output, classes = network["size"], network["output"], network["classes"]
    yield 0, 100, lambda slot: (picture(slot, image), TALL), "image", f"{size} × {size} pixels"
    if "grid" in network:
        grid, count = network["grid"], network["blocks"]
        cell = f"{size // grid} × {size // grid} pixels each"
        yield 0, 108, lambda slot: (picture(slot, image, grid), TALL), f"{grid**2} patches", cell
        tokens = f"{network['tokens']} × {network['numbers']} numbers"
        yield 1, 136, lambda slot: (draw_tokens(slot, 10), TALL), "tokens + positions", tokens
        parts = {"attention": "attention, between tokens", "mlp": "MLP, in each token"}
        legend = " ".join(f'<tspan class="{part}">■</tspan> {what}' for part, what in parts.items())
        in_row = IN_ROW if is_narrow else count
        yield 2, None, lambda slot: draw_blocks(slot, count, in_row), plural(count, "block"), legend
        yield 5, 112, lambda slot: (draw_tokens(slot, 1), TALL), output, "LayerNorm, head"
    else:
        maps = network["maps"]
        sides = f"numbers of maps, which shrink from {maps[0][0]} × {maps[0][0]} to {maps[-1][0]} × {maps[-1][0]}"
        yield 2, None, lambda slot: draw_convolutions(slot, maps), plural(len(maps), "convolution"), sides
        yield 5, 112, lambda slot: (draw_tokens(slot, 5), TALL), output, f"{network['numbers']:,} numbers"
    rows = [*scores, ("", 0), ("", 0), ("", 0)][: min(SHOWN_SCORES, classes)]
    yield 5, 178, lambda slot: (draw_scores(slot, rows), TALL), plural(classes, "score"), "one for each class"


def plural(count, noun):
    return f"{count:,} {noun}{'s' * (count != 1)}"


def text(x, y, kind, content):
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{content}</text>'


def picture(slot, image, grid=1):
    """The image or, with a grid, its patches."""
    left, cell = (slot - TALL) / 2, TALL / grid
    lines = "".join(f"M{left + cell * i:g} 0v{TALL}M{left:g} {cell * i:g}h{TALL}" for i in range(1, grid))
    lines = f'<path class="cut" d="{lines}"/>' if lines else ""
    href = f' href="{image}"' if image else ""
    return f'<image x="{left:g}" width="{TALL}" height="{TALL}"{href}/>{lines}'


def draw_tokens(slot, count):
    """Tokens as upright bars. The first of several, the class token, has a color of its own."""
    start = slot / 2 - 5 * (count - 1)
    bars = "".join(f"M{start + 10 * i:g} 2v{TALL - 4}" for i in range(count))
    return f'<path class="token" d="{bars}"/>'


def draw_blocks(slot, count, in_row):
    """The blocks of a ViT, each with its attention and its MLP, in rows: (SVG, height)."""
    pitch, parts = min(64, slot / min(count, in_row)), []
    wide = min(38, pitch - 3)
    for block in range(count):
        row, column = divmod(block, in_row)
        here = min(in_row, count - row * in_row)  # blocks in this row
        x = slot / 2 + (column - here / 2) * pitch + (pitch - wide) / 2
        bar = f"h{wide - 8:g}"
        parts.append(
            f'<g class="block" data-layer="{block + 1}" transform="translate({x:g} {row * (TALL + 6)})">'
            f'<rect width="{wide:g}" height="{TALL}" rx="5"/><path class="attention" d="M4 11{bar}"/>'
            f'<path class="mlp" d="M4 29{bar}"/>{text(wide / 2, 51, "number", block + 1)}</g>'
        )
    return "".join(parts), row * (TALL + 6) + TALL


def draw_convolutions(slot, maps):
    """The convolutions of a CNN, as high as their maps: (SVG, height)."""
    pitch, parts, largest = min(110, slot / len(maps)), [], max(side for side, _ in maps)
    left = (slot - pitch * len(maps)) / 2
    for place, (side, channels) in enumerate(maps):
        high, wide = 38 * (side / largest) ** 0.5, min(64, pitch - 12)
        x = left + pitch * place + (pitch - wide) / 2
        parts.append(f'<rect class="maps" x="{x:g}" y="{19 - high / 2:g}" width="{wide:g}" height="{high:g}" rx="2"/>')
        parts.append(text(x + wide / 2, 51, "number", channels))
    return "".join(parts), TALL


def draw_scores(slot, scores):
    """The most probable classes as bars."""
    parts = []
    for row, (name, probability) in enumerate(scores):
        value = f"{100 * probability:.0f} %" if name else ""
        parts.append(
            f'<g class="score" transform="translate(0 {19 * row})">'
            f'<rect width="{slot}" height="16" transform="scale({probability:.3g} 1)"/>'
            f'<text x="5" y="12.5">{html.escape(name)}</text>'
            f'<text x="{slot - 5}" y="12.5" text-anchor="end">{value}</text></g>'
        )
    return "".join(parts)
