"""Exported files: the same logits, the same Result, and nothing written that is not."""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import setr
from setr.arguments.choices import ExportFormat
from setr.cli import main
from setr.data import scenes
from setr.data.sampling import evenly_spaced
from setr.datasets import open_dataset
from setr.errors import DATA_CHECK_FAILED, FAILED, INTERRUPTED, OK, USAGE, SetrError
from setr.evaluation import evaluate, resolve_protocol
from setr.export import SUFFIX, export, metadata, write_openvino
from setr.exporting import runtime
from setr.exporting.export_check import compare, require_accuracy
from setr.exporting.graphs import Graph, quiet, trace
from setr.exporting.quantize import calibration_images, quantized
from setr.hub import save_pretrained
from setr.images import encode_png
from setr.inference import normalize
from setr.layers.antialiased import bicubic_weights
from setr.layers.feature_pyramid import FeaturePyramidNeck
from setr.layers.token_merging import most_alike
from setr.loading import load
from setr.model import SETR, create_model
from setr.model_info import ModelInfo
from setr.predictor import Predictor
from setr.processes.lock import open_locked
from setr.protocols import Protocol
from tests.conftest import tiny_model, write_scene_folders

INFO = ModelInfo(
    labels=scenes.LABELS, protocol=Protocol(window=(40, 40), stride=(24, 24)), licence="mit"
)
K = len(scenes.CLASSES)
SMALL = {"depth": 2, "embed_dim": 64, "num_heads": 2}


def trained(model: SETR) -> SETR:
    """Batch norms that have seen data: folding them must keep the function."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                tensor.data.normal_(std=0.2, generator=generator)
            for tensor in (module.running_var, module.weight):
                tensor.data.uniform_(0.5, 2, generator=generator)
    return model.eval()


def with_encoder(encoder: str, decoder: str = "mla", **more: object) -> SETR:
    return create_model(
        f"setr_{decoder}_tiny", num_classes=K, encoder=encoder, channels=16, taps=(1, 2), aux=False,
        encoder_args={**SMALL, **more},
    )  # fmt: skip


@pytest.fixture(scope="module")
def model() -> SETR:
    torch.manual_seed(0)
    return trained(tiny_model("pup", num_classes=K))


@pytest.fixture(scope="module")
def onnx_file(model: SETR, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    save_pretrained(folder / "model", model, INFO)
    assert main(["export", str(folder / "model"), "--format", "onnx", "--argmax",
                 "-o", str(folder / "model.onnx")]) == OK  # fmt: skip
    assert sorted(p.name for p in folder.iterdir()) == ["model", "model.onnx"]
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def files(model: SETR, tmp_path_factory: pytest.TempPathFactory) -> Callable[[ExportFormat], Path]:
    """The file of a format, in a folder of its own; written when it is first asked for.

    Tracing and ONNX take most of the time, so OpenVINO's is made from the same graph.
    """
    folder = tmp_path_factory.mktemp("files")

    @functools.cache
    def exported(format: ExportFormat) -> Path:
        path = folder / format / f"m{SUFFIX[format]}"
        if format == "openvino":
            path.parent.mkdir()
            write_openvino(exported("onnx"), path, "fp32", metadata(model, INFO, "fp32", "logits"))
        else:
            export(model, INFO, path, format=format, size=(32, 32) if format == "torch" else None)
        return path

    return exported


@pytest.fixture
def photo() -> np.ndarray:
    return scenes.draw("photo", 0, size=64)[0][:50]


def same_result(path: Path, model: SETR, photo: np.ndarray) -> None:
    ours = Predictor(model, INFO, device="cpu", precision="fp32").predict(photo)
    theirs = setr.load(path).predict(photo)
    np.testing.assert_allclose(theirs.scores, ours.scores, atol=1e-5)
    np.testing.assert_allclose(theirs.confidence, ours.confidence, atol=1e-5)
    assert (theirs.mask == ours.mask).mean() > 0.999
    assert theirs.labels == ours.labels


def test_an_onnx_file_gives_the_same_result_by_windows(onnx_file, model, photo):
    same_result(onnx_file, model, photo)


def test_a_file_runs_without_the_libraries_that_build_networks(onnx_file):
    code = (
        "import sys, numpy, setr\n"
        f"setr.load({str(onnx_file)!r}).predict(numpy.zeros((50, 45, 3), 'uint8'))\n"
        "assert not {'timm', 'torchvision', 'sympy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("format", ["onnx", "openvino", None])
def test_several_threads_share_a_predictor(format, model, files):
    predictor = Predictor(model, INFO, device="cpu")
    if format is not None:
        pytest.importorskip("onnxruntime" if format == "onnx" else "openvino")
        predictor = setr.load(files(format))
    photos = [scenes.draw("threads", i, size=64)[0] for i in range(24)]
    one_by_one = [predictor.predict(photo).scores for photo in photos]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda photo: predictor.predict(photo).scores, photos))
    np.testing.assert_array_equal(together, one_by_one)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_images_of_one_row_or_column_of_patches(format, model, photo, files):
    """PUP's edges meet there."""
    for part in (photo[:9, :13], photo[:16, :40], photo[:40, :7]):
        same_result(files(format), model, part)


