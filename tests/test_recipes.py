"""Recipes: every row of the paper has one, every one builds, survives YAML and trains."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from setr.arguments.choices import TableNumber
from setr.catalog import model_settings
from setr.cli import main
from setr.config import Config, EvalConfig, OptimConfig
from setr.engine import train
from setr.errors import USAGE, SetrError
from setr.labels import known_datasets, known_labels
from setr.paper_tables import rows, systems
from setr.recipes import list_recipes, recipe
from setr.training.build import build_model, without_weights
from setr.training.run import Run
from setr.training.runfolder import RunFolder
from setr.weight_files.pretrained import pretrained_id
from tests.conftest import tiny_config

# what can be trained from real samples, by data set: split, and the layout's own folder
SAMPLES = {
    "cityscapes": ("samples/cityscapes_mini", "val"),
    "ade20k": ("samples/ade20k", "val"),
    "pascal_context": ("samples/pascal_context", "val"),
    "voc": ("samples/voc", "val"),
    "coco_stuff": ("samples/coco_stuff", "train"),
    "camvid": ("camvid", "val"),
}
FAMILIES = (
    *("cityscapes_setr_naive_large_40k", "cityscapes_setr_pup_base_deit_80k"),
    *("cityscapes_hybrid_base_40k", "cityscapes_fcn_r101_40k", "cityscapes_semantic_fpn_r101_80k"),
    *("ade20k_setr_mla_large_160k", "pascal_context_setr_pup_large_80k", "camvid_setr_pup_small"),
    *("voc_setr_pup_base_dinov2_40k", "coco_stuff_setr_mla_base_dinov3_40k"),
)


def test_every_figure_stands_in_the_paper(shared):
    text = (shared / "paper.txt").read_text(encoding="utf-8").replace("<i>", "").replace("</i>", "")
    lines = [re.sub(r"[\[\(]\d+[\]\)]|\s+", " ", line) for line in text.splitlines()]
    for row in rows():
        assert any(
            line.startswith(row.method) and f"{row.miou:.2f}" in line for line in lines
        ), row  # fmt: skip
        if row.pixel_accuracy:
            assert any(f"{row.miou:.2f} {row.pixel_accuracy:.2f}" in line for line in lines), row


def test_the_tables_are_complete():
    """Cells of our systems and of the two baselines (method lines times columns), and others'."""
    tables = get_args(TableNumber)
    own = {table: sum(bool(row.recipe) for row in rows(table)) for table in tables}
    assert own == {2: 28, 3: 12, 4: 8, 5: 8, 6: 8, 7: 2}
    counts = {table: len(rows(table)) for table in tables}
    assert counts == {2: 28, 3: 12, 4: 15, 5: 15, 6: 15, 7: 11}  # the lines printed in 4 to 7
    assert {row.recipe for row in rows() if row.recipe} <= set(systems())
    assert set(systems()) <= set(list_recipes())


@pytest.mark.parametrize("name", list_recipes())
def test_yaml_round_trip_and_data(name):
    config = recipe(name)
    assert Config.from_yaml(config.to_yaml()) == config
    assert config.recipe == name
    assert config.out == f"runs/{name}"
    assert config.data.labels is None or config.data.labels in known_datasets()


def test_recipes_need_no_docstrings():
    """With `python -OO` (PYTHONOPTIMIZE=2) there are none."""
    code = "from setr.recipes import list_recipes; print(*list_recipes())"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == list(list_recipes()), done.stderr


def test_every_recipe_builds_on_the_meta_device():
    seen = set()
    for name in list_recipes():
        config = without_weights(recipe(name))
        if config.model in seen:
            continue
        seen.add(config.model)
        classes = len(known_labels(config.data.labels).classes) if config.data.labels else 9
        with torch.device("meta"):
            built = build_model(config, classes)
        assert built.num_classes == classes
        patch = built.encoder.patch_size
        if config.data.crop_size != (769, 769):  # of FCN, whose maps reach over the border
            assert all(side % patch == 0 for side in config.data.crop_size), name


