"""Wrong command lines: one line that names the option as typed, the value, the rule, the fix."""

from __future__ import annotations

import dataclasses
import importlib
import shlex
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
import tyro

from setr.arguments.elsewhere import ELSEWHERE
from setr.arguments.options import options_of
from setr.arguments.usage import problem
from setr.cli import VERBS, main
from setr.commands.parsing import parse
from setr.errors import USAGE, SetrError
from tests.conftest import refusal


@pytest.mark.parametrize(
    ("line", "message"),
    [
        # what other toolkits have
        (
            "train demo --reduce-zero-label",
            "--reduce-zero-label: setr train has no such option; "
            "ids are never shifted: map them in data.yaml, as label_map: {0: ignore, 1: road, …}",
        ),
        (
            "doctor d --data.do_reduce_labels",
            "--data.do_reduce_labels: setr doctor has no such option; ids are never shifted",
        ),
        (
            "train demo --model.num_classes 5",
            "--model.num_classes: setr train has no such option; classes are named in data.ya",
        ),
        (
            "auto d --ignore-index 0",
            "--ignore-index: setr auto has no such option; name ids to leave out in data.yaml, as",
        ),
        (
            "train demo --gpus 2",
            "--gpus: setr train has no such option; several GPUs take `torchrun",
        ),
        (
            "train demo --local-rank 0",  # not model.lora-rank
            "--local-rank: setr train has no such option; several GPUs take `torchrun",
        ),
        (
            "train demo --cache ram",
            "--cache: setr train has no such option; --train.cache-features keeps those of a",
        ),
        (
            "train demo --config c.yaml",
            "--config: setr train has no such option; give the file in place of the recipe",
        ),
        ("attention m i.png", "'attention' is not a command; did you mean 'explain attention'?"),
        # wrong values
        ("train demo --train.steps x", "--train.steps x: give a whole number"),
        ("train demo --train.steps=x", "--train.steps=x: give a whole number"),
        ("train demo --train.batch_size x", "--train.batch_size x: give a whole number"),
        ("train demo --optim.lr fast", "--optim.lr fast: give a number"),
        ("train demo --optim.name adam", "--optim.name adam: give one of sgd, adamw"),
        ("train demo --model.img-size x", "--model.img-size x: give a whole number"),
        ("train demo --model.taps 1 x", "--model.taps x: give whole numbers"),
        ("train demo --data.crop-size 512 x", "--data.crop-size 512 x: give two whole numbers"),
        ("train demo --data.crop-size 1 2 3", "--data.crop-size 1 2 3: give two whole numbers"),
        ("eval m d --precision fp8", "--precision fp8: give one of auto, fp32, bf16, fp16"),
        ("eval --scales 1 2 m d --workers x", "--workers x: give a whole number"),
        ("predict m --scales 0.5 1 i.png -o out", "--scales i.png: give numbers"),
        ("predict m i -o out --submit kitti", "--submit kitti: give one of cityscapes, ade20k"),
        ("serve m -p abc", "-p abc: give a whole number"),
        ("score a b --ignore-index x", "--ignore-index x: give whole numbers"),
        ("demo --steps 3 4", "--steps 3 4: give a whole number"),
        ("train demo --train.steps ''", "--train.steps '': give a whole number"),
        ("train demo --train.steps None", "--train.steps None: give a whole number"),
        *(
            (f"predict m i -o o --tolerance {value} --window x", "--window x: give a whole number")
            for value in ("-1", "-inf", "-NaN", "-1e-3")
        ),
        ("train demo --data.crop-size 5 ''", "--data.crop-size 5 '': give two whole numbers"),
        ("adjust m d -o x --by ''", "--by '': give one of iou, class"),
        ("score a b --num-classes=", "--num-classes=: give a whole number"),
        # missing values
        ("train demo --train.steps", "--train.steps: its value is missing; give a whole number"),
        ("predict m i -o", "-o: its value is missing; write -o OUT"),
        (
            "export m -o x --format",
            "--format: its value is missing; give one of onnx, openvino, torch",
        ),
        ("eval m d --window 512", "--window 512: give two whole numbers, such as --window 512 512"),
        (
            "train demo --data.crop-size=512",
            "--data.crop-size=512: give two whole numbers, such as --data.crop-size 512 512",
        ),
        ("train demo --model.mean half", "--model.mean half: give numbers"),
        # missing words
        ("eval", "MODEL and DATA are missing; write setr eval MODEL DATA"),
        ("eval runs/x", "DATA is missing; write setr eval MODEL DATA"),
        ("predict m -o out", "IMAGES… is missing; write setr predict MODEL IMAGES… -o OUT"),
        ("serve", "MODELS… is missing; write setr serve MODELS…"),
        ("adjust m d", "-o is missing; write setr adjust MODEL DATA -o OUT"),
        ("explain attention m", "IMAGE is missing; write setr explain attention MODEL IMAGE"),
        (
            "export",
            "MODEL, -o and --format are missing; "
            "write setr export MODEL -o OUT --format {onnx,openvino,torch}",
        ),
        # words too many
        ("bench a b", "'b' is one word too many; write setr bench MODEL"),
        ("train demo more", "'more' is one word too many; write setr train RECIPE"),
        ("train demo .", "'.' is one word too many; data are given by --data.root ."),
        (
            "export m format=onnx",
            "format=onnx: options are written --NAME VALUE here; "
            "write --format {onnx,openvino,torch}",
        ),
        (
            "predict model=m source=a",
            "model=m: options are written --NAME VALUE here; "
            "write setr predict MODEL IMAGES… -o OUT",
        ),
        (
            "train data=coco8.yaml epochs=3",
            "data=coco8.yaml: options are written --NAME VALUE here; write --data.root ROOT",
        ),
        ("auto data=d", "data=d: options are written --NAME VALUE here; write setr auto DATA"),
        (
            "auto d epochs=3",
            "epochs=3: options are written --NAME VALUE here; write --train.epochs FLOAT",
        ),
        (
            "train setr_mla.py",
            "setr_mla.py: config files of other toolkits are not supported; `setr recipes` lists",
        ),
        (
            "train c/setr_vit-l_pup_8xb2-160k_ade20k-512x512.py",
            "c/setr_vit-l_pup_8xb2-160k_ade20k-512x512.py: config files of other toolkits are not "
            "supported; the nearest recipes are ade20k_setr_pup_large_160k, ",
        ),
        (
            "train setr_pup_large_769x769_80k",
            "recipe 'setr_pup_large_769x769_80k' is unknown; nearest: cityscapes_setr_pup_large_80",
        ),
        ("predict m a -o x -- -b.png", "--: has no meaning here; write a path that begins with -"),
        (
            "predict m a.png -o x b.png",
            "'b.png' is not the value of an option and is separated from the rest; write all",
        ),
        ("predict m a -o x --save mask overlay", "'overlay' is not the value of an option and is"),
        (
            "average a -o x b",
            "'b' is not the value of an option and is separated from the rest; write all MODELS… ",
        ),
        ("predict m a.png -o x --json yes", "--json yes: takes no value; write --json or --no-j"),
        (
            "train demo --data.photometric yes",
            "--data.photometric yes: takes no value; "
            "write --data.photometric or --data.no-photometric",
        ),
        ("eval m d --json=1", "--json=1: takes no value; write --json or --no-json"),
        ("eval m d --flip yes", "--flip yes: takes no value; write --flip"),
        (
            "eval m d --no-no-flip",
            "--no-no-flip: setr eval has no such option; did you mean --no-fl",
        ),
        ("predict m a.png -o x --flip --no-flip", "--flip and --no-flip: give one of them"),
        # options without effect
        ("models --table2 --size 640", "--size 640: does nothing with --table2; leave one of them"),
        ("models --encoders --table2", "--table2: does nothing with --encoders; leave one of them"),
        ("recipes --runs r", "--runs r: does nothing without --table; add it, or leave this out"),
        ("bench m --split test", "--split test: does nothing without --data; add it, or leave"),
        ("bench m --images 3", "--images 3: does nothing without --data; add it, or leave"),
        ("export m --format onnx -o o --split test", "--split test: does nothing without --calib"),
        (
            "convert f -o o --model m --labels voc --num-classes 3",
            "--num-classes 3: does nothing with --labels voc; leave one of them out",
        ),
        (
            "train finetune --optim.momentum 0.8",
            "--optim.momentum 0.8: is for sgd and has no effect with --optim.name adamw",
        ),
        # values of other toolkits
        (
            "export m --format tensorrt -o o.onnx",
            "--format tensorrt: give one of onnx, openvino, torch; the nearest is onnx",
        ),
        (
            "train demo --train.loss Dice_CE",
            "--train.loss Dice_CE: give one of cross_entropy, ohem, focal, dice, lovasz; the nea",
        ),
        (
            "compare a b",
            "'compare' is not a command; did you mean 'eval MODEL DATA --compare OTHER'",
        ),
        # values that do not go together
        ("train demo --train.batch_size 0", "--train.batch_size 0: give at least 1"),
        (
            "train demo --train.accumulate 99",
            "--train.accumulate 99: must divide --train.batch-size ",
        ),
    ],
)
def test_messages(line, message, capsys):
    assert refusal(capsys, *shlex.split(line)).startswith(f"setr: {message}")


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("train demo --lr 0.1", "did you mean --optim.lr?"),
        ("train demo --epochs 3", "did you mean --train.epochs?"),
        ("train demo --patience 3", "did you mean --train.patience?"),
        ("train demo --imgsz 640", "did you mean --data.crop-size?"),
        ("train demo --opt adamw", "did you mean --optim.name?"),
        ("train demo --report-to wandb", "did you mean --train.log?"),
        ("train demo --per-device-train-batch-size 4", "did you mean --train.batch-size?"),
        ("train demo --model-ema", "did you mean --train.ema?"),
        ("train demo --head-lr 0.1", "did you mean --optim.head-lr-factor?"),
        ("train demo --image-size 640", "did you mean --data.crop-size?"),
        ("train demo --decoder pup", "did you mean --model.name?"),
        ("train demo --flipud 0.5", "did you mean --data.flip-vertical?"),
        ("train demo --load-from x.pth", "did you mean --model.pretrained?"),
        ("train demo --resume-from x.pth", "did you mean --resume?"),
        ("train demo --val-interval 500", "did you mean --train.eval-every?"),
        ("train demo --batch 16", "did you mean --train.batch-size?"),
        ("train demo --batch-size 16", "did you mean --train.batch-size?"),
        ("train demo --device cuda", "did you mean --train.device?"),
        ("train demo --workers 4", "did you mean --data.workers?"),
        ("train demo --data photos", "did you mean --data.root?"),
        ("train demo --weights a.pth", "did you mean --model.pretrained?"),
        ("train demo --model yolo", "did you mean --model.name?"),
        ("train demo --amp", "did you mean --train.precision?"),
        ("train demo --no-photometric", "did you mean --data.no-photometric?"),
        (
            "train demo --name a",
            "did you mean --model.name or --optim.name? (results are named by -o",
        ),
        ("predict m a.png -o out --name a", "results are named by -o"),
        ("eval m photos --iou 0.5", "IoU is always computed"),
        ("eval m photos --verbose", "progress goes to stderr"),
        ("review m photos --quiet", "progress goes to stderr"),
        ("predict m a.png -o out --rect", "images keep their shape"),
        ("train demo --lora-alpha 16", "alpha is twice the rank"),
        ("serve m --ssl-keyfile k", "a proxy in front of the server"),
        ("train demo --optim.lrr 1", "did you mean --optim.lr?"),
        ("auto d --epochs 3", "did you mean --train.epochs?"),
        ("auto d --imgsz 640 --batch 4", "did you mean --data.crop-size?"),
        ("auto --data d", "DATA is written without one: setr auto DATA"),
        ("auto d --minute 3", "did you mean --minutes?"),
        ("auto d --colour red", "see `setr auto --help`"),
        ("demo --epochs 3", "did you mean --steps (in steps, not epochs)?"),
        ("bench m --imgsz 640", "did you mean --size?"),
        ("bench m --batch-size 4", "did you mean --batches?"),
        ("predict m i -o out --amp", "did you mean --precision?"),
        ("predict m i -o out --conf 0.5", "did you mean --min-confidence?"),
        ("predict m i -o out --tta", "did you mean --scales?"),
        ("eval m d --tta", "did you mean --multi-scale?"),
        ("eval --model m --data d", "MODEL is written without one: setr eval MODEL DATA"),
        ("eval m --data d", "DATA is written without one: setr eval MODEL DATA"),
        ("predict --weights m a -o out", "MODEL is written without one: setr predict MODEL"),
        ("predict m i -o out --imgsz 640", "did you mean --short-side?"),
        ("predict m i -o out --tile-size 640", "did you mean --window?"),
        ("predict m i -o out --min-area 9", "did you mean --min-pixels?"),
        ("predict m i -o out --hectares", "and, with --save share,gpkg, as area_m2"),
        ("predict m i -o out --threshold 0.3", "`setr adjust MODEL DATA -o OUT --threshold T`"),
        ("eval m d --per-patient", "did you mean --group-by?"),
        ("eval m d --dice", "Dice, precision and recall of each class are always computed"),
        ("init-data d --attribute crop", "did you mean --class-key?"),
        ("train demo --folds 5", "--data.train-split train1 --data.val-split val1"),
        # nothing here does that
        ("eval m d --epochs 3", "see `setr eval --help`"),
        ("export m --lr 3", "see `setr export --help`"),
        ("results --device cpu", "see `setr results --help`"),
    ],
)
def test_hints_for_unknown_options(line, hint, capsys):
    words = shlex.split(line)
    err = refusal(capsys, *words)
    flag = next(word for word in words if word.startswith("--"))
    assert err.startswith(f"setr: {flag}: setr {words[0]} has no such option; ")
    assert hint in err