class Merged(torch.nn.Module):
    """Patches (B, h, w, C) through merging and back, and the mean of the tokens in between."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        patches, (_, h, w, _) = maps.flatten(1, 2), maps.shape
        merging = most_alike(patches, (h, w), self.share)
        tokens = merging.merge(patches)
        return merging.restore(tokens), tokens.mean(dim=1)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_runtimes_merge_tokens_of_images_of_few_patches(share):
    """Of some no group is merged, of others no patch is left alone; runtimes refuse empty tensors.

    OpenVINO also failed for the next image, of any size.
    """
    ort, ov = pytest.importorskip("onnxruntime"), pytest.importorskip("openvino")
    module, free = Merged(share), dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    with quiet():
        program = torch.export.export(
            module, (torch.zeros(2, 6, 9, 4),), dynamic_shapes={"maps": free}, strict=False
        )
        exported = torch.onnx.export(program, dynamo=True, opset_version=20, verbose=False)
    assert exported is not None
    data = exported.model_proto.SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    core = ov.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(data), "CPU", exact).create_infer_request()
    for h, w in [(4, 6), (1, 1), (4, 6), (1, 3), (3, 1), (4, 6), (2, 2), (2, 3), (5, 7), (4, 4)]:
        maps = torch.randn(2, h, w, 4, generator=torch.Generator().manual_seed(0))
        expected = module(maps)
        found = request.infer({0: maps.numpy()})
        for given in (session.run(None, {"maps": maps.numpy()}), [found[0], found[1]]):
            for ours, theirs in zip(given, expected, strict=True):
                np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_its_own_head_needs_no_toolkit(onnx_file, model):
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    assert image.shape == ["batch", 3, "height", "width"]
    x = torch.randn(3, 3, 41, 27)
    (mask,) = session.run(["mask"], {"images": x.numpy()})
    assert mask.dtype == np.uint8
    with torch.inference_mode():
        assert (model(x).argmax(dim=1).numpy() == mask).mean() > 0.999
    stored = session.get_modelmeta().custom_metadata_map
    assert json.loads(stored["setr.labels"])["classes"] == list(scenes.CLASSES)
    assert json.loads(stored["setr.labels"])["label_map"]
    assert json.loads(stored["setr.mean"]) == list(INFO.mean)
    assert json.loads(stored["setr.licence"]) == "mit"
    assert json.loads(stored["setr.protocol"])["window"] == [40, 40]


def test_a_file_is_tested_like_a_model(onnx_file, model):
    data = open_dataset("scenes:20", "val")
    ours = evaluate(model, data, info=INFO, precision="fp32", workers=0, detailed=False)
    theirs = evaluate(onnx_file, data, precision="fp32", workers=0, detailed=False)
    assert theirs["miou"] == pytest.approx(ours["miou"], abs=1e-4)


def test_a_preset_has_the_windows_that_the_model_would_have(onnx_file, model):
    info = replace(INFO, protocol=Protocol())
    ours = resolve_protocol("paper-ms", model, info)
    assert ours.window == (32, 32)  # of its position grid
    assert resolve_protocol("paper-ms", load(onnx_file).model, info) == ours


def test_openvino_with_rope_and_int8(photo, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    model = trained(with_encoder("vit_small_patch16_dinov3", "naive"))
    report = export(model, INFO, tmp_path / "m.xml", format="openvino")
    assert max(report["difference"].values()) < 1e-5
    same_result(tmp_path / "m.xml", model, photo)
    with pytest.raises(SetrError, match="was exported in fp32"):
        load(tmp_path / "m.xml", precision="bf16")
    data = open_dataset("scenes:20", "val")
    report = export(
        model, INFO, tmp_path / "q.xml", format="openvino", precision="int8", calibration=data
    )
    assert set(report["miou"]) == {"pytorch_fp32", "exported"}
    let_go: list[Path] = []
    monkeypatch.setattr(
        "setr.exporting.sessions.page_out", lambda path: let_go.append(path.resolve())
    )
    assert load(tmp_path / "q.xml").predict(photo).mask.shape == (50, 64)
    read, copy = let_go  # the weights, before they are packed and after
    assert read == copy
    assert str(copy).endswith("(deleted)")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bin", "m.xml", "q.bin", "q.xml"]
    (tmp_path / "m.bin").unlink()
    with pytest.raises(SetrError, match=r"m\.xml: not an OpenVINO model that.*\.bin is missing"):
        load(tmp_path / "m.xml")


@pytest.mark.parametrize(
    ("text", "damaged"),
    [
        (b"&quot;setr-", b"&quot;s\xfftr-"),
        (b"<protocol ", b"<p\xffotocol "),
        (b'names="coarse"', b'names="course"'),
    ],
)
def test_a_damaged_text_in_an_openvino_file_is_one_line(files, tmp_path, text, damaged):
    pytest.importorskip("openvino")
    path = files("openvino")
    content = path.read_bytes()
    assert text in content
    (tmp_path / "m.xml").write_bytes(content.replace(text, damaged))
    shutil.copy(path.with_suffix(".bin"), tmp_path)
    with pytest.raises(SetrError, match=r"m\.xml: not an OpenVINO model that can be run"):
        load(tmp_path / "m.xml")


def test_a_loaded_openvino_file_is_apart_from_its_weights(files, tmp_path):
    """Other content and a shorter file, as `cp` leaves it; the process would end."""
    pytest.importorskip("openvino")
    code = f"""
