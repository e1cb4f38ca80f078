"""Tests of fine-tuning: what a run takes over from another run, what stays fixed, and what is recorded."""

import hashlib
import json
import re
import shutil
import signal

import numpy as np
import pytest
import torch
from helpers import EVERY_METHOD, assert_equal_weights, exits_with, load_weights, signals_in_step, training_flags
from PIL import Image
from timm.layers import resample_abs_pos_embed

import compare
import test as test_command
import train
from model import VisionTransformer, build_model
from vit_cifar10.runs import checkpoint
from vit_cifar10.training.finetune import freeze, load_initial
from vit_cifar10.training.trainer import Trainer

NETWORKS = ("vit", "cnn")
MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.4, 0.3]  # unlike the ones of the drawn shapes
SHORT = "--epochs 1 --batch_size 64 --num_train_images 128 --num_test_images 100 --val_images 100"


@pytest.fixture(scope="module")
def sources(runs, tmp_path_factory):
    """A folder with the weights of the trained runs, "vit" and "cnn", and with another normalization."""
    folder = tmp_path_factory.mktemp("sources")
    for name in NETWORKS:
        saved = checkpoint.load(runs / "model" / name)
        checkpoint.save(folder / name / "best.pt", {**saved, "mean": MEAN, "std": STD})
    saved = checkpoint.load(folder / "vit")
    config = {**saved["model_config"], "global_pool": "distilled", "reg_tokens": 1, "pre_norm": True}
    weights = build_model(config).state_dict()
    contents = {**saved, "model_config": config, "weights": weights, "recipe": {"converted_from": "timm:deit"}}
    checkpoint.save(folder / "distilled" / "best.pt", contents)  # as convert.py writes it
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with 60 dark and bright images of 16 x 16 pixels."""
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.RandomState(0)
    for i in range(60):
        file = folder / ("dark", "bright")[i % 2] / f"{i:02}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(draw.randint(0, 128 + 127 * (i % 2), (16, 16, 3), dtype=np.uint8)).save(file)
    return folder


def flags_of(folder, flags):
    return training_flags(folder, f"--num_workers 0 {flags}")


def start(folder, flags):
    """The trainer of a new run, before its first step."""
    args, _, _, initial, _ = train.read_flags(flags_of(folder, flags))
    return Trainer(args, train.load_splits(args, initial), torch.device("cpu"), source=initial)


# What a run takes over


@pytest.mark.parametrize("name", NETWORKS)
def test_without_other_classes_a_fine_tuning_starts_with_the_logits_of_its_source(name, sources, tmp_path):
    trainer = start(tmp_path, f"--init {sources}/{name} {SHORT}")
    source = checkpoint.load_network(sources / name, torch.device("cpu"))
    assert torch.equal(trainer.predict(trainer.test_split), source.logits(trainer.test_split.images))
    assert trainer.initial_changes == ["the head for 10 classes is kept"]
    assert trainer.config == source.saved["model_config"]
    state = trainer.inference_state({})
    assert (state["mean"], state["std"]) == (pytest.approx(MEAN), pytest.approx(STD))


def test_the_head_is_kept_if_the_classes_come_in_another_order(sources, tmp_path, capsys):
    order = [3, 1, 2, 0, *range(9, 3, -1)]
    for name in NETWORKS:
        saved = checkpoint.load(sources / name)
        head = {key: saved["weights"][key][order] for key in list(saved["weights"])[-2:]}
        classes = [saved["classes"][place].upper() for place in order]
        weights = {**saved["weights"], **head}
        checkpoint.save(tmp_path / name / "best.pt", {**saved, "classes": classes, "weights": weights})
        trainer = start(tmp_path, f"--init {tmp_path}/{name} {SHORT}")
        assert_equal_weights(trainer.model.state_dict(), saved["weights"])
        assert trainer.initial_changes == ["the head for 10 classes is kept, in their new order"]


def test_the_same_number_of_other_classes_gets_a_new_head(sources, tmp_path):
    saved = checkpoint.load(sources / "vit")
    others = [f"other {name}" for name in saved["classes"]]
    checkpoint.save(tmp_path / "others" / "best.pt", {**saved, "classes": others})
    trainer = start(tmp_path, f"--init {tmp_path}/others {SHORT}")
    assert trainer.initial_changes == [f"new head for {len(others)} classes"]
    assert not torch.equal(trainer.model.head.weight, saved["weights"]["head.weight"])


def test_other_classes_get_a_new_head_and_other_image_sizes_resize_what_depends_on_them(sources, images, tmp_path):
    folder = f"--dataset folder --data_path {images} --epochs 1 --val_images 0"
    cases = [
        ("vit", "", {"head.weight", "head.bias"}, ["new head for 2 classes"]),
        (
            "vit",
            "--image_size 64",
            {"head.weight", "head.bias", "pos_embed"},
            ["new head for 2 classes", "positions resized from 4 x 4 to 8 x 8"],
        ),
        ("cnn", "", {"classifier.4.weight", "classifier.4.bias"}, ["new head for 2 classes"]),
        (
            "cnn",
            "--image_size 64",
            {f"classifier.{i}.{kind}" for i in (1, 4) for kind in ("weight", "bias")},
            ["new head and hidden layer for 2 classes"],
        ),
    ]
    for name, flags, expected, phrases in cases:
        trainer = start(tmp_path, f"--init {sources}/{name} {folder} {flags}")
        source, ours = checkpoint.load(sources / name)["weights"], trainer.model.state_dict()
        assert ours.keys() == source.keys()
        assert {key for key in ours if not torch.equal(ours[key], source[key])} == expected
        assert trainer.initial_changes == phrases
        assert trainer.predict(trainer.test_split).shape == (12, 2)


@pytest.mark.parametrize("img_size", [16, 48, 64])
@pytest.mark.parametrize(("pool", "class_token"), [("token", True), ("avg", False)])
def test_positions_are_resized_as_in_timm(pool, class_token, img_size):
    shape = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "global_pool": pool}
    source, model = (VisionTransformer(size, **shape, class_token=class_token) for size in (32, img_size))
    load_initial(model, source, img_size, head_rows=None)
    grid = [img_size // 4, img_size // 4]
    theirs = resample_abs_pos_embed(source.pos_embed, grid, num_prefix_tokens=int(class_token))
    torch.testing.assert_close(model.pos_embed, theirs)
    assert not model.pos_embed.equal(source.pos_embed)


def test_images_that_the_source_was_trained_on_stay_known(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = "--model cnn --width 4 --epochs 1 --batch_size 16"
    train.main(flags_of(tmp_path, f"--run_name first --dataset folder --data_path {images} --image_size 32 {small}"))
    first = checkpoint.load(tmp_path / "model" / "first")["images"]["seen"]
    small = "--epochs 1 --num_train_images 64 --val_images 0 --num_test_images 50"
    train.main(flags_of(tmp_path, f"--run_name second --init first {small}"))
    train.main(flags_of(tmp_path, "--resume second --epochs 2"))
    assert checkpoint.load(tmp_path / "model" / "second")["images"]["seen"].equal(first)
    names = tmp_path / "names.txt"
    names.write_text("dark\nbright\n" + "\n".join(map(str, range(8))))
    flags = f"--model_path model/second --dataset folder --data_path {images} --class_names {names} --device cpu"
    test_command.main(flags.split())
    results = json.loads((tmp_path / "output" / "second-on-folder" / "test_results.json").read_text())
    assert results["images"] == len(list(images.glob("*/*"))) - len(first), "only what no training has seen"
    assert "also used in the training" not in capsys.readouterr().err


def test_the_learning_rates_are_lower_by_default_and_the_dropout_is_the_one_of_the_source(sources, tmp_path):
    scratch, tuned = (start(tmp_path, f"{flags} {SHORT}").args for flags in ("", f"--init {sources}/vit"))
    assert tuned.learning_rate < scratch.learning_rate
    assert tuned.muon_learning_rate < scratch.muon_learning_rate
    assert (tuned.patch_size, tuned.embed_dim, tuned.n_layers, tuned.dropout) == (8, 32, 3, 0.1)
    changed = start(tmp_path, f"--init {sources}/vit {SHORT} --dropout 0.3 --drop_path 0.2 --embed_dim 32")
    assert (changed.config["drop_rate"], changed.config["drop_path_rate"]) == (0.3, 0.2)
    assert changed.model.blocks[0].mlp.drop.p == 0.3


def test_a_shape_that_no_flag_describes_is_kept(sources, tmp_path):
    saved = checkpoint.load(sources / "vit")
    config = {**saved["model_config"], "global_pool": "avg", "class_token": True, "attn_drop_rate": 0.2}
    del config["drop_rate"], config["drop_path_rate"]
    weights = build_model(config).state_dict()
    checkpoint.save(tmp_path / "odd" / "best.pt", {**saved, "model_config": config, "weights": weights})
    trainer = start(tmp_path, f"--init {tmp_path}/odd {SHORT}")
    assert trainer.config == {**config, "drop_rate": 0.0, "drop_path_rate": 0.0}


# What stays fixed


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("name", "count", "frozen"),
    [
        ("vit", 2, ("patch_embed.", "cls_token", "pos_embed", "blocks.0.", "blocks.1.")),
        ("vit", 3, ("patch_embed.", "cls_token", "pos_embed", "blocks.")),
        ("cnn", 2, ("features.0.", "features.1.")),
    ],
)
def test_frozen_weights_stay_bitwise_equal_and_all_others_change(name, count, frozen, optimizer, sources, tmp_path):
    flags = f"--run_name run --init {sources}/{name} {SHORT} --freeze_blocks {count} --optimizer {optimizer}"
    train.main(flags_of(tmp_path, f"{flags} --learning_rate 1e-3 --dropout 0.1 --weight_decay 0.5 --ema 0.5"))
    before = checkpoint.load(sources / name)["weights"]
    saved = checkpoint.load(tmp_path / "model" / "run", "last.pt")
    for after in (saved["weights"], saved["training"]["model"]):
        for key, value in after.items():
            assert torch.equal(value, before[key]) == key.startswith(frozen), key
    trained = [key for key in dict(build_model(saved["model_config"]).named_parameters()) if not key.startswith(frozen)]
    state = saved["training"]["optimizer"]
    assert len(trained) == sum(len(part["state"]) for part in state.get("together", [state]))


@pytest.mark.parametrize(("name", "count"), [("vit", 2), ("cnn", 3)])
def test_frozen_weights_get_no_gradient_and_frozen_parts_compute_as_in_evaluation(name, count, sources):
    model = checkpoint.load_network(sources / name, torch.device("cpu")).model
    first = (model.blocks if name == "vit" else model.features)[:count]
    images, results = torch.rand(8, 3, 32, 32), []
    frozen = freeze(model, count)
    for _ in range(2):
        model.train()
        for module in frozen:
            module.eval()
        outputs = []
        hook = first[-1].register_forward_hook(lambda *call: outputs.append(call[2]))  # noqa: B023
        model(images).sum().backward()
        hook.remove()
        results += outputs
    assert torch.equal(*results)
    assert not results[0].requires_grad
    assert all(parameter.grad is None for parameter in first.parameters())
    assert all(parameter.grad is not None for parameter in model.get_submodule(model.head_name).parameters())


# Records and resuming


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("vit", f"{EVERY_METHOD} --optimizer muon --freeze_blocks 1"),
        ("cnn", "--epochs 4 --freeze_blocks 2"),
        ("distilled", "--epochs 4 --freeze_blocks 1"),
    ],
)
def test_a_resumed_fine_tuning_ends_with_the_same_weights_and_needs_no_source(
    name, flags, sources, images, tmp_path, capsys
):
    shutil.copytree(sources / name, tmp_path / "model" / "source")
    flags = f"--init source {flags} --dataset folder --data_path {images} --image_size 64 --num_train_images 40"
    flags += " --batch_size 20 --val_images 5"
    train.main(flags_of(tmp_path, f"--run_name whole {flags}"))
    assert "starting from source: new head" in capsys.readouterr().out
    with signals_in_step(5, signal.SIGTERM), exits_with(128 + signal.SIGTERM):
        train.main(flags_of(tmp_path, f"--run_name stopped {flags}"))
    shutil.rmtree(tmp_path / "model" / "source")
    capsys.readouterr()
    train.main(["--resume", str(tmp_path / "model" / "stopped")])
    assert "starting from" not in capsys.readouterr().out
    for file in ("best.pt", "last.pt"):
        whole, stopped = (checkpoint.load(tmp_path / "model" / run, file) for run in ("whole", "stopped"))
        assert_equal_weights(whole["weights"], stopped["weights"])
        assert whole["init"] == stopped["init"]
        assert whole["mean"] == stopped["mean"] == pytest.approx(MEAN)


def test_a_run_records_the_name_and_the_hash_of_its_source(sources, tmp_path):
    source = sources / "vit" / "best.pt"
    train.main(flags_of(tmp_path, f"--run_name run --init {source} {SHORT} --freeze_blocks 1"))
    record = {"name": "vit", "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    saved = checkpoint.load(tmp_path / "model" / "run")
    config = json.loads((tmp_path / "output" / "run" / "config.json").read_text())
    assert saved["init"] == config["init"] == record
    for flags in (saved["recipe"], config["flags"]):
        assert (flags["init"], flags["freeze_blocks"], flags["embed_dim"]) == ("vit", 1, 32)


def test_compare_reports_fine_tuning_and_groups_seeds_of_the_same_source(
    sources, tmp_path, no_pictures, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    other = checkpoint.load(sources / "vit")
    other["weights"]["head.bias"] += 1
    checkpoint.save(tmp_path / "vit" / "best.pt", other)
    cases = (sources / "vit", 0), (sources / "vit" / "best.pt", 1), (tmp_path / "vit", 2)
    for path, seed in cases:
        train.main(flags_of(tmp_path, f"--run_name seed{seed} --init {path} {SHORT} --seed {seed}"))
    compare.main(["seed0", "seed1", "seed2", "--device=cpu", f"--data_path={tmp_path}"])
    report = json.loads((tmp_path / "output" / "comparison" / "comparison.json").read_text())
    assert [seeds["runs"] for seeds in report["seeds"]] == [["seed0", "seed1"]]
    assert {row["network"] for row in report["runs"]} == {"ViT 3 x 32, patch 8, fine-tuned"}
    note = "seed0 was fine-tuned from vit; its epochs and times exclude vit's training"
    assert note in capsys.readouterr().err


# Mistakes

MISTAKES = [
    ("--init none", "there is no checkpoint of none"),
    ("--init {sources}/vit --model cnn", "--model cnn does not fit --init vit, whose network has --model vit"),
    ("--init {sources}/vit --embed_dim 64", "--embed_dim 64 does not fit --init vit, whose network has --embed_dim 32"),
    ("--init {sources}/cnn --width 16", "--width 16 does not fit --init cnn, whose network has --width 8"),
    ("--init {sources}/vit --freeze_blocks 4", "--freeze_blocks 4 is more than the network's 3 blocks"),
    ("--init {sources}/cnn --freeze_blocks 5", "--freeze_blocks 5 is more than the network's 4 convolutions"),
    ("--init {sources}/vit --image_size 36", "--patch_size 8 does not divide --image_size 36"),
    ("--init {sources}/vit --resume {sources}/vit", "leave out one of them"),
    ("--freeze_blocks 1", "needs --init RUN"),
    ("--init {tmp}/damaged.pt", "cannot be read as a checkpoint"),
]


@pytest.mark.parametrize(("flags", "reason"), MISTAKES)
def test_mistakes_end_as_one_line_and_leave_nothing_behind(flags, reason, sources, tmp_path, capsys):
    (tmp_path / "damaged.pt").write_bytes(b"PK" + bytes(1000))
    with exits_with(2):
        train.main(flags_of(tmp_path, flags.format(sources=sources, tmp=tmp_path)))
    assert re.fullmatch(f"train.py: error: .*{re.escape(reason)}.*\n", capsys.readouterr().err)
    assert [file.name for file in tmp_path.iterdir()] == ["damaged.pt"]


def test_a_resumed_run_whose_flags_do_not_describe_its_network_is_refused(sources, tmp_path, capsys):
    train.main(flags_of(tmp_path, f"--run_name run --init {sources}/vit {SHORT}"))
    path = tmp_path / "model" / "run" / "last.pt"
    saved = checkpoint.load(path)
    for recipe in ({"n_layers": 2}, {"init": None, "embed_dim": 64}, {"freeze_blocks": 9}):
        checkpoint.save(path, {**saved, "recipe": saved["recipe"] | recipe})
        with exits_with(2):
            train.main(["--resume", str(path), "--epochs", "2"])
        assert re.search("do not describe its network|more than the network", capsys.readouterr().err)
    assert load_weights(tmp_path, "run").keys() == saved["weights"].keys()