@dataclass(frozen=True)
class Inner:
    side: tuple[int, int] | None = None
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.side == (0, 0):
            raise SetrError("inner.side (0, 0): give pixels")


@dataclass(frozen=True)
class Outer:
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    out: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "x"
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    "line",
    [
        ["auto", ""],
        ["eval", "m", ""],
        ["score", "", "b", "--num-classes", "3"],
        ["predict", "m", "a.png", "", "-o", "out"],
        ["predict", "m", "a.png", "-o", ""],
        ["explain", "attention", "m", "", "-o", "out"],
        ["average", "a", "b", "--out="],
        ["sweep", "demo", "-o", "", "--vary", "optim.lr", "1", "2"],
        ["score", "a", "b", "--label-map", ""],
        ["eval", "m", "d", "--group-by="],
        ["train", "demo", "--model.pretrained", ""],
    ],
)
def test_an_empty_word_is_not_the_current_folder(line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "'': is empty, as a variable that is not set" in refusal(capsys, *line)
    assert not list(tmp_path.iterdir())


def test_options_are_those_of_the_parser():
    table = {option.dotted: option for option in options_of(Outer)}
    assert list(table) == ["model", "out", "inner.side", "inner.kind"]
    assert table["model"].flags == ()
    assert table["out"].flags == ("--out", "-o")
    assert [option.placeholder for option in table.values()] == ["MODEL", "STR", "INT INT", "{a,b}"]


def test_every_command_takes_o_for_out():
    checked = 0
    for verb in VERBS:
        module = importlib.import_module(f"setr.commands.{verb.replace('-', '_')}")
        for kind in vars(module).values():
            if dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__:
                flags = [option.flags for option in options_of(kind) if "--out" in option.flags]
                assert all("-o" in names for names in flags), verb
                checked += len(flags)
    assert checked > 10


def test_values_that_are_taken_have_no_problem():
    for line in ("m", "m -oout --inner.side 2 3", "m --inner.side None", "-o=y m --inner.kind b"):
        words = shlex.split(line)
        parse(Outer, words, "test")
        assert problem(Outer, words, "test") is None
    with pytest.raises(SetrError, match=r"^--inner\.side \(0, 0\): give pixels$"):
        parse(Outer, shlex.split("m --inner.side 0 0"), "test")


def test_names_of_other_toolkits_are_ours_somewhere():
    from setr.commands import (
        auto,
        bench,
        convert,
        demo,
        eval,
        explain,
        init_data,
        predict,
        results,
        train,
    )  # fmt: skip

    kinds = [train.Arguments, predict.Arguments, bench.Arguments, demo.Arguments]
    kinds += [auto.Arguments, init_data.Arguments]
    kinds += [convert.Arguments, eval.Arguments, explain.Attention, results.Arguments]
    table = [option.name for kind in kinds for option in options_of(kind)]
    known = {*table, *(name.rpartition(".")[2] for name in table), "models"}
    assert {name for names in ELSEWHERE.values() for name in names} <= known


def test_a_wrong_line_is_told_by_the_first_of_many_processes(monkeypatch, capsys):
    for rank, told in (("0", True), ("1", False)):
        for name, value in {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank,
                            "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        assert main(["train", "demo", "--train.steps", "x"]) == USAGE
        assert ("give a whole number" in capsys.readouterr().err) is told