import errno, os, shutil, tempfile, numpy as np, setr
temporary, whole = tempfile.TemporaryFile, {str(files("openvino"))!r}
images = [np.random.default_rng(0).integers(0, 256, (n, 60, 3), np.uint8) for n in (50, 70)]
def on_disk(dir):
    if disk == "is full" or disk == "is read-only" and dir:
        raise OSError(errno.ENOSPC, "No space left on device")
    return temporary(dir=dir)
tempfile.TemporaryFile = on_disk
for disk in ("has room", "is read-only", "is full"):
    print("the disk", disk, flush=True)
    folder = os.path.join({str(tmp_path)!r}, disk)
    shutil.copytree(os.path.dirname(whole), folder)
    predictor = setr.load(os.path.join(folder, "m.xml"))
    before = [predictor.predict(image).scores for image in images[:1]]
    weights = os.path.join(folder, "m.bin")
    size = os.path.getsize(weights)
    with open(weights, "r+b") as file:
        file.write(bytes(size))
    again = [predictor.predict(image).scores for image in images]
    os.truncate(weights, size // 100)
    cut = [predictor.predict(image).scores for image in images]
    assert np.array_equal(before[0], again[0])
    assert all(map(np.array_equal, again, cut))
    other = setr.load(whole).predict(images[1]).scores
    assert np.array_equal(again[1], other)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_for_one_size_and_raw_pixels(model, photo, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    info = replace(INFO, protocol=Protocol())
    path = tmp_path / "m.onnx"
    report = export(model, info, path, format="onnx", size=(38, 48), pixels=True)
    assert set(report["difference"]) == {"1x38x48"}
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    assert (image.type, image.shape) == ("tensor(uint8)", [1, 38, 48, 3])
    assert [o.shape for o in session.get_outputs()] == [[1, K, 38, 48], [1, K, 40, 48]]
    x = photo[None, :38, :48]
    with torch.inference_mode():
        expected = model(normalize(torch.from_numpy(x), info.mean, info.std)).numpy()
    np.testing.assert_allclose(session.run(["logits"], {"images": x})[0], expected, atol=1e-4)

    by_windows = replace(info, protocol=info.protocol.in_windows((38, 48)))
    ours = Predictor(model, by_windows, device="cpu", precision="fp32").predict(photo)
    theirs = setr.load(path).predict_batch([photo, photo[:, ::-1]])[0]
    np.testing.assert_allclose(theirs.confidence, ours.confidence, atol=1e-5)
    assert (theirs.mask == ours.mask).mean() > 0.999
    assert setr.load(path).predict(photo[:7, :9]).mask.shape == (7, 9)  # padded
    assert setr.load(path, scales=(0.5, 1.5), flip=True).predict(photo).mask.shape == (50, 64)
    with pytest.raises(SetrError, match=r"takes images of 38x48 .* was given 50x64"):
        setr.load(path, protocol=Protocol()).predict(photo)
    assert setr.load(path).raster_protocol.window == (38, 48)


def test_raw_pixels_of_any_size_in_int8(model, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("nncf")
    data, path = open_dataset("scenes:6", "val"), tmp_path / "q.onnx"
    options = {"format": "onnx", "precision": "int8", "head": "mask", "calibration": data}
    export(model, INFO, path, pixels=True, **options)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", "height", "width", 3]
    image = np.stack([data.load(i).image[:50, :45] for i in range(2)])
    (mask,) = session.run(["mask"], {"images": image})
    assert mask.shape == (2, 50, 45)
    x = normalize(torch.from_numpy(image), INFO.mean, INFO.std)
    assert (model(x).argmax(dim=1).numpy() == mask).mean() > 0.9
    export(model, INFO, tmp_path / "s.onnx", size=(40, 40), **options)
    assert setr.load(tmp_path / "s.onnx").predict(image[0]).mask.shape == (50, 45)


def test_torch_export_carries_its_description(tmp_path):
    torch.manual_seed(0)
    model = trained(with_encoder("vit_small_patch14_dinov2", "naive"))
    path = tmp_path / "m.pt2"
    assert max(export(model, INFO, path, format="torch")["difference"].values()) < 1e-5
    files = {"setr.json": ""}
    torch.export.load(path, extra_files=files)
    assert json.loads(files["setr.json"])["labels"]["classes"] == list(scenes.CLASSES)


def turned(model: SETR) -> SETR:
    """The same with blocks in which it matters what patch looks at which, as in trained ones."""
    with torch.no_grad():
        for name, weight in model.encoder.named_parameters():
            if name.endswith(("attn.qkv.weight", "bias_table")) or ".gamma_" in name:
                weight.copy_(torch.randn_like(weight))
            if ".rel_pos_" in name or name.endswith("pos_embed"):  # zeros in SAM's
                weight.normal_(std=0.05)
    return model


@pytest.mark.parametrize(
    "build",
    [
        lambda: tiny_model("mla", num_classes=K, pos_interp="bilinear", prefix_tokens="drop"),
        lambda: tiny_model("naive", num_classes=K, odd_sizes="squeeze"),
        lambda: with_encoder("eva02_small_patch14_224", "pup"),
        lambda: turned(with_encoder("vit_small_patch16_dinov3", "naive")),
        lambda: turned(with_encoder("beit_base_patch16_224", "naive")),
        lambda: turned(
            with_encoder("samvit_base_patch16", "naive", window_size=3, global_attn_indexes=(1,))
        ),
        lambda: create_model(
            "segmenter_tiny", num_classes=K, img_size=64, encoder_args=SMALL, channels=64
        ),
        lambda: create_model("eomt_tiny", num_classes=K, img_size=64, encoder_args=SMALL),
        lambda: create_model(
            "dpt_tiny", num_classes=K, img_size=112, encoder_args=SMALL, channels=16,
            pos_interp="bicubic_plain",
        ),
        lambda: create_model(
            "upernet_tiny", num_classes=K, img_size=64, encoder_args={**SMALL, "depth": 4},
            channels=16, pos_interp="bicubic_plain",
        ),
        lambda: create_model(
            "upernet_tiny", num_classes=K, img_size=64, encoder="beit_base_patch16_224",
            encoder_args={**SMALL, "depth": 4}, channels=16, neck="feature2pyramid",
        ),
        lambda: create_model(
            "hybrid_base", num_classes=K, img_size=64, resnet="resnet18", taps=(1, 2), aux=False,
            channels=16, encoder_args=SMALL,
        ),
    ],
    ids=["mla 2021", "squeeze", "eva02 patch 14", "dinov3", "beit", "sam", "segmenter", "eomt",
         "dpt", "upernet", "upernet on beit", "hybrid"],
)  # fmt: skip
def test_graphs_of_other_models_equal_them_at_any_size(build):
    torch.manual_seed(0)
    model = trained(build())
    program = trace(Graph(model, "logits")).module(check_guards=False)
    # torch.export fixes sizes of 1, so the half of BEiT's last map must have two cells
    side = 49 if isinstance(model.neck, FeaturePyramidNeck) else 37
    for shape in ((1, 3, 64, 64), (3, 3, side, 90), (1, 3, 90, side)):
        x = torch.randn(shape)
        with torch.inference_mode():
            logits, coarse = program(x)
            torch.testing.assert_close(logits, model(x), atol=1e-5, rtol=1e-4)
            assert coarse.shape == model.coarse(x).logits.shape


def test_a_model_is_traced_once_for_onnx_which_traces_it_again(model, monkeypatch):
    """As long as the first time; without a change to the file."""
    again = []
    original = torch.export.ExportedProgram.run_decompositions
    monkeypatch.setattr(
        torch.export.ExportedProgram,
        "run_decompositions",
        lambda self, table: again.append(table) or original(self, table),
    )
    for functional in (False, True):
        program = trace(Graph(model, "logits"), functional=functional)
        assert again == [{}] * functional
        used = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        assert not [name for name in used if "_aa" in name]  # which runtimes compute differently
        assert (
            any(name.split(".")[1].endswith("_") for name in used if "aten" in name) != functional
        )


@pytest.mark.parametrize(("old", "new"), [(14, 14), (14, 33), (37, 9), (24, 25), (1, 5), (5, 1)])
def test_bicubic_weights_are_those_of_interpolate(old, new):
    x = torch.randn(1, 2, old, 3)
    expected = F.interpolate(x, (new, 3), mode="bicubic", antialias=True)
    torch.testing.assert_close(bicubic_weights(old, new) @ x, expected, atol=1e-5, rtol=0)


def test_a_file_that_differs_is_not_written(onnx_file, model, tmp_path, monkeypatch):
    other = trained(tiny_model("pup", num_classes=K))
    other.load_state_dict(model.state_dict())
    other.decoder.classifier.bias.data[3] += 0.003
    with pytest.raises(SetrError, match=r"differ from PyTorch's by .* nothing was written"):
        compare(onnx_file, other, "mask", exact=True)

    def worse(path, *_):
        path.write_bytes(b"draft")

    monkeypatch.setattr("setr.export._write", worse)
    monkeypatch.setattr("setr.export.compare", lambda *_, **__: {})
    monkeypatch.setattr(
        "setr.export.compare_accuracy", lambda *_: {"pytorch_fp32": 0.80, "exported": 0.793}
    )
    data = open_dataset("scenes:20", "val")
    with pytest.raises(SetrError, match=r"fp16 lowers the mIoU from 80\.00 to 79\.30"):
        export(model, INFO, tmp_path / "m.onnx", format="onnx", precision="fp16", calibration=data)
    assert not list(tmp_path.iterdir())


def test_a_higher_miou_is_no_reason_to_refuse_a_file():
    for exported in (0.796, 0.80, 0.95):
        require_accuracy({"pytorch_fp32": 0.80, "exported": exported}, "int8", Path("m.onnx"))
    for exported in (0.794, float("nan")):
        with pytest.raises(SetrError, match="int8 lowers the mIoU"):
            require_accuracy({"pytorch_fp32": 0.80, "exported": exported}, "int8", Path("m.onnx"))


def test_half_precision_halves_the_file(files, model, tmp_path):
    pytest.importorskip("openvino")
    for precision in ("fp32", "fp16", "bf16"):
        values = metadata(model, INFO, precision, "logits")
        write_openvino(files("onnx"), tmp_path / f"{precision}.xml", precision, values)
    whole, *halves = ((tmp_path / f"{p}.bin").stat().st_size for p in ("fp32", "fp16", "bf16"))
    assert max(halves) < 0.6 * whole


@pytest.mark.parametrize("name", ["model[1].xml", "*.xml", "[!a].xml"])
def test_signs_in_a_name_mean_themselves(model, tmp_path, monkeypatch, name):
    """`[1]` is no pattern: every file arrives, and their size is told."""

    def drafts(path: Path, *_: object) -> None:
        path.write_bytes(b"graph")
        path.with_suffix(".bin").write_bytes(b"weights")

    monkeypatch.setattr("setr.export._write", drafts)
    monkeypatch.setattr("setr.export.compare", lambda *_, **__: {})
    report = export(model, INFO, tmp_path / name, format="openvino")
    assert report["bytes"] == len(b"graph" + b"weights")
    assert {p.name for p in tmp_path.iterdir()} == {name, name.replace(".xml", ".bin")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onnx", "out": "m.pt2"}, "onnx files end in .onnx"),
        ({"format": "onnx", "out": "folder.onnx"}, "folder.onnx: is a folder; give another"),
        ({"format": "onnx", "out": "large.onnx"}, "large.onnx.data: is a folder; give another"),
        ({"format": "openvino", "out": "m.xml"}, "m.bin: is a folder; give another name"),
        ({"format": "onnx", "out": "a" * 250 + ".onnx"}, "has a long name; give a shorter one"),
        ({"format": "onnx", "precision": "bf16"}, "onnx files have fp32, fp16, int8"),
        ({"format": "onnx", "precision": "int8"}, "give --calibration DATA"),
    ],
)
def test_what_cannot_be_is_said_first(options, message, model, tmp_path):
    for folder in ("folder.onnx", "large.onnx.data", "m.bin"):
        (tmp_path / folder).mkdir()
    out = tmp_path / {"out": "m.onnx", **options}["out"]
    options = {key: value for key, value in options.items() if key != "out"}
    with pytest.raises(SetrError, match=message) as caught:
        export(model, INFO, out, **options)
    assert caught.value.code == USAGE


@pytest.mark.parametrize("verb", ["export", "bench"])
def test_labels_that_do_not_fit_are_said_before_the_work(verb, tmp_path, monkeypatch, capsys):
    """Other classes, no masks: before anything is traced or timed."""
    save_pretrained(tmp_path / "model", tiny_model(num_classes=K), INFO)
    monkeypatch.setattr("setr.export.trace", None)
    monkeypatch.setattr("setr.bench.trace", None)
    monkeypatch.setattr("setr.bench.run_process", None)
    data = write_scene_folders(tmp_path / "data", {"val": 3})
    text = (data / "data.yaml").read_text()
    rest = ["--format", "onnx", "-o", str(tmp_path / "m.onnx")] if verb == "export" else []
    option = "--calibration" if verb == "export" else "--data"
    command = [verb, str(tmp_path / "model"), *rest, option, str(data)]
    (data / "data.yaml").write_text(text.replace("hill", "mountain"))
    assert main(command) == DATA_CHECK_FAILED
    assert "class 1 is 'hill' in the model but 'mountain'" in capsys.readouterr().err
    (data / "data.yaml").write_text(text)
    for mask in (data / "labels" / "val").iterdir():
        mask.write_bytes(b"no image")
    assert main(command) == DATA_CHECK_FAILED
    assert "not an image" in capsys.readouterr().err
    assert not (tmp_path / "m.onnx").exists()


def test_options_are_refused_before_a_model_is_opened(tmp_path, capsys):
    command = ["export", str(tmp_path / "none"), "--format", "onnx", "-o", str(tmp_path / "m.xml")]
    assert main(command) == USAGE
    assert "onnx files end in .onnx" in capsys.readouterr().err


def test_files_of_others_are_one_line(tmp_path, onnx_file, capsys):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "other.onnx")
    (tmp_path / "broken.onnx").write_bytes(onnx_file.read_bytes()[:1000])
    photo = tmp_path / "photo.png"
    photo.write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    for name, message in (
        ("other.onnx", "was not written by setr export"),
        ("broken.onnx", "not an ONNX model that can be run"),
        ("none.onnx", "no such file"),
    ):
        model, out = str(tmp_path / name), str(tmp_path / "out")
        assert main(["predict", model, str(photo), "-o", out]) != OK
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert message in err
        with pytest.raises(SetrError, match=message):
            load(tmp_path / name)
    for command in (["export", "--format", "onnx", "-o", str(tmp_path / "o.onnx")], ["bench"]):
        assert main([command[0], str(onnx_file), *command[1:]]) == USAGE
        refusal = f"setr: {onnx_file}: an exported file only computes scores; give the model"
        assert capsys.readouterr().err.startswith(refusal)
    with pytest.raises(SetrError, match="device 'mps'"):
        load(onnx_file, device="mps")


def test_an_onnx_file_runs_on_the_device_asked_for_or_not_at_all(onnx_file, monkeypatch):
    ort = pytest.importorskip("onnxruntime")
    gpu, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    plain, asked, usable = ort.InferenceSession, [], [gpu, cpu]

    def session(path, options, providers, **given):
        asked.append(providers)
        found = plain(path, options, providers=[cpu])
        found.get_providers = lambda: [name for name, _ in providers if name in usable]
        return found

    monkeypatch.setattr(ort, "InferenceSession", session)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["AzureExecutionProvider", cpu])
    load(onnx_file)
    assert asked.pop() == [(cpu, {})]
    with pytest.raises(SetrError, match=r"'cuda': this onnxruntime has Azure.*onnxruntime-gpu"):
        load(onnx_file, device="cuda")
    monkeypatch.setattr(ort, "get_available_providers", lambda: [gpu, cpu])
    for device, index in (("auto", "0"), ("cuda", "0"), ("cuda:1", "1")):
        load(onnx_file, device=device)
        assert asked.pop() == [(gpu, {"device_id": index}), (cpu, {})]
    with pytest.raises(SetrError, match="device 'cuda:x'"):
        load(onnx_file, device="cuda:x")
    usable.remove(gpu)  # the package is there, a library that it needs is not
    load(onnx_file)
    with pytest.raises(SetrError, match="device 'cuda:1': onnxruntime-gpu cannot use it"):
        load(onnx_file, device="cuda:1")


