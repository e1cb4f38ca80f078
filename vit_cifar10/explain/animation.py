"""Draw what explains how a network classifies one image: the frames of a GIF, and a still.

frames, save_still = draw_maps(explanation, methods, "image: cat.png")
save_gif(frames, "cat.gif")
save_still("cat.png")
"""

from vit_cifar10.explain.maps import attention_to_patches
from vit_cifar10.plots.explanations import MapRow, attention_frames, class_frames, save_relevance_grid

CLASSES = 5  # whose maps are shown


def draw_maps(explanation, methods, caption, has_own_scales=False):
    """The GIF's frames for an `Explanation`, and a function that saves a still of its maps.

    The frames of a ViT are its layers; those of a CNN are its most probable classes, the most probable one last.

    Args:
        methods: the `Method`s whose maps are shown, one row each.
        caption: a line of text above the maps.
        has_own_scales: whether the GIF gives each map of a head its own scale, instead of one for all.
    """
    model, network = explanation.model, explanation.network
    top = explanation.classes[:CLASSES].tolist()
    layers = [f"layer {layer + 1}" for layer in range(len(model.blocks))] if model.has_attention else []
    rows = []
    for method in methods:
        maps = explanation.maps(method, 1 if method.by_layer else len(top))
        if method.by_layer:
            of_predicted = (maps if method.is_class_blind else maps[0]).cpu().numpy()
            tokens = explanation.attention.shape[-1] if method.is_attention else 0
            rows.append(MapRow(method.name, of_predicted, layers, True, method.is_signed, tokens))
            continue
        maps = maps.expand(len(top), -1, -1) if method.is_class_blind else maps[: len(top)]
        titles = [network.classes[index] for index in top]
        rows.append(MapRow(method.name, maps.cpu().numpy(), titles, is_signed=method.is_signed))
    pixels = explanation.image.permute(1, 2, 0).cpu().numpy()
    if model.has_attention:
        answers = explanation.lens[1:].softmax(dim=1).cpu().numpy()
        shown = attention_heads(explanation, layers), answers, network.classes, caption, has_own_scales
        frames = attention_frames(pixels, rows, *shown)
    else:
        frames = class_frames(pixels, rows, top, explanation.probabilities.cpu().numpy(), network.classes, caption)
    return frames, lambda path: save_relevance_grid(path, pixels, rows, caption)


def attention_heads(explanation, layers):
    """A `MapRow` for each head, with its attention in every layer."""
    attention = explanation.attention  # (depth, 1, heads, N, N)
    maps = attention_to_patches(attention.unsqueeze(3), explanation.model.global_pool)[:, 0].cpu().numpy()
    tokens = attention.shape[-1]
    return [MapRow("attention", maps[:, head], layers, True, tokens=tokens) for head in range(maps.shape[1])]
