"""Shared fixtures: tiny models, tiny drawn data sets, and the optional folder of real data."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import os
import re
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow a busy machine down
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors are slower in several
if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd")):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read by Triton's import: kernels on the CPU

import numpy as np
import pytest
import torch

from setr._extras import unreported
from setr.cli import main
from setr.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from setr.data import scenes
from setr.errors import USAGE
from setr.hub import save_pretrained
from setr.images import encode_png
from setr.layers import cpu_blocks, products
from setr.model import SETR, create_model
from setr.model_info import ModelInfo
from setr.prediction.video import VideoReader
from setr.predictor import Predictor
from setr.writing import write_bytes

for package in ("openvino", "nncf", "ray"):  # some tests import them before setr does
    unreported(package)
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a script
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):  # commands respect `nohup`, under which the tests may run, too
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real samples and reference cases; tests that need it skip without it."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("SETR_SHARED", default))
    if not folder.is_dir():
        pytest.skip(f"needs the reference data in {folder} (or SETR_SHARED)")
    return folder


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 products go to oneDNN, whatever the processor and however small they are."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("needs a PyTorch with oneDNN")
    monkeypatch.setattr(products, "WORTH_IT", 1)
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(cpu_blocks, "onednn_is_faster", lambda: True)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what tests remember about their files out of the user's cache."""
    os.environ["SETR_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def _is_near(name: str) -> bool:
    """Whether this is an address of this machine or its own network; Ray uses one of those."""
    try:
        return ipaddress.ip_address(name).is_private
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test in which anything, also another package, looks up a host that is not this one."""
    asked: list[str] = []
    look_up, own = socket.getaddrinfo, socket.gethostname()

    def getaddrinfo(host: str | bytes | None, *rest: object, **more: object) -> object:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in (None, "", "localhost", own) and not _is_near(name):
            asked.append(name)
            raise socket.gaierror(f"{name}: tests have no network")
        return look_up(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield
    assert not asked


def tiny_model(decoder: str = "pup", num_classes: int = 5, **arguments: object) -> SETR:
    """Two blocks of width 32 in 8 px patches: builds and runs in milliseconds."""
    settings: dict[str, object] = {
        "taps": (1, 2),
        "aux_taps": (1,) if decoder == "naive" else (1, 2),
        "encoder_args": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
        "img_size": 32,
        "channels": 16,
    }
    settings.update(arguments)
    return create_model(f"setr_{decoder}_nano", num_classes=num_classes, **settings)


def scene_predictor(
    decoder: str = "pup", *, info: dict[str, Any] | None = None, **options: Any
) -> Predictor:
    """A tiny model of the drawn scenes' classes in fp32, the same at each call."""
    torch.manual_seed(0)
    model = tiny_model(decoder, num_classes=len(scenes.CLASSES))
    own = ModelInfo(labels=scenes.LABELS, **(info or {}))
    return Predictor(model, own, precision="fp32", **options)


def save_scene_model(folder: Path, decoder: str = "pup", **info: Any) -> Path:
    """The model of `scene_predictor` as a directory."""
    made = scene_predictor(decoder, info=info)
    save_pretrained(folder, made.network, made.info)
    return folder


def refusal(capsys: pytest.CaptureFixture[str], *words: object, code: int = USAGE) -> str:
    """The one line with which a command ends, and nothing else that it prints."""
    assert main(list(map(str, words))) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("setr: ")
    return err


def renamed(
    model: torch.nn.Module | dict[str, torch.Tensor], rules: Sequence[tuple[str, Any]]
) -> dict[str, torch.Tensor]:
    """A model's tensors under the names of other code, by patterns and what replaces them."""
    state = {}
    for name, value in (model if isinstance(model, dict) else model.state_dict()).items():
        for pattern, there in rules:
            name = re.sub(pattern, there, name)
        state[name] = value
    return state


@contextlib.contextmanager
def disk_for(size: int) -> Iterator[None]:
    """Files may have so many bytes: the system takes a part of what is above, then fails."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_scene_folders(root: Path, counts: dict[str, int], size: int = 48) -> Path:
    """A data set in plain folders: images/SPLIT, labels/SPLIT and data.yaml."""
    for split, count in counts.items():
        for i in range(count):
            image, mask = scenes.draw(split, i, size=size)
            for kind, array in (("images", image), ("labels", mask)):
                folder = root / kind / split
                folder.mkdir(parents=True, exist_ok=True)
                write_bytes(folder / f"scene_{i:03d}.png", encode_png(array))
    names = ", ".join(scenes.CLASSES)
    (root / "data.yaml").write_text(f"path: .\nclasses: [{names}]\nignore: 255\n")
    return root


def frames(path: Path) -> Iterator[np.ndarray]:
    """The frames of a video file, uint8 RGB (H, W, 3)."""
    with VideoReader(path) as reader:
        yield from reader


@pytest.fixture
def folder_data(tmp_path: Path) -> Path:
    return write_scene_folders(tmp_path / "data", {"train": 6, "val": 3, "test": 2})


def tiny_config(out: Path, **train: object) -> Config:
    """A run of a few seconds on drawn scenes."""
    return Config(
        out=str(out),
        model=ModelConfig(name="setr_naive_nano", img_size=64, channels=16, taps=(1, 2)),
        data=DataConfig(root="scenes:12", crop_size=(64, 64), workers=0),
        optim=OptimConfig(lr=0.01, min_lr=0.0),
        train=dataclasses.replace(
            TrainConfig(steps=4, batch_size=2, precision="fp32", log_every=1, save_every=100),
            **train,  # type: ignore[arg-type]
        ),
    )


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return tiny_config(tmp_path / "run")
