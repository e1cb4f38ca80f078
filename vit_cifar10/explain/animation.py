"""Draw what explains how a network classifies one image: the frames of a GIF, and a still.

frames, save_still = draw_maps(network, image, probabilities, top, methods, "image: cat.png")
save_gif(frames, "cat.gif")
save_still("cat.png")
"""

from vit_cifar10.explain.maps import explain_layers
from vit_cifar10.plots.explanations import MapRow, attention_frames, class_frames, save_relevance_grid


def draw_maps(network, image, probabilities, top, methods, caption, *, head_fusion="mean", discard_ratio=0.0):
    """The GIF's frames for an image, uint8 (3, H, W), and a function that saves a still of its maps.

    The frames of a ViT are its layers; those of a CNN are its most probable classes `top`, the most probable one last.

    Args:
        probabilities: of all classes, float (C,) on the CPU.
        top: int64 (K,), the most probable classes.
        methods: the `Method`s whose maps are shown, one row each.
        caption: a line of text above the maps.
        head_fusion, discard_ratio: as in `attention_rollout`.
    """
    if head_fusion != "mean":
        caption += f"   ·   rollout: {head_fusion} over heads"
    if discard_ratio:
        caption += f"   ·   rollout: smallest {100 * discard_ratio:g} % dropped"
    inputs, pixels = network.prepare(image[None]), image.permute(1, 2, 0).cpu().numpy()
    by_layer, heads = {}, None
    if network.model.has_attention:
        by_layer, heads = explain_layers(network.model, inputs, head_fusion, discard_ratio)
    rows = []
    for method in methods:
        if method.name in by_layer:
            titles = [f"layer {layer + 1}" for layer in range(len(heads))]
            rows.append(MapRow(method.name, by_layer[method.name], titles, is_by_layer=True))
        else:
            maps = method.for_classes(network.model, inputs, top[None].to(network.device))[0].cpu().numpy()
            titles = [network.classes[index] for index in top]
            rows.append(MapRow(method.name, maps, titles, is_signed=method.is_signed))
    shown = probabilities.numpy(), network.classes, caption
    frames = (
        class_frames(pixels, rows, top.tolist(), *shown)
        if heads is None
        else attention_frames(pixels, rows, heads, *shown)
    )
    return frames, lambda path: save_relevance_grid(path, pixels, rows, caption)
