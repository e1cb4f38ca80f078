"""Tests that converted networks compute the same as timm's, transformers' and onnxruntime's; all else is refused."""

import argparse
import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import huggingface_hub
import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torchvision
import transformers
from browser import wait_until_drawn
from helpers import ROOT, exits_with
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import resolve_data_config
from timm.models._hub import save_for_hf
from timm.utils import AttentionExtract

import compare
import convert
import test as test_command
import train
from model import SimpleCNN, build_model
from vit_cifar10.data import cifar
from vit_cifar10.data.images import open_image
from vit_cifar10.data.tables import DATASETS
from vit_cifar10.explain import explorer, live
from vit_cifar10.explain.explanation import Explanation
from vit_cifar10.explain.lens import head_contributions, logit_lens
from vit_cifar10.explain.maps import attention_maps, attention_rollout, attention_to_patches, gradient_rollout
from vit_cifar10.formats import foreign, from_timm
from vit_cifar10.runs import checkpoint

CIFAR10 = DATASETS["cifar10"].classes
IMAGES = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")
SIZE = {"img_size": 48, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
TIMM = {
    "vit": ("vit_tiny_patch16_224", {}),
    "approximate GELU": ("vit_small_patch16_384", {"act_layer": "gelu_tanh"}),
    "no biases": ("vit_base_patch16_224_miil", {"proj_bias": False}),
    "norm before the blocks": ("vit_base_patch16_clip_224", {}),
    "norm after pooling": ("vit_base_patch16_224", {"global_pool": "avg"}),
    "norm before pooling": ("vit_medium_patch16_gap_256", {}),
    "class token that is not pooled": ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "LayerScale": ("deit3_small_patch16_224", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {}),
    "only registers": ("vit_medium_patch16_reg4_gap_256", {"mlp_ratio": 2.7}),
}


def randomize(model):
    """Draw all weights at random: initial zeros and ones could hide a difference."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    return model.eval()


def save_timm(folder, name="vit_tiny_patch16_224", config=None, **arguments):
    """Save a network of timm with random weights as timm does, and return it. `config` changes config.json."""
    model = randomize(timm.create_model(name, **{**SIZE, **arguments}))
    save_for_hf(model, folder, {"label_names": list("abcde")} | (config or {}), safe_serialization=True)
    return model


def save_transformers(folder, kind, **arguments):
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 100}
    sizes |= {"image_size": 48, "patch_size": 8, "num_labels": 3, "attn_implementation": "eager"}
    network = getattr(transformers, kind)
    model = randomize(network(network.config_class(**sizes, **arguments)))
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4] * 3).save_pretrained(folder)
    return model


def convert_in(source, folder):
    """Convert a network to the run `folder`, and load it."""
    convert.main([source, str(folder)])
    return checkpoint.load_network(folder, CPU)


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "arguments"), TIMM.values(), ids=TIMM)
def test_networks_of_timm_keep_their_logits_and_attention_in_both_directions(name, arguments, tmp_path):
    theirs = save_timm(tmp_path / "timm", name, **arguments)
    network = convert_in(f"timm:{tmp_path}/timm", tmp_path / "run")
    images = torch.randn(2, 3, 48, 48)
    for block in theirs.blocks:
        block.attn.fused_attn = False
    extract = AttentionExtract(theirs, names=["blocks.*.attn.attn_drop"], mode="eval", method="hook")
    with torch.inference_mode():
        expected = theirs(images)
        logits, attentions = network.model.forward_with_attention(images)
        assert_close(logits, expected)
        assert_close(network.model(images), expected)
        for ours, other in zip(attentions, extract(images).values(), strict=True):
            assert_close(ours, other)
        config = theirs.pretrained_cfg
        assert (network.classes, network.image_size) == (list("abcde"), 48)
        assert (network.saved["mean"], network.saved["std"]) == (list(config["mean"]), list(config["std"]))
        convert.main([str(tmp_path / "run"), str(tmp_path / "out")])
        back = timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True).eval()
        assert_close(back(images), expected)
    data = resolve_data_config({}, model=back)
    assert (*data["mean"], *data["std"]) == (*config["mean"], *config["std"])
    assert (*data["input_size"], data["crop_pct"], data["interpolation"]) == (3, 48, 48, 1.0, "bicubic")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["label_names"] == list("abcde")


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("ViTForImageClassification", {"id2label": {0: "cat", 1: "dog", 2: "owl"}}),
        ("ViTForImageClassification", {"qkv_bias": False, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3}),
        ("DeiTForImageClassification", {}),
        ("DeiTForImageClassificationWithTeacher", {}),
    ],
)
def test_networks_of_transformers_keep_their_logits_and_attention(kind, arguments, tmp_path):
    theirs = save_transformers(tmp_path / "hf", kind, **arguments)
    network = convert_in(f"hf:{tmp_path}/hf", tmp_path / "run")
    images = torch.randn(2, 3, 48, 48)
    with torch.inference_mode():
        expected = theirs(images, output_attentions=True)
        logits, attentions = network.model.forward_with_attention(images)
    assert_close(logits, expected.logits)
    for ours, other in zip(attentions, expected.attentions, strict=True):
        assert_close(ours, other)
    assert network.classes == list(theirs.config.id2label.values())
    assert (network.saved["mean"], network.saved["std"]) == ([0.1, 0.2, 0.3], [0.4] * 3)


def test_the_table_of_architectures_agrees_with_timm():
    names = [name for name in timm.list_models() if any(re.fullmatch(pattern, name) for pattern in from_timm.NAMES)]
    assert len(names) > 40
    for name in names:
        for arguments in ({}, {"global_pool": "token", "class_token": True}, {"global_pool": "avg", "fc_norm": None}):
            if arguments and "distilled" in name:  # its pooling is fixed
                continue
            with torch.device("meta"):  # the entry point, because create_model leaves out None, unlike config.json
                model = timm.model_entrypoint(name)(depth=1, num_classes=2, **arguments)
            by_table = from_timm.resolve_by_table(name, arguments, model.embed_dim)
            assert by_table == from_timm.read_traits(model, name), (name, arguments)


def test_a_file_of_weights_with_a_name_that_only_timm_knows(tmp_path):
    theirs = save_timm(tmp_path, "vit_base_patch16_gap_224", embed_dim=96, num_heads=None)  # it has 16 heads
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"].pop("num_heads", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save({"model": theirs.state_dict()}, tmp_path / "weights.pth")
    (tmp_path / "model.safetensors").unlink()
    network = convert_in(f"timm:{tmp_path}/weights.pth", tmp_path / "run")
    assert network.saved["model_config"]["num_heads"] == 16
    images = torch.randn(1, 3, 48, 48)
    assert_close(network.model(images), theirs(images))


def test_a_name_is_loaded_by_timm(tmp_path, monkeypatch):
    create = timm.create_model

    def without_download(name, pretrained=False, **arguments):
        return randomize(create(name, img_size=32, depth=1, **arguments)) if pretrained else create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", without_download)
    network = convert_in("timm:vit_tiny_patch16_224", tmp_path / "run")
    assert (len(network.classes), network.image_size) == (1000, 32)
    assert network.classes[1] == "goldfish, Carassius auratus"


# Checkpoints of other programs


def legacy(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


CHECKPOINTS = {  # the contents of a file, from a state dict, and what is reported
    "DataParallel": (lambda weights: {f"module.{name}": value for name, value in weights.items()}, "stripped module."),
    "torch.compile": (lambda weights: {f"_orig_mod.{name}": value for name, value in weights.items()}, "_orig_mod."),
    "Lightning": (
        lambda weights: {
            "pytorch-lightning_version": "2.5.0",
            "hyper_parameters": {"lr": 1e-3, "path": Path("/x"), "loss": torch.nn.CrossEntropyLoss()},
            "state_dict": {f"model.{name}": value for name, value in weights.items()} | {"loss.weight": torch.ones(5)},
        },
        "left out 1 others, such as loss.weight",
    ),
    "DeiT": (lambda weights: {"model": weights, "args": argparse.Namespace(lr=1e-3), "epoch": 3}, "its entry model"),
    "timm": (lambda weights: {"state_dict": weights, "state_dict_ema": {}, "args": argparse.Namespace()}, "state_dict"),
    "only an average": (lambda weights: {"state_dict_ema": weights}, "its entry state_dict_ema"),
    "a number of NumPy": (lambda weights: {"net": weights, "acc": np.float64(91), "best": np.arange(3)}, "entry net"),
    "nested": (lambda weights: {"model": {"state_dict": weights}}, "its entry model.state_dict"),
    "parameters": (lambda weights: {name: torch.nn.Parameter(value) for name, value in weights.items()}, ""),
    "views": (
        lambda weights: {
            name: torch.stack([value, value])[1] if value.ndim == 1 else value.mT.contiguous().mT
            for name, value in weights.items()
        },
        "",
    ),
    "an optimizer": (lambda weights: {"model": weights, "optimizer": optimizer_state(weights)}, "its entry model"),
}


def optimizer_state(weights):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(value) for value in weights.values()])
    sum(value.sum() for value in optimizer.param_groups[0]["params"]).backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize("save", [torch.save, legacy])
@pytest.mark.parametrize(("contents", "printed"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_weights_are_found_in_the_checkpoints_of_other_programs(contents, printed, save, tmp_path, capsys):
    theirs = save_timm(tmp_path)
    save(contents(theirs.state_dict()), tmp_path / "last.ckpt")
    network = convert_in(f"timm:{tmp_path}/last.ckpt", tmp_path / "run")
    assert printed in capsys.readouterr().err
    images = torch.randn(1, 3, 48, 48)
    with torch.inference_mode():
        assert_close(network.model(images), theirs(images))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"embed_dim": 192}),
        *(TIMM[key] for key in ("distilled", "registers", "only registers")),
    ],
)
def test_a_file_without_config_json_is_answered_with_one_that_fits(name, arguments, tmp_path, capsys):
    """Whatever the weights tell is in it. What they do not, the number of heads of an unusual width, is named."""
    patch = {"patch_size": 16} if "distilled" in name else {}
    theirs = randomize(timm.create_model(name, **{**SIZE, **patch, **arguments}))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    line = refused(f"timm:{tmp_path}/weights.pth", tmp_path / "run", capsys)
    assert "the mean and std of the training" in line
    assert ("the number of HEADS" in line) == (arguments.get("embed_dim") != 192)
    config = line[line.index("{") :].replace('"HEADS"', "3")
    (tmp_path / "config.json").write_text(config)
    network = convert_in(f"timm:{tmp_path}/weights.pth", tmp_path / "run")
    images = torch.randn(1, 3, 48, 48)
    with torch.inference_mode():
        assert_close(network.model(images), theirs(images))


class Program:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


@pytest.mark.parametrize("save", [torch.save, legacy])
def test_objects_beside_the_weights_are_never_built(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs = save_timm(tmp_path)
    save({"model": theirs.state_dict(), "args": Program()}, "weights.pth")
    convert.main(["timm:weights.pth", "run"])
    assert not Path("hacked").exists()
    torch.load("weights.pth", weights_only=False)  # what would have happened
    assert Path("hacked").exists()


def forged(change):
    """A function that saves a state dict whose pickle or archive is changed."""

    def save(weights, path):
        torch.save(weights, path)
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        change(entries)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, content)

    return save


def expand(weights, path):
    torch.save({name: torch.ones(1).expand(value.shape) for name, value in weights.items()}, path)


def repeat(weights, path):
    big = torch.ones(3000, 48)
    torch.save({**weights, **{f"blocks.{number}.mlp.fc1.weight": big for number in range(9)}}, path)


def change_pickle(entries):
    entries["archive/data.pkl" if "archive/data.pkl" in entries else next(iter(entries))] = b"\x80\x02(((\x8b."


FORGED = {
    "expanded tensors": expand,
    "one tensor under many names": repeat,
    "a pickle of marks": forged(change_pickle),
    "no storages": forged(lambda entries: [entries.pop(name) for name in [*entries] if "/data/" in name]),
    "short storages": forged(lambda entries: entries.update({name: b"" for name in entries if "/data/" in name})),
    "a cut file": lambda weights, path: (torch.save(weights, path), path.open("r+b").truncate(5000)),
    "a cut legacy file": lambda weights, path: (legacy(weights, path), path.open("r+b").truncate(20000)),
    "nested tuples": lambda weights, path: path.write_bytes(b"\x80\x02)" + b"\x85" * 1_000_000 + b"."),
    "text": lambda weights, path: path.write_text("version https://git-lfs.github.com/spec/v1"),
    "nothing": lambda weights, path: path.touch(),
}


@pytest.mark.parametrize("save", FORGED.values(), ids=FORGED)
def test_forged_files_of_weights_are_refused_in_one_line(save, tmp_path, capsys):
    save(save_timm(tmp_path).state_dict(), tmp_path / "weights.pth")
    refused(f"timm:{tmp_path}/weights.pth", tmp_path / "run", capsys)


@pytest.mark.parametrize("kind", ["shards", "bin", "shards of bin", "no processor", "the Hub"])
def test_folders_of_transformers_in_other_ways(kind, tmp_path, monkeypatch, capsys):
    folder, source = tmp_path / "hf", f"hf:{tmp_path}/hf"
    theirs = save_transformers(folder, "ViTForImageClassification")
    weights = load_file(folder / "model.safetensors")
    if "shards" in kind:
        (folder / "model.safetensors").unlink()
        name = "pytorch_model-{}.bin" if "bin" in kind else "model-{}.safetensors"
        places = {key: name.format(number % 2) for number, key in enumerate(weights)}
        for file in set(places.values()):
            part = {key: value for key, value in weights.items() if places[key] == file}
            torch.save(part, folder / file) if "bin" in kind else save_file(part, folder / file)
        index = "pytorch_model.bin.index.json" if "bin" in kind else "model.safetensors.index.json"
        (folder / index).write_text(json.dumps({"weight_map": places}))
    elif kind == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")
    elif kind == "no processor":
        (folder / "preprocessor_config.json").unlink()
    else:
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: f"{tmp_path}/{name[5:]}")
        source = "hf:some/hf"
    network = convert_in(source, tmp_path / "run")
    images = torch.randn(1, 3, 48, 48)
    with torch.inference_mode():
        assert_close(network.model(images), theirs(images).logits)
    if kind == "no processor":
        assert network.saved["mean"] == network.saved["std"] == [0.5] * 3
        assert "mean 0.5 and std 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "resize"), [({"height": 48, "width": 48}, "squash"), ({"shortest_edge": 48}, "crop")])
def test_the_preparation_of_images_travels_with_the_network(size, resize, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    theirs = save_transformers(tmp_path / "hf", "ViTForImageClassification", layer_norm_eps=1e-6)  # which timm has
    processor = transformers.ViTImageProcessor(size=size, resample=3)  # bicubic
    processor.save_pretrained(tmp_path / "hf")
    network = convert_in("hf:hf", tmp_path / "model" / "run")
    wide = np.array(Image.open(ROOT / "examples" / "cat.png").convert("RGB").resize((150, 50)))
    wide[:, :50] = 0
    Image.fromarray(wide).save("wide.png")
    flags = "--mode custom --image_path wide.png --model_path run --device cpu"
    test_command.main([*flags.split(), "--no_gif", "--no_image"])
    printed = capsys.readouterr()
    assert ("cut to the square" in printed.err) == (resize == "crop")
    square = Image.fromarray(wide if resize == "squash" else wide[:, 50:100]).resize((48, 48), Image.Resampling.BICUBIC)
    inputs = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = theirs(network.prepare(inputs)).logits.softmax(dim=1).max().item()
    assert f"{100 * expected:6.2f} %" in printed.out
    if resize == "squash":  # with a shortest edge, transformers leaves the image wide
        theirs = processor(Image.open("wide.png"), return_tensors="pt")["pixel_values"]
        assert (theirs - network.prepare(inputs)).abs().mean() < 0.02
    convert.main(["run", "timm/"])
    assert convert_in("timm:timm", tmp_path / "again").resize == resize
    kept = [train.read_flags(["--init", "run", f"--dataset={name}"])[0].resize for name in ("folder", "shapes")]
    assert kept == [resize, "crop"]


def test_shards_stay_in_their_folder_and_are_complete(tmp_path, capsys):
    save_transformers(tmp_path / "hf", "ViTForImageClassification")
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / "part.safetensors")
    for places, reason in (
        ({"a": "../hf/part.safetensors"}, "next to it"),
        ({"a": "part.safetensors"}, "in none of its files"),
        ({"a": "other.safetensors"}, "there is no file"),
        ({"a": 1}, "not an index"),
        ([], "not an index"),
    ):
        (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        assert reason in refused(f"hf:{tmp_path}/hf", tmp_path / "run", capsys)


@pytest.mark.parametrize("name", ["timm/vit_tiny.augreg", "hf-hub:timm/vit_tiny.augreg", "hf_hub:timm/vit_tiny.augreg"])
def test_timm_networks_are_fetched_by_their_names_on_the_hub(name, tmp_path, monkeypatch, capsys):
    save_timm(tmp_path / "timm" / "vit_tiny.augreg")
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: str(tmp_path / name))
        network = convert_in(f"timm:{name}", tmp_path / "run")
    assert network.saved["recipe"]["converted_from"] == "timm:vit_tiny.augreg"

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    remedy = "(no network); run hf download timm/vit_tiny.augreg --local-dir FOLDER, then convert timm:FOLDER"
    assert remedy in refused(f"timm:{name}", tmp_path / "other", capsys)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    line = refused(f"timm:{name}", tmp_path / "other", capsys)
    assert "hf download timm/vit_tiny.augreg" in line
    assert "pip install huggingface_hub" in line


@pytest.mark.parametrize("classes", [5, 1000])
def test_networks_of_torchvision_keep_their_logits_and_attention(classes, tmp_path, capsys):
    theirs = torchvision.models.VisionTransformer(48, 8, 2, 12, 768, 100, num_classes=classes)
    randomize(theirs)
    torch.save({"model": theirs.state_dict(), "args": argparse.Namespace()}, tmp_path / "vit.pth")
    network = convert_in(f"torchvision:{tmp_path}/vit.pth", tmp_path / "run")
    images = torch.randn(2, 3, 48, 48)
    with torch.inference_mode():
        torch.testing.assert_close(network.model(images), theirs(images), rtol=1e-4, atol=1e-3)
    assert network.classes[:2] == (["tench", "goldfish"] if classes == 1000 else ["class 0", "class 1"])
    assert network.saved["mean"] == [0.485, 0.456, 0.406]
    for weights, reason in (
        ({"fc.weight": torch.ones(2, 2)}, "as torchvision's ViTs have"),
        ({"bn1.num_batches_tracked": torch.tensor(3)}, "plain ViTs have floating-point numbers only"),  # a ResNet
        (theirs.state_dict() | {"conv_proj.weight": torch.ones(64, 3, 8, 8)}, "tokens of width 64"),
        (theirs.state_dict() | {"encoder.pos_embedding": torch.ones(1, 9, 768)}, "which do not fit 16 x 16 pixels"),
    ):
        torch.save(weights, tmp_path / "other.pth")
        assert reason in refused(f"torchvision:{tmp_path}/other.pth", tmp_path / "other", capsys)


# What is written


@pytest.fixture
def network_run(tmp_path):
    """A function that saves an untrained network as a run and returns its folder."""

    def save(config, name="net"):
        model = randomize(build_model(config))
        contents = {"model_config": config, "weights": model.state_dict(), "classes": list("abc"), "mean": [0.5] * 3}
        contents |= {"std": [0.2] * 3, "dataset": "folder", "epoch": 0, "metrics": {}, "recipe": {}}
        checkpoint.save(tmp_path / name / "best.pt", contents)
        return tmp_path / name

    return save


PLAIN = {
    **{"model": "vit", "img_size": 32, "patch_size": 8, "num_classes": 3, "global_pool": "token", "class_token": True},
    **{"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0},
}
DISTILLED = PLAIN | {"global_pool": "distilled", "reg_tokens": 1, "act_layer": "gelu_tanh", "pre_norm": True}
CNN = {"model": "cnn", "img_size": 32, "num_classes": 3, "width": 4}


@pytest.mark.parametrize("config", [DISTILLED, CNN], ids=["vit", "cnn"])
def test_onnx_files_compute_the_same_for_any_number_of_images(config, network_run, tmp_path):
    run, has_attention = network_run(config), config["model"] == "vit"
    convert.main([str(run), f"{tmp_path}/net.onnx", *["--attention"] * has_attention])
    model = checkpoint.load_network(run, CPU).model
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list("abc")
    for count in (1, 3):
        images = torch.randn(count, 3, 32, 32)
        logits, *attentions = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
        with torch.inference_mode():
            assert_close(logits, model(images))
            expected = model.forward_with_attention(images)[1] if has_attention else []
        for ours, other in zip(attentions, expected, strict=True):
            assert_close(ours, other)


@pytest.mark.parametrize("config", [DISTILLED, PLAIN | {"norm_eps": 1e-5}], ids=["distilled", "epsilon"])
def test_timm_loads_networks_with_every_feature(config, network_run, tmp_path):
    run = network_run(config)
    convert.main([str(run), f"{tmp_path}/out/"])
    theirs = timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    assert_close(checkpoint.load_network(run, CPU).model(images), theirs(images))
    assert theirs.norm.eps == theirs.blocks[0].norm1.eps == config.get("norm_eps", 1e-6)


def test_safetensors_files_hold_the_state_dict(network_run, tmp_path):
    convert.main([str(network_run(CNN)), f"{tmp_path}/net.safetensors"])
    saved = checkpoint.load(tmp_path / "net")
    for name, value in load_file(tmp_path / "net.safetensors").items():
        assert torch.equal(value, saved["weights"][name])


def test_torch_hub_loads_the_shipped_networks(tmp_path):
    cat = Image.open(ROOT / "examples" / "cat.png").convert("RGBA").crop((0, 0, 300, 200))
    cat.save(tmp_path / "cat.png")
    pixels = open_image(tmp_path / "cat.png", 32)[None]
    shipped = sorted(path.parent for path in ROOT.glob("model/*-32-cifar10/best.pt"))
    assert shipped
    for folder in shipped:
        name = folder.name.replace("-32-", "-").replace("-", "_")
        model = torch.hub.load(str(ROOT), name, source="local")
        network = checkpoint.load_network(folder, CPU)
        batch = model.transform(cat)
        assert_close(batch, network.prepare(pixels))
        assert_close(model(batch), network.logits(pixels))
        assert model.classes == network.classes
        untrained = torch.hub.load(str(ROOT), name, source="local", pretrained=False)
        assert not torch.allclose(untrained.eval()(batch), model(batch))


def test_torch_hub_leaves_the_model_py_of_another_project_alone(tmp_path):
    """Before and after its own import. The network can be pickled, as for worker processes."""
    (tmp_path / "model.py").write_text("class Net: pass")
    load = f"m = torch.hub.load({str(ROOT)!r}, 'vit_layer6_cifar10', source='local'); pickle.loads(pickle.dumps(m))"
    for first, second in (("import model", load), (load, "import model")):
        code = f"import pickle, torch\n{first}\n{second}\nprint(model.Net, len(m.classes))"
        command = [sys.executable, "-c", code]
        printed = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
        assert printed.stdout == "<class 'model.Net'> 10\n", printed.stderr


# Explanations of networks with other tokens

OTHERS = {
    "distilled": DISTILLED,
    "registers": PLAIN | {"reg_tokens": 4},
    "only registers": PLAIN | {"global_pool": "avg", "class_token": False, "reg_tokens": 3},
    "norm before pooling": PLAIN | {"global_pool": "avg", "fc_norm": False},
}


@pytest.fixture(params=OTHERS.values(), ids=OTHERS)
def other(request):
    """A ViT that train.py cannot build, its prefix tokens, and the tokens that its head reads."""
    model = randomize(build_model(request.param))
    prefix = model.num_prefix_tokens
    read = {"token": [0], "distilled": [0, 1], "avg": list(range(prefix, prefix + 16))}[model.global_pool]
    return model, prefix, read


def test_attention_and_rollouts_leave_out_all_tokens_before_the_patches(other):
    model, prefix, read = other
    images, pool = torch.randn(2, 3, 32, 32), model.global_pool
    maps = attention_maps(model, images)
    one = torch.eye(prefix + 16)
    rollout = torch.stack(
        [
            torch.linalg.multi_dot([*((0.5 * m.mean(0) + 0.5 * one) for m in reversed(of))])
            for of in maps.transpose(0, 1)
        ]
    )
    assert_close(attention_rollout(maps, global_pool=pool).flatten(1), rollout[:, read, prefix:].mean(1))
    assert_close(attention_to_patches(maps, pool).flatten(2), maps.mean(2)[:, :, read, prefix:].mean(2))
    assert gradient_rollout(model, images).shape == (2, 4, 4)


def test_contributions_of_heads_are_what_their_outputs_add_through_norm_pooling_and_head(other):
    model, _, read = other
    images, targets = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    contributions = head_contributions(model, images, targets)
    assert_close(logit_lens(model, images)[-1], model(images))
    norm = next(norm for norm in (model.norm, model.fc_norm) if isinstance(norm, torch.nn.LayerNorm))
    halves = model.head.weight.unflatten(1, (-1, 32))
    with torch.inference_mode():
        streams = [model.embed(images)]
        for block in model.blocks:
            streams.append(block(streams[-1]))
        for layer, block in enumerate(model.blocks):
            query, key, value = block.attn.project(block.norm1(streams[layer]))
            mixed = (query @ key.transpose(-2, -1) * block.attn.scale).softmax(-1) @ value  # (B, heads, N, 16)
            for image, head in ((0, 0), (1, 1)):
                added = mixed[image, head] @ block.attn.proj.weight[:, 16 * head : 16 * (head + 1)].T
                final = streams[-1][image]
                if norm is model.fc_norm:
                    added, final = added[read].mean(0, keepdim=True), final[read].mean(0, keepdim=True)
                std = (final.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
                passed = (added - added.mean(-1, keepdim=True)) / std * norm.weight
                if norm is model.norm:
                    passed = passed[read] if len(read) < 3 else passed[read].mean(0, keepdim=True)
                expected = (passed * halves[targets[image]]).sum()
                assert_close(contributions[layer, image, head], expected)


@pytest.mark.parametrize("config", [DISTILLED, PLAIN | {"reg_tokens": 4}], ids=["distilled", "registers"])
def test_pages_show_other_tokens_and_attention_in_8_bits(config, network_run, visit, tmp_path, monkeypatch):
    monkeypatch.setattr(explorer, "MAX_PRECISE", 0)
    network = checkpoint.load_network(network_run(config), CPU)
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    explorer.write_page(
        tmp_path / "page.html", network, [explorer.page_entry(Explanation(network, image), "image", "")]
    )
    page = visit(tmp_path / "page.html")
    expected, prefix = (
        attention_maps(network.model, network.prepare(image[None]))[:, 0],
        network.model.num_prefix_tokens,
    )
    for token, row in (("'class'", 0), ("3", prefix + 3)):
        shown = page.evaluate(f"explorer.attentionOf({token}, true, 2, 3)")  # of the second head in layer 2
        of_patches = torch.tensor(shown["values"])
        torch.testing.assert_close(of_patches, expected[1, 1, row, prefix:], rtol=0.02, atol=1e-4)
        assert shown["classToken"] == pytest.approx(expected[1, 1, row, 0].item(), rel=0.02, abs=1e-4)
    for method in ("attention", "evidence", "rollout", "gradientRollout", "gradCam", "removal"):
        page.evaluate(f"explorer.change({{method: '{method}'}})")
        wait_until_drawn(page)
        assert "NaN" not in page.locator("body").inner_text()
    assert "8 bits" in page.locator("body").inner_text()


def test_a_converted_network_is_tested_and_explained_like_any_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_timm(tmp_path / "timm", "vit_small_patch14_reg4_dinov2")
    convert.main(["timm:timm", "model/my-vit"])
    Image.new("RGB", (60, 50), "teal").save("img.png")
    explain = ["--mode", "custom", "--image_path", "img.png", "--model_path", "my-vit", "--html", "page.html"]
    test_command.main([*explain, "--method", "attention", "rollout", "gradient-rollout", "grad-cam", "attn-lrp"])
    assert "vit converted from timm:timm\n" in capsys.readouterr().out
    assert (tmp_path / "attention_map_gif" / "img.gif").exists()
    with exits_with(2):
        test_command.main([*explain, "--live"])
    assert "registers or a distillation token" in capsys.readouterr().err
    for number in range(25):
        file = tmp_path / "images" / "abcde"[number % 5] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 48), (10 * number, 99, 0)).save(file)
    save_timm(tmp_path / "other")
    convert.main(["timm:other", "model/other"])
    capsys.readouterr()
    compare.main(["my-vit", "other", "--data_path", "images", "--num_workers", "0", "--device", "cpu"])
    printed = capsys.readouterr()
    assert "compare.py: my-vit was converted from timm:timm, so it has no curves" in printed.err
    assert "ViT 2 x 48, patch 8" in printed.out


# Classes

DOZEN = [str(number) for number in range(12)]  # sorted as text, 10 comes before 2
MATCHES = {  # the network's classes in the order of the logits, the class folders, more flags, and what is printed
    "another order": (["dog", "cat", "owl"], ["cat", "dog", "owl"], "", "by name"),
    "another case": (["Dog", "cat", "snow leopard"], ["Cat", "dog", "snow_leopard"], "", "by name"),
    "numbers sorted as text": (DOZEN, DOZEN, "", "by name"),
    "labels by number": ([f"LABEL_{number}" for number in DOZEN], DOZEN, "", "by name"),
    "names by number": ([f"age {number}" for number in DOZEN], DOZEN, "", "by number: 0 is age 0, 1 is age 1, 10 is"),
    "several names": (["tench, Tinca tinca", "cock", "goldfish, carp"], ["cock", "goldfish", "tench"], "", "by name"),
    "some classes": (["dog", "cat", "owl"], ["cat", "owl"], "", "1 classes of the network have no images"),
    "synonyms": (["truck", "automobile", "airplane"], ["car", "plane", "truck"], "", "car is automobile"),
    "a file": (["LABEL_0", "LABEL_1", "LABEL_2"], ["ape", "bee", "cow"], "--class_names names.txt", "by name"),
}


def save_images(folder, classes, count=3):
    """Save images of 48 x 48 pixels in folder/train/CLASS/ and folder/test/CLASS/, and return the test files."""
    numbers = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 256, (48, 48, 3), dtype=torch.uint8, generator=numbers).numpy()
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return sorted(folder.glob("test/*/*.png"))


@pytest.mark.parametrize(("classes", "folders", "flags", "printed"), MATCHES.values(), ids=MATCHES)
def test_the_classes_of_images_are_matched_to_those_of_a_network(
    classes, folders, flags, printed, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    save_timm(tmp_path / "timm", config={"label_names": classes}, num_classes=len(classes))
    network = convert_in("timm:timm", tmp_path / "model" / "vit")
    files = save_images(tmp_path / "images", folders)
    (tmp_path / "names.txt").write_text("cow\nape\nbee\n")
    capsys.readouterr()
    test_command.main(["--model_path", "vit", "--data_path", "images", "--device", "cpu", *flags.split()])
    assert printed in capsys.readouterr().err
    expected = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    normal = {"car": "automobile", "plane": "airplane"}
    names = ["cow", "ape", "bee"] if flags else [name.lower().split(",")[0] for name in classes]
    for file in files:
        name = normal.get(file.parent.name, file.parent.name).lower().replace("_", " ")
        label = int(name) if name.isdecimal() else names.index(name)
        expected[label, network.logits(open_image(file, 48)[None]).argmax()] += 1
    results = json.loads((tmp_path / "output" / "vit" / "test_results.json").read_text())
    assert results["confusion_matrix"] == expected.tolist()


@pytest.mark.parametrize(
    ("classes", "folders", "reason"),
    [
        (
            ["cat", "dog", "owl"],
            ["cat", "cow", "pig"],
            "2 of their 3 classes (cow, pig); only the network has dog, owl",
        ),
        (["LABEL_0", "LABEL_1"], ["cat", "dog"], "--class_names FILE"),
        (["automobile", "truck"], ["automobile", "car"], "are both automobile"),
        (["cat", "dog"], ["1", "2"], "(1, 2); only the network has cat, dog"),
    ],
)
def test_classes_that_differ_are_listed(classes, folders, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_timm(tmp_path / "timm", config={"label_names": classes}, num_classes=len(classes))
    convert.main(["timm:timm", "model/vit"])
    save_images(tmp_path / "images", folders)
    capsys.readouterr()
    with exits_with(2):
        test_command.main(["--model_path", "vit", "--data_path", "images", "--device", "cpu"])
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_a_converted_network_takes_the_place_of_one_trained_on_a_data_set(tmp_path, monkeypatch, capsys):
    """With --dataset at its conversion, or only for a test, whose results get a folder of their own."""
    monkeypatch.chdir(tmp_path)
    classes = ["truck", "Car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "plane"]
    save_timm(tmp_path / "timm", config={"label_names": classes}, num_classes=10, img_size=32)
    monkeypatch.setattr(cifar, "load_files", lambda *_: (IMAGES, torch.arange(30) % 10, list(CIFAR10)))
    convert.main(["timm:timm", "model/converted"])
    convert.main(["timm:timm", "model/adopted", "--dataset", "cifar10"])
    assert "automobile is Car" in capsys.readouterr().out
    networks = [checkpoint.load_network(tmp_path / "model" / name, CPU) for name in ("converted", "adopted")]
    order = [9, 1, 2, 3, 4, 5, 6, 7, 8, 0]
    assert networks[1].classes == list(CIFAR10)
    assert_close(networks[1].logits(IMAGES), networks[0].logits(IMAGES)[:, order])
    test_command.main(["--model_path", "adopted", "--device", "cpu"])
    test_command.main(["--model_path", "converted", "--device", "cpu", "--dataset", "cifar10"])
    both = [tmp_path / "output" / name / "test_results.json" for name in ("adopted", "converted-on-cifar10")]
    one, other = (json.loads(path.read_text()) for path in both)
    assert one["dataset"] == other["dataset"] == "cifar10"
    assert one["accuracy"] == other["accuracy"] > 0
    assert not (tmp_path / "output" / "converted").exists()
    shutil.copytree(ROOT / "model" / "cnn-32-cifar10", tmp_path / "model" / "cnn-32-cifar10")
    compare.main(["adopted", "cnn-32-cifar10", "--device", "cpu"])
    assert "different data sets" not in capsys.readouterr().err


def test_the_steps_of_the_documentation_work(tmp_path, monkeypatch, capsys):
    """With networks on the disk instead of the one that is downloaded."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    names = ["tench, Tinca tinca", "goldfish", "hammerhead", "cock", "ant"]  # as ImageNet's, not in alphabetical order
    for name in ("vit", "other"):
        save_timm(tmp_path / name, config={"label_names": names})
    convert.main(["timm:other", "model/my-other-vit"])
    save_images(tmp_path / "imagenet_val", ["tench", "goldfish", "hammerhead", "cock", "ant"], count=10)
    text = (ROOT / "docs" / "your-own.md").read_text()
    block = next(block for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if "pip install timm" in block)
    steps = [shlex.split(line, comments=True) for line in block.splitlines() if line.startswith("python")]
    assert len(steps) == 5
    smaller = {"timm:vit_small_patch16_224.augreg_in21k_ft_in1k": "timm:vit", "50": "10"}  # and fewer images
    for _, script, *words in steps:
        command = {"convert.py": convert, "test.py": test_command, "compare.py": compare}[script]
        command.main([smaller.get(word, word) for word in words])
    printed = capsys.readouterr()
    assert "the 5 classes of these images are matched to the network's by name" in printed.err
    assert "my-other-vit" in printed.out
    assert (tmp_path / "output" / "my-vit" / "faithfulness.csv").exists()


# What is refused


def refused(source, target, capsys):
    """The line with which convert.py refuses to convert, and writes nothing."""
    capsys.readouterr()
    with exits_with(2):
        convert.main([str(source), str(target)])
    printed = capsys.readouterr()
    assert not Path(target).exists()
    assert printed.err.count("\n") == 1
    assert not printed.out
    return printed.err


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("swin_tiny_patch4_window7_224", {}, "SwinTransformer (windows)"),
        ("eva02_tiny_patch14_224", {}, "rotary positions"),
        ("vit_base_patch16_siglip_224", {}, "an attention-pool head"),
        ("vit_base_patch16_xp_224", {}, "ParallelScalingBlock"),
        ("vit_base_patch32_clip_quickgelu_224", {}, "QuickGELU"),
        ("vit_giant_patch14_dinov2", {}, "GluMlp"),
        ("vit_tiny_patch16_224", {"qk_norm": True}, "qk_norm is not supported"),
        ("vit_tiny_patch16_224", {"num_classes": 0}, "no classifier"),
        ("vit_tiny_patch16_224", {"in_chans": 1}, "1 x 8 x 8"),
        ("vit_tiny_patch16_224", {"img_size": (32, 48)}, "only square"),
        ("vit_tiny_patch16_224", {"pos_embed": "none"}, "pos_embed is not supported"),
    ],
)
def test_what_is_not_a_plain_vit_is_refused_by_name(name, arguments, reason, tmp_path, capsys):
    save_timm(tmp_path / "timm")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    if arguments:
        model = timm.create_model(name, **{**SIZE, **arguments})
        save_for_hf(model, tmp_path / "timm", safe_serialization=True)
    else:  # the architecture alone is reason enough
        config["model_args"] = {}
        del config["global_pool"]
        (tmp_path / "timm" / "config.json").write_text(json.dumps(config | {"architecture": name}))
    assert reason in refused(f"timm:{tmp_path}/timm", tmp_path / "run", capsys)


