"""Predictions and features of images as files, and the classification of a folder of any images.

write_predictions("predictions.csv", logits, split)          # a row per image, with the probabilities of all classes
write_embeddings("embeddings.npz", network, logits, split)   # what the last layer reads, for every image
images = read_images(network, "photos")                      # a `Split`; the label of an unlabelled image is -1
"""

import contextlib
import csv

import numpy as np
import torch
from tqdm import tqdm

from vit_cifar10.data.classes import labels_of_folders
from vit_cifar10.data.dataset import Split, batches, normalize
from vit_cifar10.data.folder import read_all
from vit_cifar10.evaluation.metrics import predict
from vit_cifar10.explain.maps import attention_maps, attention_to_patches, images_at_once
from vit_cifar10.plots.scores import save_mistakes
from vit_cifar10.utils.device import eval_mode, evaluation_batch_size, physical_memory
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import atomic_write
from vit_cifar10.utils.text import printable, shorten

UNKNOWN = -1  # the label of an image whose class is unknown
FEW_IMAGES = 20  # whose predictions are printed one by one
SHOWN_IMAGES = 100  # in the overview
BAR = {"unit": "batch", "leave": False, "disable": None}


def write_predictions(path, logits, split):
    """Write a CSV file with a row per image: index, file, true class, prediction, and the probability of each class.

    The file and the true class are left out if no image has one.

    Args:
        logits: float (N, C), of the images of `split`, whose classes are the network's.
    """
    names, labels, predicted = split.classes, split.labels.tolist(), logits.argmax(dim=1).tolist()
    columns = {"index": range(len(split)), "file": split.files or ()}
    if max(labels) > UNKNOWN:
        columns["true_class"] = ["" if label == UNKNOWN else names[label] for label in labels]
    columns["prediction"] = [names[place] for place in predicted]
    columns = {name: values for name, values in columns.items() if len(values)}
    with atomic_write(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, *(f"p_{name}" for name in names)])
        for row, scores in zip(zip(*columns.values(), strict=True), logits.cpu(), strict=True):
            writer.writerow([*row, *(f"{value:.6g}" for value in scores.double().softmax(dim=0).tolist())])


def write_embeddings(path, network, logits, split, with_attention=False):
    """Write an NPZ file with arrays for N images: features, logits, labels, classes, and files if they have names.

    `features`, float32 (N, D), are what the network's last layer reads: a ViT's normalized class token or mean of the
    patches. `attention`, float16 (N, depth, heads, grid, grid), is what the output token of a ViT pays to each patch.

    Raises:
        UserError: the attention does not fit in memory, or the file cannot be written.
    """
    arrays = {"logits": logits.cpu().numpy(), "labels": split.labels.cpu().numpy(), "classes": np.array(split.classes)}
    if split.files:
        arrays["files"] = np.array(split.files)
    arrays |= embed(network, split, with_attention)
    with atomic_write(path) as partial:
        np.savez(partial, **arrays)


def embed(network, split, with_attention=False):
    """The features of all images, and the attention if it is wanted, as in `write_embeddings`."""
    model, size = network.model, evaluation_batch_size(network.device)
    if with_attention:
        blocks, patches = model.blocks, model.grid_size**2
        needed = 2 * len(split) * len(blocks) * blocks[0].attn.num_heads * patches
        if needed > physical_memory() / 2:
            raise UserError(
                f"the attention in {len(split):,} images takes {needed / 1e9:,.0f} GB; leave out --attention"
            )
        size = min(size, images_at_once(split.images))
    attention = []
    with tqdm(total=-(-len(split) // size), desc="features", **BAR) as bar, read_by_head(model) as features:
        for images, _ in batches(split, size):
            inputs = normalize(images, split.mean, split.std)
            if with_attention:
                maps = attention_maps(model, inputs)[:, :, :, None]  # a mean over one head each
                maps = attention_to_patches(maps, model.global_pool)
                attention.append(maps.permute(1, 0, 2, 3, 4).half().cpu().numpy())
            else:
                with torch.inference_mode(), eval_mode(model):
                    model(inputs)
            bar.update()
    extra = {"attention": np.concatenate(attention)} if attention else {}
    return {"features": torch.cat(features).numpy(), **extra}


@contextlib.contextmanager
def read_by_head(model):
    """A list that collects the inputs of a network's last layer, float32 (B, D) on the CPU, one for each batch."""
    seen = []
    head = model.get_submodule(model.head_name)
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().float().cpu()))
    try:
        yield seen
    finally:
        hook.remove()


def read_images(network, folder, num_workers=2):
    """All images of a folder as a `Split` for a network. The sub-folders that are named after classes are the labels.

    Raises:
        UserError: there is no image.
    """
    images, files = read_all(folder, network.image_size, num_workers, network.resize)
    labels = torch.tensor(labels_of_folders(files, network.classes, unknown=UNKNOWN))
    return Split(images, labels, tuple(network.classes), network.mean, network.std, files=files).to(network.device)


def classify_images(network, split, batch_size=None):
    """The logits, float (N, C), of the images of a split."""
    batch_size = batch_size or evaluation_batch_size(network.device)
    with tqdm(total=-(-len(split) // batch_size), desc="classifying", **BAR) as bar:
        logits = predict(network.model, split, batch_size, after_batch=bar.update)
    network.check_finite(logits)
    return logits


def print_predictions(logits, split):
    """Print the prediction for each of a few images, how many images get each class, and the accuracy if known."""
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    if len(split) <= FEW_IMAGES:
        for place, file in enumerate(split.files):
            print(f"{100 * confidence[place]:6.2f} %  {split.classes[predicted[place]]}  {printable(file)}")
    counts = predicted.bincount(minlength=len(split.classes))
    print(f"\n{len(split):,} images, by predicted class:")
    for place in counts.argsort(descending=True, stable=True)[: counts.count_nonzero()].tolist():
        print(f"{counts[place]:>8,}  {split.classes[place]}")
    is_known = split.labels != UNKNOWN
    if is_known.any():
        accuracy = (predicted == split.labels)[is_known].float().mean()
        print(f"accuracy {100 * accuracy:.2f} % on the {is_known.sum():,} images in folders of the network's classes")


def save_overview(logits, split, path, title):
    """Draw the images, or an even sample of them, with their predictions, sorted by the predicted class."""
    confidence, predicted = (values.cpu() for values in logits.softmax(dim=1).max(dim=1))
    order = np.lexsort((-confidence.numpy(), predicted.numpy()))
    shown = order[np.linspace(0, len(order) - 1, min(len(order), SHOWN_IMAGES)).round().astype(int)].tolist()
    labels = split.labels.tolist()
    captions = []
    for place in shown:
        caption = f"{shorten(split.files[place], 28)}\n{shorten(split.classes[predicted[place]], 18)}"
        caption += f", {100 * confidence[place]:.0f} %"
        if labels[place] not in (UNKNOWN, predicted[place]):
            caption += f"\nwrong, label: {shorten(split.classes[labels[place]], 14)}"
        captions.append(caption)
    images = split.images[shown].permute(0, 2, 3, 1).cpu().numpy()
    number = f"{len(shown)} of {len(order):,} images" if len(shown) < len(order) else f"{len(order)} images"
    save_mistakes(images, captions, path, f"{title}: {number}")
