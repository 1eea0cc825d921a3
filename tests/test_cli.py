"""The command line: help without torch, one-line errors, exit codes."""

from __future__ import annotations

import errno
import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from itertools import pairwise

import pytest

from setr.arguments.elsewhere import COMMANDS_ELSEWHERE
from setr.cli import VERBS, _reason, main
from setr.data.scenes import draw
from setr.errors import FAILED, INTERRUPTED, OK, USAGE
from setr.hub import save_pretrained
from setr.images import encode_png
from setr.labels import Labels
from setr.model_info import ModelInfo
from setr.reading.files import one_line
from setr.writing import write_bytes
from tests.conftest import refusal, tiny_model


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_lists_every_verb(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == OK
    assert all(f"\n  {verb} " in out for verb in VERBS)
    assert run(capsys)[0] == USAGE
    assert run(capsys, "help") == (OK, out, "")
    assert {meant.split()[0] for meant in COMMANDS_ELSEWHERE.values()} <= set(VERBS)
    assert not set(COMMANDS_ELSEWHERE) & set(VERBS)


@pytest.mark.parametrize("code", ["import setr", "from setr.cli import main; main(['--help'])"])
def test_import_and_help_load_neither_torch_nor_timm(code):
    probe = (
        f"{code}\nimport sys\nassert not {{'torch', 'timm', 'tyro', 'numpy'}} & set(sys.modules)"
    )
    seconds: dict[str, list[float]] = {probe: [], "pass": []}
    for _ in range(5):  # in turns, so that a busy machine slows both
        for program, times in seconds.items():
            began = time.monotonic()
            subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
            times.append(time.monotonic() - began)
    assert min(seconds[probe]) < 20 * min(seconds["pass"])  # about 4 times; torch takes 200 times


def test_python_ends_without_a_search_for_cycles():
    """Which takes a second of a CPU once torch is loaded; a handler added first is called last."""
    code = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 0)); "
        "from setr.cli import main; main(['--version']); main(['--version'])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "True"


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help(verb, capsys):
    try:
        code = main([verb, "--help"])
    except SystemExit as stop:  # the argument parser ends the program after its help
        code = stop.code
    assert code == OK
    assert f"usage: setr {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "did you mean 'train'?"),
        (["test", "runs/x"], "'test' is not a command; did you mean 'eval'?"),
        (["browse_dataset", "x"], "'browse_dataset' is not a command; did you mean 'doctor'?"),
        (["help", "trian"], "did you mean 'train'?"),
        (["train"], "setr recipes"),
        (["train", "--resume", "demoo"], "nearest: demo"),
        (["train", "--train.steps", "5", "demo"], "needs a recipe before --train.steps"),
        (["train", "demoo"], "nearest: demo"),
        (["train", "demo", "--optim.lrr", "3"], "did you mean --optim.lr?"),
        (["train", "demo", "--data.imgsz", "3"], "did you mean --data.crop-size?"),
        (["train", "demo", "--optim.lr", "-1"], "--optim.lr -1: give a positive"),
        (["train", "demo", "--train.accumulate", "99"], "must divide --train.batch-size "),
        (["train", "demo", "--train.seed", "-1"], "--train.seed -1: give 0 to 2^64 - 1"),
        (["train", "demo", "--train.seed", str(2**64)], "give 0 to 2^64 - 1"),
        (["train", "demo", "--train.init-seed", "-1"], "--train.init-seed -1: give 0 to 2^64 - 1"),
        (["train", "demo", "--model.img-size", "-5"], "--model.img-size -5: give at least 1"),
        (["train", "demo", "--model.channels", "0"], "--model.channels 0: give at least 1"),
        (["train", "demo", "--train.aux-weight", "-1"], "--train.aux-weight -1: give 0 or more"),
        (["train", "demo", "--data.root", "nowhere"], "nowhere: no such file or folder"),
        (["train", "nowhere.yaml"], "no such config file"),
        (
            ["train", "photos"],
            "photos: not a run folder; to train on this data: setr auto photos, or",
        ),
        (["train", "photos/data.yaml"], "a data set, not a run; to train on this data: setr auto"),
        (["train", "photos/typo.yaml"], "unknown key 'optin'; did you mean 'optim'?"),
        (["models", "nothing*"], "no model matches 'nothing*'; `setr models` lists all"),
        (["models", "*dinov3*"], "; `setr models --encoders '*dinov3*'` lists encoders"),
        (["predict", "nowhere", "nothing.png"], "-o is missing"),
    ],
)
def test_usage_errors_are_one_line(capsys, arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # away from a runs/demo that somebody made
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "data.yaml").write_text("train: images/train\nclasses: [a, b]\n")
    (tmp_path / "photos" / "typo.yaml").write_text("optin: {lr: 0.1}\n")
    assert expected in refusal(capsys, *arguments)