def change_config(change):
    def damage(folder):
        path = folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return damage


def change_weights(change):
    def damage(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return damage


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def header(text):
    return len(text).to_bytes(8, "little") + text


def with_layer_scale(change):
    def damage(folder):
        save_timm(folder, init_values=0.1)
        change_weights(change)(folder)

    return damage


DAMAGE = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no JSON": write("config.json", b"\xff\xfe{"),
    "nested JSON": write("config.json", b"[" * 100_000),
    "a number of many digits": write("config.json", b'{"a": ' + b"9" * 10_000 + b"}"),
    "a list": write("config.json", b"[]"),
    "a huge file": lambda folder: (folder / "config.json").open("r+b").truncate(10**10),
    "no architecture": change_config(lambda config: config.pop("architecture")),
    "a path as architecture": change_config(lambda config: config.update(architecture="../../x")),
    "an unknown architecture": change_config(lambda config: config.update(architecture="vit_nothing")),
    "no mean": change_config(lambda config: config["pretrained_cfg"].pop("mean")),
    "a std of zero": change_config(lambda config: config["pretrained_cfg"].update(std=[0, 1, 1])),
    "a huge image": change_config(lambda config: config["model_args"].update(img_size=10**9)),
    "another image": change_config(lambda config: config["model_args"].update(img_size=64)),
    "huge heads": change_config(lambda config: config["model_args"].update(num_heads=10**12)),
    "heads that do not divide": change_config(lambda config: config["model_args"].update(num_heads=5)),
    "heads as text": change_config(lambda config: config["model_args"].update(num_heads="3")),
    "a huge depth": change_config(lambda config: config["model_args"].update(depth=10**9)),
    "another width": change_config(lambda config: config["model_args"].update(embed_dim=64)),
    "arguments as a list": change_config(lambda config: config.update(model_args=[1])),
    "an argument that timm would import": change_config(lambda config: config["model_args"].update(block_fn="os")),
    "too few classes": change_config(lambda config: config.update(label_names=["a"])),
    "classes that print": change_config(lambda config: config.update(label_names=["\x1b[2J"] * 5)),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "an empty file": write("model.safetensors", b""),
    "a huge header": write("model.safetensors", (10**12).to_bytes(8, "little") + b"{}"),
    "a nested header": write("model.safetensors", header(b"[" * 100_000)),
    "a tensor beyond the file": write(
        "model.safetensors", header(b'{"head.weight":{"dtype":"F32","shape":[100000,100000],"data_offsets":[0,8]}}')
    ),
    "NaN": change_weights(lambda weights: weights["head.weight"].fill_(float("nan"))),
    "whole numbers": change_weights(lambda weights: weights.update({"head.bias": torch.ones(5, dtype=torch.int64)})),
    "a missing weight": change_weights(lambda weights: weights.pop("blocks.1.mlp.fc2.bias")),
    "no LayerScale": with_layer_scale(lambda weights: [weights.pop(name) for name in [*weights] if "gamma" in name]),
    "no biases of queries": change_weights(
        lambda weights: [weights.pop(name) for name in [*weights] if "qkv.b" in name]
    ),
    "LayerScale in one block": with_layer_scale(lambda weights: weights.pop("blocks.1.ls2.gamma")),
    "one class": lambda folder: save_timm(folder, config={"label_names": ["a"]}, num_classes=1),
    "undeclared registers": change_weights(lambda weights: weights.update({"reg_token": torch.ones(1, 2, 48)})),
    "a missing block": change_weights(lambda weights: [weights.pop(name) for name in [*weights] if ".0." in name]),
    "another shape": change_weights(lambda weights: weights.update({"norm.weight": torch.ones(7)})),
    "an extra weight": change_weights(lambda weights: weights.update({"blocks.0.attn.q_norm.weight": torch.ones(16)})),
    "a block of a huge number": change_weights(
        lambda weights: weights.update({f"blocks.{9**20}.ls1.gamma": torch.ones(9)})
    ),
    "more classes than any network": change_weights(
        lambda weights: weights.update({"head.weight": torch.ones(100_001, 48), "head.bias": torch.ones(100_001)})
    ),
    "a scale of another length": change_weights(lambda weights: weights.update({"blocks.0.ls1.gamma": torch.ones(7)})),
    "a matrix of no axes": change_weights(lambda weights: weights.update({"blocks.0.attn.qkv.weight": torch.ones(())})),
    "registers in a hundred thousand": change_weights(
        lambda weights: weights.update(reg_token=torch.ones(1, 100_000, 48), pos_embed=torch.ones(1, 100_037, 48))
    ),
    "a head of one axis": change_weights(lambda weights: weights.update({"head.weight": torch.ones(48)})),
    "a patch projection of no axes": change_weights(
        lambda weights: weights.update({"patch_embed.proj.weight": torch.ones(())})
    ),
    "positions of one axis": change_weights(lambda weights: weights.update({"pos_embed": torch.ones(48)})),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_folders_of_timm_are_refused_in_one_line(damage, tmp_path, capsys):
    save_timm(tmp_path / "timm")
    damage(tmp_path / "timm")
    refused(f"timm:{tmp_path}/timm", tmp_path / "run", capsys)


def test_damaged_folders_of_transformers_are_refused_in_one_line(tmp_path, capsys):
    save_transformers(tmp_path / "hf", "ViTForImageClassification")
    kept = {path: path.read_bytes() for path in (tmp_path / "hf").iterdir()}
    damages = [
        (change_config(lambda config: config.update(architectures=["ViTModel"])), "no classifier"),
        (change_config(lambda config: config.pop("architectures")), "no architecture of transformers"),
        (change_config(lambda config: config.update(problem_type="multi_label_classification")), "several labels"),
        (change_config(lambda config: config.update(architectures=["BeitForImageClassification"])), "Beit"),
        (change_config(lambda config: config.update(hidden_act="relu")), "hidden_act"),
        (change_config(lambda config: config.update(num_attention_heads=10**12)), "num_attention_heads"),
        (change_config(lambda config: config.update(image_size=[48, 64])), "square"),
        (change_config(lambda config: config.update(id2label={"0": "a"})), "classes"),
        (write("preprocessor_config.json", b'{"rescale_factor": 1' + b"0" * 400 + b"}"), "rescale_factor"),
        (write("preprocessor_config.json", b'{"rescale_factor": 1, "image_mean": [0, 0, 0]}'), "rescale_factor"),
        (write("preprocessor_config.json", b'{"image_mean": [0, 0], "image_std": [1, 1, 1]}'), "image_mean"),
        (change_weights(lambda weights: weights.pop("vit.encoder.layer.0.attention.attention.key.weight")), "queries"),
        (change_weights(lambda weights: weights.update(pooler=torch.ones(1))), "pooler"),
        (change_weights(lambda weights: [weights.pop(name) for name in [*weights] if "query.bias" in name]), "queries"),
    ]
    for damage, reason in damages:
        damage(tmp_path / "hf")
        assert reason in refused(f"hf:{tmp_path}/hf", tmp_path / "run", capsys)
        for path, content in kept.items():
            path.write_bytes(content)


def test_a_placeholder_of_git_lfs_is_called_so(tmp_path, capsys):
    save_timm(tmp_path)
    for name, source in (("model.safetensors", f"timm:{tmp_path}"), ("best.pt", tmp_path)):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        assert "get them with: git lfs pull" in refused(source, tmp_path / "run", capsys)


def test_files_that_would_run_code_are_refused(tmp_path, capsys):
    save_timm(tmp_path)
    torch.save(SimpleCNN(), tmp_path / "weights.pth")  # a pickled network, not only its weights
    assert "is refused" in refused(f"timm:{tmp_path}/weights.pth", tmp_path / "run", capsys)
    (tmp_path / "weights.pth").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    refused(f"timm:{tmp_path}/weights.pth", tmp_path / "run", capsys)


def test_existing_files_are_kept(network_run, tmp_path, capsys):
    run = network_run(PLAIN)
    save_timm(tmp_path / "timm")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for source, target, reason in (
        (f"timm:{tmp_path}/timm", run, "already holds a run"),
        (run, tmp_path / "timm", "not empty"),
        (run, run / "best.pt", "cannot be written"),
    ):
        with exits_with(2):
            convert.main([str(source), str(target)])
        assert reason in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("config", "target", "reason"),
    [
        (CNN, "out", "a CNN"),
        (PLAIN | {"norm_eps": 1e-12}, "out", "norm_eps 1e-12"),
    ],
)
def test_what_timm_does_not_have_is_refused(config, target, reason, network_run, tmp_path, capsys):
    assert reason in refused(network_run(config), tmp_path / target, capsys)


def test_missing_packages_are_named(network_run, tmp_path, capsys, monkeypatch):
    run = network_run(PLAIN)
    save_timm(tmp_path / "timm")
    for package, source, target in (
        ("safetensors", f"timm:{tmp_path}/timm", "out"),
        ("timm", "timm:vit_tiny_patch16_224", "out"),
        ("onnx", run, "out.onnx"),
        ("onnxscript", run, "out.onnx"),
        ("safetensors.torch", run, "out.safetensors"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            assert f"pip install {package.split('.')[0]}" in refused(source, tmp_path / target, capsys)


def test_sizes_that_a_machine_or_page_cannot_hold_are_refused(network_run, tmp_path, capsys, monkeypatch):
    save_timm(tmp_path / "timm")
    with monkeypatch.context() as patch:
        patch.setattr(foreign, "physical_memory", lambda: 1000)
        assert "too much for this machine" in refused(f"timm:{tmp_path}/timm", tmp_path / "run", capsys)
    network = checkpoint.load_network(network_run(PLAIN), CPU)
    explorer.check_size(network, live=True)
    for entry, value in {"pre_norm": True, "fc_norm": False, "act_layer": "gelu_tanh", "norm_eps": 1e-5}.items():
        changed = dataclasses.replace(network, saved={"model_config": {**PLAIN, entry: value}})
        with pytest.raises(explorer.UserError, match=entry):
            explorer.check_size(changed, live=True)
    monkeypatch.setattr(live, "LARGEST_NETWORK", 1000)
    with pytest.raises(explorer.UserError, match="weights"):
        explorer.check_size(network, live=True)
    monkeypatch.setattr(explorer, "MAX_PAGE", 10_000)
    explorer.check_size(network)
    with pytest.raises(explorer.UserError, match="the page of 9 images would take"):
        explorer.check_size(network, count=9)