def test_a_damaged_text_in_an_onnx_file_is_one_line(onnx_file, tmp_path, capsys):
    """ONNX Runtime prints on stdout when it tries another of several devices."""
    data = bytearray(onnx_file.read_bytes())
    data[data.index(b"setr.format")] = 0xFF
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(data)
    with pytest.raises(SetrError, match="not an ONNX model that can be run"):
        load(damaged)
    assert capsys.readouterr().out == ""


def test_calibration_images_are_what_the_network_sees():
    data = open_dataset("scenes:90", "val")
    images = calibration_images(data, INFO, count=3)
    assert [image.shape for image in images] == [(1, 3, 40, 40)] * 3
    places = set()
    for index, image in zip(evenly_spaced(len(data), 3), images, strict=True):
        whole = normalize(torch.from_numpy(data.load(index).image)[None], INFO.mean, INFO.std)
        rows, columns = (range(side - 39) for side in whole.shape[-2:])
        (place,) = (
            (y, x) for y in rows for x in columns
            if np.array_equal(whole[..., y : y + 40, x : x + 40], image)
        )  # fmt: skip
        places.add(place)
    assert len(places) == 3  # not always the sky
    half = replace(INFO, protocol=Protocol(short_side=64))
    (image,) = calibration_images(data, half, count=1)
    whole = normalize(torch.from_numpy(data.load(0).image)[None], INFO.mean, INFO.std)
    expected = F.interpolate(whole, (64, 64), mode="bilinear", align_corners=False)
    np.testing.assert_array_equal(image, expected)