def test_debug_shows_the_traceback():
    with pytest.raises(Exception, match="unknown"):
        main(["train", "demoo", "--debug"])


def test_ctrl_c_while_the_command_is_imported_is_one_line(capsys, monkeypatch):
    class Interrupted:
        def __getattr__(self, name: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "setr.cli", Interrupted())
    assert importlib.import_module("setr.__main__").main() == INTERRUPTED
    assert capsys.readouterr().err == "setr: interrupted\n"


@pytest.mark.skipif(os.name != "posix", reason="other systems keep a folder that is in use")
def test_a_current_folder_that_was_removed_is_one_line(capsys, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, out, err = run(capsys, "recipes")
    assert (code, out) == (USAGE, "")
    assert err == "setr: the current folder was removed; change to another one\n"


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs /dev/shm, as in Linux")
def test_without_a_folder_for_temporary_files_there_is_shared_memory(capsys, monkeypatch):
    """In a container with a read-only root; torch does not load without one."""
    given = lambda: [os.environ["TMPDIR"]] if "TMPDIR" in os.environ else []  # noqa: E731
    monkeypatch.setenv("TMPDIR", "")  # so that it is restored
    monkeypatch.delenv("TMPDIR")
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", given)
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert run(capsys, "recipes")[0] == OK
    assert tempfile.gettempdir() == "/dev/shm"


@pytest.mark.parametrize(
    "error",
    [MemoryError(), ImportError("libtorch_cpu.so: failed to map segment from shared object")],
)
@pytest.mark.parametrize("loads", [False, True])
def test_libraries_that_do_not_fit_into_memory_are_one_line(capsys, monkeypatch, error, loads):
    def fail(_: list[str]) -> int:
        raise error

    monkeypatch.setattr("setr.commands.recipes.run", fail)
    if not loads:  # as torch, which it needs
        monkeypatch.setitem(sys.modules, "setr.processes.faults", None)
    code, out, err = run(capsys, "recipes")
    assert (code, out) == (FAILED, "")
    assert err.startswith("setr: out of memory")
    assert err.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    image = tmp_path / "a.png"
    write_bytes(image, encode_png(draw("x", 0)[0]))
    save_pretrained(tmp_path / "model", tiny_model(), ModelInfo(labels=Labels(tuple("abcde"))))
    below = tmp_path / "file" / "out"
    for arguments, expected, why in (
        (
            ["explain", "position", tmp_path / "model", "-o", below],
            USAGE,
            f"cannot write in {tmp_path / 'file'}: Not a directory; choose another folder with -o",
        ),
        (
            ["predict", tmp_path / "model", image, "-o", below],
            FAILED,
            "cannot make this folder: Not a directory",
        ),
    ):
        code, out, err = run(capsys, *arguments)
        assert code == expected, arguments
        assert out == ""
        assert err.splitlines()[-1] == f"setr: {below}: {why}"
        assert "Traceback" not in err


def test_what_the_system_refuses_is_one_line(capsys, monkeypatch):
    """No matter which command: the file, and the system's reason."""

    def refuse(_: list[str]) -> int:
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory", "file/out")

    monkeypatch.setattr("setr.cli._dispatch", refuse)
    assert run(capsys, "demo") == (FAILED, "", "setr: file/out: Not a directory\n")
    with pytest.raises(NotADirectoryError):
        main(["demo", "--debug"])


def test_an_error_of_a_loader_is_its_last_line():
    text = "Caught OSError in worker 0.\nTraceback (most recent call last):\nOSError: disk gone"
    assert _reason(OSError(text)) == "OSError: disk gone"
    assert _reason(OSError(24, "Too many open files")) == "Too many open files"
    assert _reason(OSError()) == "OSError"


def test_predict_needs_a_model(capsys, tmp_path):
    image = tmp_path / "a.png"
    write_bytes(image, encode_png(draw("x", 0)[0]))
    code, _, err = run(capsys, "predict", tmp_path / "none", image, "-o", tmp_path / "out")
    assert code == USAGE
    assert "no such model directory" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_has_plain_placeholders(verb, capsys):
    arguments = [verb, "attention", "--help"] if verb == "explain" else [verb, "--help"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    shown = capsys.readouterr().out
    assert ended.value.code == OK
    assert shown.startswith(f"usage: setr {verb} ")
    assert not re.search(r"\{None|\]\]|\.\.\.\]|\{\[|\{[A-Z]", shown)
    assert "(default: )" not in shown


@pytest.mark.parametrize(("verb", "places"), [("predict", 2), ("serve", 1), ("average", 1)])
def test_help_says_that_repeated_words_are_required(verb, places, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert capsys.readouterr().out.partition(" options ")[0].count("(required)") == places


def test_help_keeps_its_boxes_even():
    command = [sys.executable, "-m", "setr", "eval", "--help"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    shown = subprocess.run(command, check=True, capture_output=True, env=environment).stdout
    boxes = [line for line in shown.decode().splitlines() if line.startswith(("╭", "│", "╰"))]
    assert len(boxes) > 20
    assert len({len(line) for line in boxes}) == 1


@pytest.mark.parametrize("verb", ["predict", "eval", "init-data"])
def test_help_fills_its_lines(verb, capsys, monkeypatch):
    """No line ends where that of the source code did: the next word would not have fitted."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    lines = capsys.readouterr().out.splitlines()
    inside = [line[2:-2] for line in lines if line[:2] in ("│ ", "  ") and line[2:-2].strip()]
    column = min(len(line) - len(line.lstrip()) for line in inside if line[0] == " ")
    pairs = [(a, b) for a, b in pairwise(inside) if not (a[:column] + b[:column]).strip()]
    assert pairs
    for line, following in pairs:
        fitting = len(line.rstrip()) + 1 + len(following.split()[0])
        assert fitting > len(line) or following.split()[0] == "(default:", line


def test_help_names_the_kind_of_a_value(capsys):
    for verb, shown in (
        ("train", ("--model.channels INT ", "--model.taps INT…", "--eval.window INT INT ")),
        ("eval", ("MODEL DATA\n", "--scales FLOAT…", "--compare STR…")),
        ("predict", ("MODEL IMAGES…\n", "--submit {cityscapes,ade20k}")),
        ("models", ("[PATTERN]\n",)),
    ):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        page = capsys.readouterr().out
        assert all(text in page for text in shown), (verb, shown)


def test_no_memory_is_one_line_and_other_faults_are_not_hidden(monkeypatch, capsys):
    def dispatch(args: list[str]) -> int:
        raise RuntimeError(args[0])

    monkeypatch.setattr("setr.cli._dispatch", dispatch)
    assert main(["DefaultCPUAllocator: can't allocate memory: you tried"]) == FAILED
    assert capsys.readouterr().err.startswith("setr: out of memory; lower")
    lost = (
        "DataLoader worker (pid 3) is killed by signal: Bus error. It is possible that dataloader's"
    )
    assert main([lost]) == FAILED
    told = capsys.readouterr().err
    assert told.startswith("setr: a data loader process was killed by signal: Bus error, probably")
    assert told.count("\n") == 1
    assert main(["DataLoader worker (pid(s) 30505, 3) exited unexpectedly"]) == FAILED
    assert capsys.readouterr().err.startswith("setr: a data loader process exited, probably")
    assert (
        main(["CUDA error: no kernel image is available for execution on the device\nmore"])
        == FAILED
    )
    told = capsys.readouterr().err
    assert told.startswith("setr: CUDA error: no kernel image is available for execution on the")
    assert "--device cpu" in told
    assert told.count("\n") == 1
    with pytest.raises(RuntimeError, match="a fault of ours"):
        main(["a fault of ours"])


def test_the_device_is_chosen_in_one_way(capsys, tmp_path):
    """Every verb that computes has it, and refuses alike what the machine lacks."""
    image, model = tmp_path / "a.png", tmp_path / "model"
    write_bytes(image, encode_png(draw("x", 0)[0]))
    save_pretrained(model, tiny_model(), ModelInfo(labels=Labels(tuple("abcde"))))
    out = tmp_path / "out"
    for arguments in (
        ["eval", model, "scenes:4"],
        ["adjust", model, "scenes:4", "-o", out],
        ["explain", "attention", model, image, "-o", out],
        ["explain", "features", model, image, "-o", out],
        ["explain", "compare", image, model, model, "-o", out],
        ["predict", model, image, "-o", out],
        ["bench", model],
    ):
        code, _, err = run(capsys, *arguments, "--device", "cuda:99")
        assert code == USAGE, arguments
        assert err.splitlines()[-1].startswith("setr: device 'cuda:99': this machine has cpu")
    code, _, err = run(capsys, "train", "demo", "--train.device", "gpu", "--out", out)
    assert code == USAGE
    assert err.splitlines()[-1].startswith("setr: device 'gpu': this machine has cpu")
    assert run(capsys, "explain", "attention", model, image, "-o", out, "--device", "cpu")[0] == OK


def test_the_device_is_no_part_of_what_a_run_is():
    from setr.training.settings import FREE, PER_PROCESS

    assert "train.device" in PER_PROCESS & FREE


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("eval NONE scenes:4", "no such model directory"),
        ("eval DIR scenes:4", "no config.json"),
        ("eval DIR/m.onnx scenes:4", "no such file"),
        ("eval MODEL scenes:4 --compare NONE", "no such model directory"),
        ("eval MODEL scenes:4 --scales -1", "give one or more positive factors"),
        ("eval MODEL scenes:4 --window 32 32 --stride 0 0", "must be between 1 and the window"),
        ("eval MODEL scenes:4 --short-side -3", "--short-side -3: give at least 1"),
        (
            "predict MODEL IMAGE -o OUT --precision fp16 --device cpu",
            "CPUs compute in bf16 or fp32",
        ),
        ("adjust MODEL scenes:4 -o OUT --workers -1", "--workers -1: give 0 or more"),
        ("average NONE MODEL -o OUT", "no such model directory"),
        ("bench MODEL --size 0 3", "--size 0 3: give at least 1"),
        ("convert NONE -o OUT", "no such weight file"),
        ("explain attention MODEL NONE", "no such file"),
        ("explain features MODEL IMAGE --channels 0", "--channels 0: give at least 1"),
        ("explain features MODEL IMAGE --layers 77", "numbered 1 to 2"),
        ("explain compare NONE MODEL MODEL", "no such file"),
        ("predict MODEL IMAGE -o OUT --tolerance -1", "--tolerance -1.0: give 0 to 1,000,000"),
        ("predict MODEL IMAGE -o OUT --tolerance inf", "--tolerance inf: give 0 to 1,000,000"),
        ("predict MODEL IMAGE -o OUT --min-pixels -1", "--min-pixels -1: give 0 or more"),
        ("predict MODEL IMAGE -o OUT --window 0", "--window 0: give at least 1"),
        ("predict MODEL IMAGE -o OUT --max-pixels 0", "--max-pixels 0: give at least 1"),
        ("predict MODEL IMAGE -o OUT --value-range 5,3", "give low, then high"),
        ("results --runs NONE", "no such folder"),
        ("score DIR DIR --num-classes -5", "--num-classes -5: give at least 1"),
        ("serve MODEL --port 99999", "--port 99999: give 0 to 65,535"),
        ("serve MODEL --window 0", "--window 0: give at least 1"),
        ("demo --steps -4 --out OUT", "--steps -4: give 0 or more"),
        ("train demo --out OUT --data.root scenes:20 --model.encoder foo", "not a timm model"),
        ("train demo --out OUT --data.root scenes:20 --model.taps 1 99", "numbered 1 to 6"),
        ("train demo --out OUT --data.root scenes:20 --model.freeze 99", "has 6 blocks"),
        (
            "train demo --out OUT --data.root scenes:20 --model.pretrained NONE.pth",
            "no such weight",
        ),
        ("train demo --out OUT --resume", "no training state to resume from"),
        ("train demo -o OUT --resume", "out/last: no training state to resume from"),
        ("train demo -oOUT --resume", "out/last: no training state to resume from"),
        ("demo -o OUT --steps -4", "--steps -4: give 0 or more"),
    ],
)
def test_what_the_command_line_tells_is_usage(line, message, capsys, tmp_path):
    """Exit code 2 in place of 1, and nothing is written."""
    names = {"NONE": "none", "MODEL": "model", "IMAGE": "a.png", "OUT": "out"}
    write_bytes(tmp_path / "a.png", encode_png(draw("x", 0)[0]))
    save_pretrained(tmp_path / "model", tiny_model(), ModelInfo(labels=Labels(tuple("abcde"))))
    for name, file in names.items():
        line = line.replace(name, str(tmp_path / file))
    code, out, err = run(capsys, *line.replace("DIR", str(tmp_path)).split())
    assert message in err.splitlines()[-1]
    assert code == USAGE
    assert out == ""
    assert not (tmp_path / "out").exists()


def test_a_model_directory_with_wrong_settings_is_no_wrong_usage(capsys, tmp_path):
    save_pretrained(tmp_path / "model", tiny_model(), ModelInfo(labels=Labels(tuple("abcde"))))
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text().replace('"scales": [\n', '"scales": [\n   -1.0,\n'))
    assert "-1.0" in path.read_text()
    assert run(capsys, "explain", "position", tmp_path / "model")[0] == FAILED


def test_names_cannot_write_on_the_terminal(capsys, tmp_path):
    name = "\x1b[2J\x1b]0;title\x07\x9b1m" + "a" * 10 + "\rall is well.png"
    assert main(["predict", str(tmp_path / name), "x.png", "-o", str(tmp_path / "o")]) == USAGE
    told = capsys.readouterr().err
    assert told.endswith("\n")
    assert told[:-1].isprintable()
    assert "?[2J?]0;title??1m" in told


def test_a_message_has_an_end():
    line = one_line("first " + "x" * 1_000_000 + " last")
    assert len(line) < 3_000
    assert line.startswith("first ")
    assert line.endswith(" last")
