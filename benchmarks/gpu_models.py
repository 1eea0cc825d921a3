"""What trained models give on a GPU beside the CPU's; checks of `gpu_check.py`."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

from gpu_bench import Bench, Figures, require
from gpu_training import run, scenes_folder

from setr.data import scenes


def trained(bench: Bench) -> Path:
    """A model directory."""
    return run(bench, "model", "pup", steps=2, precision="fp32")[0]


def predict(bench: Bench) -> Figures:
    """Masks and probabilities on this device beside the CPU's, by every protocol."""
    import setr
    from setr.protocols import Protocol

    model, image = trained(bench), scenes.draw("predict", 0, size=150)[0]
    found = {}
    protocols = {
        "whole": Protocol(),
        "windows": Protocol(window=(64, 64), stride=(40, 40)),
        "scales": Protocol(window=(64, 64), stride=(40, 40), scales=(0.5, 1.0, 1.75), flip=True),
        "blended": Protocol().in_windows(64),
        "short side": Protocol(short_side=70),
    }
    for name, protocol in protocols.items():
        expected = setr.load(model, device="cpu", precision="fp32", protocol=protocol).predict(
            image
        )
        for precision in ("fp32", *bench.halves()):
            predictor = setr.load(
                model, device=str(bench.device), precision=precision, protocol=protocol
            )
            for _ in range(4):  # windows of a shape that comes again are replayed
                ours = predictor.predict(image)
            same = float((ours.mask == expected.mask).mean())
            apart = float(abs(ours.scores - expected.scores).max())
            found[f"{name} {precision}"] = {"same": same, "apart": apart}
            limit = 0.005 if precision == "fp32" else 0.1
            require(apart < limit and same > 0.9, f"{name} {precision}: {same=}, {apart=}")
    return found


def others(bench: Bench) -> Figures:
    """What else takes a model on a device: figures, constants on its logits, evaluation, export."""
    import setr
    from setr import export
    from setr.datasets import open_dataset
    from setr.pages import figures
    from setr.scores import adjustment

    predictor = setr.load(trained(bench), device=str(bench.device))
    view = figures.make_view(predictor, scenes.draw("predict", 0, size=96)[0])
    depth = len(predictor.network.encoder.stages())
    figures.attention_figure(predictor, view, [(40, 60)], [depth])
    figures.features_figure(predictor, view, [])
    figures.position_figure(predictor)
    data = open_dataset(str(scenes_folder(bench)), "val", predictor.info.labels)
    model, info = predictor.network, predictor.info
    offsets = adjustment.find_offsets(model, info, data)
    tested = setr.evaluate(model, data, info=info, precision="fp32")
    alone = setr.load(bench.folder / "model", device="cpu", precision="fp32")
    expected = setr.evaluate(alone, data)  # on a GPU the images were tested together
    apart = max(abs(tested[key] - expected[key]) for key in ("miou", "pixel_accuracy"))
    require(apart < 0.005, f"evaluated to {tested['miou']}, on the CPU to {expected['miou']}")
    found = {"offsets": [round(float(x), 2) for x in offsets], "miou": tested["miou"]}
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
        found["export"] = export.export(model, info, bench.folder / "m.onnx", format="onnx")
    return found


FAMILIES: dict[str, dict[str, Any]] = {
    "eomt_nano": {},
    "dpt_nano": {},
    "upernet_nano": {},
    "segmenter_nano": {},
    "setr_mla_small": {"encoder": "vit_small_patch16_dinov3"},  # positions are rotations
}


def models(bench: Bench) -> Figures:
    """Training and prediction of the models besides SETR's, and masks beside the CPU's."""
    import setr

    found: Figures = {}
    image = scenes.draw("predict", 0, size=96)[0]
    for name, changes in FAMILIES.items():
        began = time.monotonic()
        folder, last = run(bench, name, model_name=name, steps=6, **changes)
        expected = setr.load(folder, device="cpu", precision="fp32").predict(image)
        predictor = setr.load(folder, device=str(bench.device), precision="fp32")
        for _ in range(4):  # a shape that comes again is replayed
            ours = predictor.predict(image)
        same = float((ours.mask == expected.mask).mean())
        apart = float(abs(ours.scores - expected.scores).max())
        found[name] = {"loss": last["loss"], "same": same, "apart": apart,
                       "seconds": round(time.monotonic() - began, 1)}  # fmt: skip
        print(f"  {name}: {found[name]}", flush=True)
        require(apart < 0.005 and same > 0.99, f"{name}: {same=}, {apart=}")
    return found