def test_a_wrong_mask_beside_right_logits_is_not_written(model, monkeypatch):
    """The mask is an output of its own: it is compared, too, but for ties."""
    wrong: list[float] = []

    def drawn(images: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            x = torch.from_numpy(images)
            logits, coarse = model(x), model.coarse(x).logits
        mask = logits.argmax(dim=1)
        if wrong:
            mask[:, :5] = (mask[:, :5] + 1) % K
        return [mask.to(torch.uint8).numpy(), coarse.numpy()]

    monkeypatch.setattr("setr.exporting.export_check.open_run", lambda *_: drawn)
    assert max(compare(Path("m.onnx"), model, "mask", exact=True)["difference"].values()) < 1e-5
    wrong.append(1)
    with pytest.raises(SetrError, match=r"mask differs from PyTorch's on .*; nothing was written"):
        compare(Path("m.onnx"), model, "mask", exact=True)


def test_logits_that_are_no_numbers_are_not_written(model, monkeypatch):
    """Though the coarse ones beside them are right."""

    def drawn(images: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            x = torch.from_numpy(images)
            return [model(x).mul(torch.nan).numpy(), model.coarse(x).logits.numpy()]

    monkeypatch.setattr("setr.exporting.export_check.open_run", lambda *_: drawn)
    with pytest.raises(SetrError, match=r"differ from PyTorch's by nan of .* nothing was written"):
        compare(Path("m.onnx"), model, "logits", exact=True)


def test_an_export_that_is_stopped_leaves_nothing(tmp_path, monkeypatch, capsys):
    save_pretrained(tmp_path / "model", tiny_model(num_classes=K), INFO)
    monkeypatch.setattr("setr.export.trace", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        line = ["export", str(tmp_path / "model"), "--format", "torch", "-o"]
        assert main([*line, str(tmp_path / "out" / "a.pt2")]) == INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "a.pt2 was not written" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("names", [("m.onnx", "m.onnx.data"), ("m.xml", "m.bin")])
def test_weights_are_there_before_the_file_that_names_them(model, tmp_path, monkeypatch, names):
    """A process may end between the two: a new graph must never read the weights of an old one."""
    for target, found in (("_write", None), ("compare", {}), ("check_request", None)):
        monkeypatch.setattr(f"setr.export.{target}", lambda *_, found=found, **__: found)
    monkeypatch.setattr(
        "setr.export._write", lambda path, *_: [(path.parent / name).touch() for name in names]
    )
    placed = []
    monkeypatch.setattr("os.replace", lambda old, new: placed.append(new.name))
    export(model, INFO, tmp_path / names[0], format="onnx")
    assert placed == [names[1], names[0]]


def test_the_weights_beside_a_larger_model_go_with_its_file(model, tmp_path, monkeypatch):
    for name in ("m.onnx.data", "other.onnx.data"):
        (tmp_path / name).write_bytes(b"of a model before")
    export(model, INFO, tmp_path / "m.onnx", format="onnx", size=(32, 32))
    assert {file.name for file in tmp_path.iterdir()} == {"m.onnx", "other.onnx.data"}
    monkeypatch.setattr("setr.exporting.onnx_file.MAX_INSIDE", 0)
    export(model, INFO, tmp_path / "m.onnx", format="onnx", size=(32, 32))
    assert (tmp_path / "m.onnx.data").stat().st_size > 1000


def test_a_model_that_cannot_be_traced_is_one_line(tmp_path):
    class Undecided(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x

    model = tiny_model("naive", num_classes=K)
    model.decoder.classifier = torch.nn.Sequential(model.decoder.classifier, Undecided())
    with pytest.raises(
        SetrError, match=r"^torch\.export cannot follow this model: .*--debug"
    ) as one:
        export(model, INFO, tmp_path / "m.pt2", format="torch")
    assert "\n" not in str(one.value)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_that_names_the_file(model, tmp_path, monkeypatch):
    monkeypatch.setattr("setr.export.trace", lambda *_, **__: None)
    monkeypatch.setattr(torch.export, "save", lambda *_, **__: None)

    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SetrError, match=r"m\.pt2: cannot write: No space left on device"):
        export(model, INFO, tmp_path / "m.pt2", format="torch", size=(32, 32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", SUFFIX)
def test_no_file_names_folders_of_this_machine(format, files):
    """torch notes with each node the source files it comes from, below the user's home."""
    path = files(format)
    content = b"".join(file.read_bytes() for file in path.parent.iterdir())
    if format == "torch":
        with zipfile.ZipFile(path) as archive:
            content = b"".join(map(archive.read, archive.namelist()))
    here = Path(setr.__file__).parents[1], Path(torch.__file__).parents[1], path.parent
    assert [folder for folder in here if str(folder).encode() in content] == []


@pytest.mark.parametrize("package", ["openvino", "nncf"])
def test_nothing_reports_how_it_is_used(package, tmp_path):
    """OpenVINO counts imports in the user's home, and starts a process that reports each."""
    pytest.importorskip(package)
    code = (
        "import multiprocessing.process as process, sys\n"
        "process.BaseProcess.start = lambda self: print('started')\n"
        f"from setr._extras import import_extra; import_extra('{package}', 'openvino', 'it')\n"
        "import openvino\n"
        "if 'nncf' in sys.modules:\n"
        "    from nncf.telemetry.wrapper import telemetry\n"
        "    print(type(telemetry).__name__)\n"
    )
    env = {**os.environ, "HOME": str(tmp_path)}
    for name in ("CI", "NNCF_CI"):
        env.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.split() == (["MagicMock"] if package == "nncf" else [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript", "nncf"])
def test_onnx_runtime_keeps_no_record_of_its_use(package, tmp_path):
    """Version 1.32 has an identifier and a queue of events in the user's home, and sends them."""
    pytest.importorskip(package)
    pytest.importorskip("onnxruntime")
    code = (
        f"from setr._extras import import_extra; import_extra('{package}', 'onnx', 'it')\n"
        "import onnxruntime"
    )
    given = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    for name in ("CI", "TF_BUILD", "GITHUB_ACTIONS"):  # where it sends nothing by itself
        given.pop(name, None)
    env = {**given, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in found if "Microsoft" in path.parts or path.name == ".ses"]


def test_openvino_leaves_the_log_as_it_was(files, tmp_path):
    pytest.importorskip("openvino")
    before = logging.root.level, logging.root.handlers, logging.root.filters
    write_openvino(files("onnx"), tmp_path / "m.xml", "fp32", {})
    assert (logging.root.level, logging.root.handlers, logging.root.filters) == before


def test_int8_leaves_the_levels_of_log_handlers_as_they_were(monkeypatch):
    nncf = pytest.importorskip("nncf")
    monkeypatch.setattr(nncf, "quantize", lambda *_, **__: "int8")
    logger, handler = logging.getLogger("nncf"), logging.NullHandler()
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        assert quantized(None, []) == "int8"
    finally:
        logger.removeHandler(handler)
    assert handler.level == logging.NOTSET
    assert not logger.isEnabledFor(logging.WARNING)


def test_exporters_say_nothing_of_their_internals():
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "onnxscript", "onnxscript.optimizer")]
    before = [logger.level for logger in loggers]
    loggers[-1].setLevel(logging.NOTSET)  # whoever ran before, it follows the one above
    with quiet():
        assert not any(logger.isEnabledFor(logging.WARNING) for logger in loggers)
    assert [logger.level for logger in loggers[:2]] == before[:2]


def test_metadata_of_another_graph(model, tmp_path, monkeypatch):
    """A runtime has errors of its own; a setting is said with the file that has it."""

    def run(images: np.ndarray) -> list[np.ndarray]:
        raise RuntimeError(f"expected: (tensor(float))\nActual: {images.dtype}")

    stored = metadata(model, INFO, "fp32", "mask")
    (tmp_path / "m.onnx").write_bytes(b"")
    monkeypatch.setattr(runtime, "onnx_run", lambda *_: (run, stored))
    opened, _ = runtime.open_exported(tmp_path / "m.onnx")
    said = r"m\.onnx: the runtime refuses images of 40x32 \(expected: \(tensor\(float\)\)\)"
    with pytest.raises(SetrError, match=said):
        opened(torch.zeros(1, 3, 32, 40))
    labels = json.loads(stored["labels"]) | {"colours": [-1]}
    stored["labels"] = json.dumps(labels)
    with pytest.raises(SetrError, match=r"m\.onnx: colour -1") as caught:
        runtime.open_exported(tmp_path / "m.onnx")
    assert caught.value.code == FAILED


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("patch_size", value) for value in ("x", 0, 10**9, float("inf"), [], None)],
        *[("grid", [4]), ("grid", ["a", 1])],
        *[("size", [4]), ("size", [-1, 4]), ("size", [1e400, 4])],
    ],
)
def test_metadata_of_a_stranger(key, value, model, tmp_path, monkeypatch):
    stored = metadata(model, INFO, "fp32", "mask")
    stored["export"] = json.dumps(json.loads(stored["export"]) | {key: value})
    (tmp_path / "m.onnx").write_bytes(b"")
    monkeypatch.setattr(runtime, "onnx_run", lambda *_: (None, stored))
    with pytest.raises(SetrError, match=r"m\.onnx: its metadata is broken") as caught:
        load(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)


def test_what_a_killed_export_left_is_removed(model, tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    monkeypatch.setattr("setr.export._write", lambda path, *_: path.touch())
    monkeypatch.setattr("setr.export.compare", lambda *_, **__: {})
    names = [".export-killed", ".export-at-work", ".export-just-begun", ".exported",
             ".export-just-killed"]  # fmt: skip
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.onnx").write_bytes(bytes(10))
    at_work, _ = open_locked(tmp_path / names[1] / ".lock", os.O_RDWR, "flock")
    (tmp_path / names[4] / ".lock").touch()
    for name in (*names[:2], names[3]):
        os.utime(tmp_path / name, (1, 1))
    export(model, INFO, tmp_path / "m.pt2", format="torch", size=(32, 32))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[1:4], "m.pt2"])
    os.close(at_work)
