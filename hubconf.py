"""The networks that ship with the project, for `torch.hub`.

    model = torch.hub.load("FOLDER_OF_THIS_FILE", "vit_layer12_cifar10", source="local")
    logits = model(model.transform(PIL.Image.open("img.png")))      # (1, 10)
    print(model.classes[logits.argmax()])

There is one function for each network in model/: `vit_layer12_cifar10(pretrained=True)`, `vit_layer6_cifar10`,
`cnn_cifar10`. Each returns a network of model.py with two more attributes. `transform` is a torchvision transform from
a PIL image of any size to a normalized batch (1, 3, H, W). `classes` are the names of the classes. A pretrained network
is in evaluation mode; with `pretrained=False`, the weights are random and the network is in training mode.
"""

import functools
import importlib
import importlib.util
import pathlib
import sys

import torch

# torch.hub lists all public functions of this file, so these names are private.
_ROOT = pathlib.Path(__file__).resolve().parent
dependencies = ["torch", "torchvision", "numpy", "PIL"]


def _import_ours(*names):
    """Import model.py and these modules of the project, which import it, into a program with a model.py of its own.

    There, ours is the module `vit_cifar10_model`, and `model` stays what it was, which may be not imported yet.
    """
    theirs = sys.modules.get("model")
    file = getattr(theirs, "__file__", None)
    if file and pathlib.Path(file).resolve() == _ROOT / "model.py":
        return theirs, *map(importlib.import_module, names)
    if "vit_cifar10_model" not in sys.modules:
        spec = importlib.util.spec_from_file_location("vit_cifar10_model", _ROOT / "model.py")
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    sys.modules["model"] = ours = sys.modules["vit_cifar10_model"]
    try:
        return ours, *map(importlib.import_module, names)
    finally:
        del sys.modules["model"]
        if theirs:
            sys.modules["model"] = theirs


_networks, _images, _checkpoint = _import_ours("vit_cifar10.data.images", "vit_cifar10.runs.checkpoint")


def _load(folder, pretrained=True):
    network = _checkpoint.load_network(folder, torch.device("cpu"))
    model = network.model if pretrained else _networks.build_model(network.saved["model_config"])
    colors = network.saved["mean"], network.saved["std"]
    model.transform = _images.image_transform(network.image_size, *colors, network.resize)
    model.classes = list(network.classes)
    return model


for _path in sorted((_ROOT / "model").glob("*-32-cifar10/best.pt")):
    _name = _path.parent.name.replace("-32-", "-").replace("-", "_")
    globals()[_name] = functools.partial(_load, _path.parent)
    globals()[_name].__doc__ = f"The network in model/{_path.parent.name}; see the docstring of this file."