def test_settings_of_the_authors_code():
    """Optimiser, schedule, crop and batch (section 4.1 and the authors' configurations)."""
    rates = {
        "cityscapes_setr_pup_large_80k": 0.01,
        "cityscapes_setr_naive_base_40k": 0.01,
        "cityscapes_setr_mla_large_40k": 0.002,
        "ade20k_setr_pup_large_160k": 0.001,
        "ade20k_setr_mla_large_160k": 0.001,
        "ade20k_setr_naive_large_160k": 0.01,
        "pascal_context_setr_pup_large_80k": 0.001,
        "pascal_context_setr_mla_large_80k": 0.001,
        "pascal_context_setr_naive_large_80k": 0.01,
    }
    crops = {"cityscapes": 768, "ade20k": 512, "pascal_context": 480}
    for name, rate in rates.items():
        config, dataset = recipe(name), name.split("_setr")[0]
        assert config.optim.lr == rate, name
        assert config.optim.name == "sgd"
        assert (config.optim.momentum, config.optim.weight_decay) == (0.9, 0)
        assert (config.optim.head_lr_factor, config.optim.neck_lr_factor) == (10, 1)
        assert (config.optim.power, config.optim.min_lr) == (0.9, 1e-4)
        assert config.train.aux_weight == 0.4
        assert config.train.loss_norm == "all"
        assert config.train.batch_size == (8 if dataset == "cityscapes" else 16)
        assert config.data.crop_size == (crops[dataset],) * 2
        assert config.model.img_size == crops[dataset]
        assert config.data.scale_range == (0.5, 2.0)
        assert config.data.max_class_share == 0.75
        assert config.model.prefix_tokens == ("drop" if "mla" in name else "keep")
        assert f"_{config.train.steps // 1000}k" in name


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("cityscapes_setr_naive_large_40k", 0.01),
        ("cityscapes_setr_pup_large_40k", 0.01),
        ("cityscapes_setr_mla_large_40k", 0.002),
    ],
)
def test_steps_are_those_of_the_authors_code(tmp_path, name, rate):
    """In plain torch: mean over all pixels, auxiliary losses times 0.4, heads' rate times ten.

    Auxiliary logits of PUP are resized twice: fourfold, then to the crop.
    """
    steps, paper, decoder = 4, recipe(name), name.split("_")[2]
    tiny = tiny_config(tmp_path / "run")
    config = dataclasses.replace(
        tiny,
        model=dataclasses.replace(tiny.model, name=f"setr_{decoder}_nano"),
        optim=paper.optim,
        train=dataclasses.replace(paper.train, steps=steps, batch_size=2, precision="fp32"),
    )
    run = Run(config, RunFolder(Path(config.out)))
    model = build_model(config, len(run.dataset.labels.classes))
    model.load_state_dict(run.model.state_dict())
    model.train()
    heads, others = [], []
    for part, parameter in model.named_parameters():
        (heads if part.startswith(("decoder.", "aux_heads.")) else others).append(parameter)
    optimizer = torch.optim.SGD([{"params": others}, {"params": heads}], lr=rate, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        images = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8, generator=generator)
        masks = torch.randint(9, (2, 64, 64), dtype=torch.uint8, generator=generator)
        masks[0, :20] = 255
        run.step = step
        parts = run.train_step(images, masks)
        for group, factor in zip(optimizer.param_groups, (1, 10), strict=True):
            group["lr"] = (factor * rate - 1e-4) * (1 - step / steps) ** 0.9 + 1e-4
        output = model(run.source.inputs(images), with_aux=True)
        aux = output.aux
        if decoder == "pup":
            aux = [F.interpolate(x, scale_factor=4, mode="bilinear") for x in aux]
        losses = [
            F.cross_entropy(
                F.interpolate(x, (64, 64), mode="bilinear"),
                masks.long(),
                ignore_index=255,
                reduction="none",
            ).mean()
            for x in (output.logits, *aux)
        ]
        loss = losses[0] + 0.4 * sum(losses[1:])
        assert parts["loss"] == pytest.approx(loss.item(), rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = run.model.state_dict()
    for part, value in model.state_dict().items():
        torch.testing.assert_close(trained[part], value, rtol=1e-3, atol=1e-5)


def test_pretraining_follows_the_name():
    assert recipe("cityscapes_setr_pup_large_random_40k").model.pretrained is None
    large = recipe("cityscapes_setr_pup_large_40k").model.pretrained
    assert large.startswith("https://")
    assert large.endswith("/jx_vit_large_p16_384-b3be5167.pth")  # of the authors' `default_cfgs`
    assert recipe("cityscapes_setr_pup_base_40k").model.pretrained == "orig_in21k_ft_in1k"
    deit = recipe("cityscapes_setr_pup_base_deit_80k").model
    assert (deit.pretrained, deit.encoder) == ("deit_distilled", None)


def test_every_tag_names_weights_of_timm():
    for name in list_recipes():
        settings = recipe(name).model
        if settings.pretrained and "/" not in settings.pretrained and "_in21k_" not in name:
            encoder = model_settings(settings.name, encoder=settings.encoder)["encoder"]
            assert pretrained_id(encoder, settings.pretrained), name


def test_a_hybrid_starts_from_a_trained_resnet_and_only_it():
    """Section 4.1, "Pre-training": R in Table 2 means that the transformer part is random."""
    for name in list_recipes():
        model = recipe(name).model
        if model.name == "hybrid_base":
            assert model.pretrained_resnet == "gluon_in1k", name
            assert (model.pretrained is None) == ("_random_" in name)
        else:
            assert model.pretrained_resnet is None, name


def test_baselines_are_the_configurations_with_the_printed_figures():
    """As mmsegmentation's tables list them: crop, resize base, test, decay."""
    for name, crop, base, window in (
        ("cityscapes_fcn_r101_40k", (769, 769), (1025, 2049), (769, 769)),
        ("cityscapes_semantic_fpn_r101_80k", (512, 1024), (1024, 2048), None),
        ("ade20k_fcn_r101_160k", (512, 512), (512, 2048), None),
        ("pascal_context_fcn_r101_80k", (480, 480), (520, 520), (480, 480)),
    ):
        config = recipe(name)
        assert config.data.crop_size == crop
        assert (config.data.short_side, config.data.long_side) == base
        assert config.eval.window == window
        assert config.optim.decay_norms
        assert config.optim.head_lr_factor == 1
    assert recipe("pascal_context_fcn_r101_80k").eval.stride == (320, 320)
    assert recipe("cityscapes_fcn_r101_80k").eval.stride == (513, 513)


def test_test_server_rows_train_on_more():
    assert recipe("cityscapes_setr_pup_large_test_server_100k").data.train_split == "train+val"
    coarse = recipe("cityscapes_setr_pup_large_coarse_100k").data.train_split
    assert coarse == "train+val+train_extra"


@pytest.mark.parametrize("name", FAMILIES)
def test_two_steps_on_real_samples(shared, tmp_path, name):
    """The smallest model of each family: native layout, two steps, evaluation."""
    config = recipe(name)
    dataset = next(d for d in SAMPLES if name.startswith(d))
    folder, split = SAMPLES[dataset]
    model = dataclasses.replace(
        config.model, pretrained=None, pretrained_resnet=None, channels=16, img_size=64
    )
    if config.model.name.startswith("setr"):
        decoder = config.model.name.split("_")[1]
        model = dataclasses.replace(model, name=f"setr_{decoder}_nano", encoder=None)
    elif config.model.name == "hybrid_base":
        model = dataclasses.replace(model, encoder="vit_tiny_patch16_224")
    else:
        model = dataclasses.replace(model, encoder="resnet26", channels=None, img_size=None)
    data = dataclasses.replace(
        config.data,
        root=str(shared / "data" / folder),
        train_split=split,
        val_split=split if dataset != "camvid" else "val",
        crop_size=(64, 64),
        short_side=64,
        long_side=None,
        workers=0,
    )
    config = dataclasses.replace(
        config,
        out=str(tmp_path / "run"),
        model=model,
        data=data,
        train=dataclasses.replace(
            config.train, steps=2, batch_size=1, precision="fp32", eval_every=0
        ),
        eval=EvalConfig(),
    )
    if dataset == "camvid":
        few = tmp_path / "few.csv"
        images = sorted((shared / "data" / folder / "images" / "val").iterdir())[:2]
        lines = [f"{p},{p.parents[2] / 'labels' / 'val' / p.stem}.png" for p in images]
        few.write_text("image,mask\n" + "\n".join(lines) + "\n")
        (tmp_path / "data.yaml").write_text("labels: camvid\ntrain: few.csv\nval: few.csv\n")
        data = dataclasses.replace(data, root=str(tmp_path), train_split="train")
        config = dataclasses.replace(config, data=data)
    figures = train(config)
    assert 0 <= figures["single_scale"]["miou"] <= 1
    assert figures["recipe"] == name
    assert figures["provenance"]["seed"] == 0


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (OptimConfig, {"momentum": 1.0}, "optim.momentum 1: give 0 to below 1"),
        (OptimConfig, {"momentum": -0.1}, "optim.momentum -0.1"),
        (OptimConfig, {"weight_decay": -1e-4}, "optim.weight_decay -0.0001: give 0 or more"),
        (OptimConfig, {"head_lr_factor": -1}, "optim.head_lr_factor -1: give 0 or more"),
        (OptimConfig, {"neck_lr_factor": -1}, "optim.neck_lr_factor -1: give 0 or more"),
        (OptimConfig, {"power": -0.9}, "optim.power -0.9: give 0 or more"),
        (
            OptimConfig,
            {"schedule": "cosine", "power": 2},
            "optim.power 2: has no effect with optim.schedule cosine; leave one of them out",
        ),
        (EvalConfig, {"stride": (8, 8)}, "eval.stride (8, 8): give eval.window too"),
        (EvalConfig, {"window": (0, 8)}, "eval.window (0, 8): give positive pixels"),
        (
            EvalConfig,
            {"window": (8, 8), "stride": (9, 8)},
            "eval.stride (9, 8): give 1 to the window's sides (8, 8)",
        ),
        (
            EvalConfig,
            {"protocol": "whole", "window": (8, 8)},
            "eval.window (8, 8): the protocol whole has none; give --eval.window None",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(part, values, message):
    with pytest.raises(SetrError, match=re.escape(message)) as caught:
        part(**values)
    assert caught.value.code == USAGE


def test_the_command_lists_rows_and_commands(capsys, tmp_path):
    assert main(["recipes", "--table", "6", "--runs", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"SETR-PUP +80k, MS +82\.15 +setr train cityscapes_setr_pup_large_80k", shown)
    assert main(["recipes", "--table", "3", "--runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    needy = [line.split("setr train ")[1] for line in lines if "--model.pretrained FILE" in line]
    recipes = ["ade20k_fcn_r101_in21k_160k", "cityscapes_fcn_r101_in21k_40k"]
    assert [words.split()[0] for words in needy] == recipes
    assert all("needs --model.pretrained FILE" in list_recipes()[name] for name in recipes)
    assert main(["recipes", "--table", "2", "--runs", str(tmp_path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 28
    assert main(["recipes", "--table", "1"]) == USAGE
