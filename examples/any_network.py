"""Explain networks that this project does not know: a ResNet of torchvision and a ViT of vit-pytorch.

    python examples/any_network.py examples/cat.png                          # random weights, no download
    python examples/any_network.py my_photos/*.jpg --weights DEFAULT         # the ResNet's weights for ImageNet

For each network and image, a GIF, a still and a page go to output/any-network/; then the faithfulness of the maps is
measured on these images. Needs `pip install vit-pytorch`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torchvision
from vit_pytorch import ViT

from model import count_parameters
from vit_cifar10.data.dataset import Split
from vit_cifar10.data.images import open_image
from vit_cifar10.evaluation.faithfulness_report import measure_faithfulness, print_faithfulness, write_faithfulness
from vit_cifar10.explain.animation import draw_maps
from vit_cifar10.explain.explanation import Explanation
from vit_cifar10.explain.explorer import page_entry, write_page
from vit_cifar10.explain.methods import find, masks_method
from vit_cifar10.formats.wrapped import wrap
from vit_cifar10.plots.gif import save_gif
from vit_cifar10.utils.cli import POSITIVE_INT, ArgumentParser, command
from vit_cifar10.utils.files import make_folder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def wrap_resnet(weights, image_size):
    resnet = torchvision.models.resnet18(weights=weights)
    classes = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    return wrap(resnet, resnet.layer4, classes, image_size, MEAN, STD, name="resnet18")


def wrap_vit(image_size):
    vit = ViT(image_size=image_size, patch_size=image_size // 8, num_classes=3, dim=64, depth=3, heads=4, mlp_dim=128)
    last_attention, _ = vit.transformer.layers[-1]
    classes = ["cat", "dog", "bird"]
    return wrap(vit, last_attention.norm, classes, image_size, MEAN, STD, name="vit-pytorch")


def explain(network, path, image, folder, samples):
    """Write a GIF, a still and a page that explain an image, uint8 (3, H, W), from a file."""
    explanation, target = Explanation(network, image), folder / f"{network.name}-{path.stem}.gif"
    top = explanation.classes[0]
    print(f"{path.name}: {explanation.probabilities[top]:.1%} {network.classes[top]}")
    frames, save_still = draw_maps(explanation, [find("grad-cam"), masks_method(samples)], f"image: {path.name}")
    save_gif(frames, target)
    save_still(target.with_suffix(".png"))
    write_page(target.with_suffix(".html"), network, [page_entry(explanation, path.name, "")])


def measure(network, images, folder, samples):
    """Print the faithfulness of the maps on images, uint8 (N, 3, H, W), and write its tables and picture."""
    no_labels = torch.zeros(len(images), dtype=torch.int64)  # the test asks for predicted classes only
    split = Split(images, no_labels, tuple(network.classes), network.mean, network.std)
    make_folder(folder)
    measured = measure_faithfulness(network, split, folder, samples)
    print_faithfulness(*write_faithfulness(measured, network, folder), measured.methods)


@command
def main(argv=None):
    parser = ArgumentParser(prog="any_network.py", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files to explain")
    parser.add_argument("--weights", help="torchvision's name of weights for the ResNet (default: random weights)")
    parser.add_argument("--image_size", type=POSITIVE_INT, default=224, help="side of the images in pixels")
    parser.add_argument("--samples", type=POSITIVE_INT, default=512, help="number of masks for each image")
    parser.add_argument("--output_path", type=Path, default=Path("output/any-network"), help="where the files go")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    images = torch.stack([open_image(path, args.image_size) for path in args.images])
    for network in (wrap_resnet(args.weights, args.image_size), wrap_vit(args.image_size)):
        print(f"\n{network.name}, a {network.model.title} with {count_parameters(network.model):,} parameters")
        for path, image in zip(args.images, images, strict=True):
            explain(network, path, image, args.output_path, args.samples)
        measure(network, images, args.output_path / network.name, args.samples)


if __name__ == "__main__":
    main()
