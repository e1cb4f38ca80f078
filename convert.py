"""Convert networks: a ViT of another library becomes a run, and a run becomes a file or folder for other programs.

    python convert.py timm:vit_small_patch16_224 model/my-vit    # a plain ViT or DeiT that timm downloads
    python convert.py timm:FOLDER model/my-vit                   # ... or has saved: config.json, model.safetensors
    python convert.py timm:FOLDER/weights.pth model/my-vit       # ... a file of weights next to its config.json
    python convert.py hf:FOLDER model/my-vit                     # a ViT or DeiT of Hugging Face's transformers
    python convert.py hf:google/vit-base-patch16-224 model/my-vit    # ... or its name on the Hub
    python convert.py torchvision:FILE.pth model/my-vit          # the weights of torchvision's vit_b_16 and its kin
    python convert.py model/RUN out.onnx --attention             # ONNX, with the attention of every layer
    python convert.py model/RUN out/                             # a folder for timm.create_model("local-dir:out")
    python convert.py model/RUN out.safetensors                  # only the weights

The run in model/my-vit works with test.py and compare.py like any other. Its logits and attention are those of the
original network; see docs/your-own.md.
"""

if __name__ == "__main__":
    import vit_cifar10

    vit_cifar10.end_on_ctrl_c()

    from vit_cifar10.flags.convert import parse
    from vit_cifar10.utils.cli import check_flags_first

    check_flags_first(parse)  # before PyTorch is imported, which takes seconds

import shlex
from pathlib import Path

from vit_cifar10.flags.convert import parse
from vit_cifar10.formats.from_huggingface import read_huggingface
from vit_cifar10.formats.from_timm import read_timm
from vit_cifar10.formats.from_torchvision import read_torchvision
from vit_cifar10.formats.new_run import write_run
from vit_cifar10.formats.to_onnx import save_onnx
from vit_cifar10.formats.to_safetensors import save_safetensors
from vit_cifar10.formats.to_timm import save_timm_folder
from vit_cifar10.runs.checkpoint import load_network
from vit_cifar10.runs.run import find_run
from vit_cifar10.utils.cli import command
from vit_cifar10.utils.device import pick_device
from vit_cifar10.utils.errors import out_of_memory_advice
from vit_cifar10.utils.files import check_outputs
from vit_cifar10.utils.text import printable

READERS = {"timm": read_timm, "hf": read_huggingface, "torchvision": read_torchvision}


@command
def main(argv=None):
    args = parse(argv)
    with out_of_memory_advice("close other programs, or choose a smaller network"):
        if args.library:
            convert_to_run(args)
        else:
            convert_run(args)


def convert_to_run(args):
    """Write a network of another library as a run, and print what it is and how to use it."""
    saved = write_run(READERS[args.library](args.source), args.target, args.dataset)
    config, classes = saved["model_config"], saved["classes"]
    sizes = f"{config['depth']} x {config['embed_dim']}, {config['num_heads']} heads, patch {config['patch_size']}"
    images = f"images of {config['img_size']} x {config['img_size']} pixels, {len(classes):,} classes"
    print(printable(f"wrote {Path(args.target) / 'best.pt'}: ViT {sizes}; {images}"))
    target = shlex.quote(args.target)
    print(printable(f"explain it: python test.py --mode custom --image_path IMAGE --model_path {target}"))


def convert_run(args):
    """Write the network of a run as the file or folder TARGET."""
    run = find_run(args.source)
    check_outputs([args.target], [run.checkpoint_path])
    network = load_network(run.checkpoint_path, pick_device("cpu"))
    suffix = Path(args.target).suffix.lower()
    if suffix == ".onnx":
        save_onnx(network, args.target, args.attention)
    elif suffix == ".safetensors":
        save_safetensors(network, args.target)
    else:
        save_timm_folder(network, args.target)
    print(printable(f"wrote {args.target}"))


if __name__ == "__main__":
    main()
