"""Our outputs equal both public implementations' on every stored reference case.

Each case is a checkpoint with random weights and recorded outputs. It is opened the way a user
opens it, `setr.load("checkpoint.pth")`, with nothing but the file and the number of heads, which no
tensor tells. `python -m tests.test_parity ../shared` prints the table of docs/parity.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import setr
from setr.labels import known_labels
from setr.layers.upsampling import upsample
from setr.model import resize
from setr.protocols import preset

CASES = (
    *("official/naive", "official/pup", "official/mla"),
    *("mmseg/naive_ade", "mmseg/naive_ade_patchbias", "mmseg/pup_ade"),
    *("mmseg/mla_ade", "mmseg/mla_ade_patchbias"),
)
LIMITS = {torch.float32: 1e-5, torch.float64: 1e-10}
AUX_LIMIT = 1e-5  # auxiliary references are stored in fp32


def relative(ours: Tensor, reference: Tensor) -> float:
    """Largest deviation as a share of the reference's largest value."""
    scaled = resize(ours, (reference.shape[-2], reference.shape[-1])).double()
    return float((scaled - reference).abs().max() / reference.abs().max())


def errors(folder: Path, case: str, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Relative error of head output, full logits and worst auxiliary output, per input."""
    path = folder / "parity" / f"{case}.pth"
    references = torch.load(path.with_suffix(".io.pth"), weights_only=True)
    model = setr.load(path, num_heads=4, device="cpu").model.to(dtype)
    found = {}
    for tag, reference in references.items():
        # the port squeezes padded logits into odd sizes; compared under the option named for it
        model.odd_sizes = "squeeze" if tag == "odd" else "crop"
        with torch.inference_mode():
            images = reference["input"].to(dtype)
            output, full = model(images, with_aux=True), model(images)
        wider = [upsample(x, output.aux_scale) for x in output.aux]
        aux = zip(wider, reference["aux"], strict=True)
        assert full.shape == reference["full"].shape
        found[tag] = {
            "head": relative(output.logits, reference["decode_head"]),
            "full": relative(full, reference["full"]),
            "aux": max(relative(ours, theirs) for ours, theirs in aux),
        }
    return found


@pytest.mark.parametrize("dtype", LIMITS, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_the_reference(shared, case, dtype):
    for tag, found in errors(shared, case, dtype).items():
        assert found["head"] < LIMITS[dtype], (tag, found)
        assert found["full"] < LIMITS[dtype], (tag, found)
        assert found["aux"] < AUX_LIMIT, (tag, found)


def test_odd_sizes_is_a_keyword_of_load(shared):
    path = shared / "parity/mmseg/pup_ade.pth"
    model = setr.load(path, num_heads=4, odd_sizes="squeeze", device="cpu").model
    assert model.odd_sizes == model.arguments["odd_sizes"] == "squeeze"


def test_default_for_odd_sizes_crops_instead_of_squeezing(shared):
    path = shared / "parity/mmseg/mla_ade.pth"
    images = torch.load(path.with_suffix(".io.pth"), weights_only=True)["odd"]["input"]
    model = setr.load(path, num_heads=4, device="cpu").model
    H, W = images.shape[-2:]
    padded = torch.nn.functional.pad(images, (0, -W % 16, 0, -H % 16))
    with torch.inference_mode():
        torch.testing.assert_close(model(images), model(padded)[..., :H, :W])


def test_training_checkpoint_with_foreign_objects_loads_by_itself(shared):
    """Heads and taps come from the configuration text inside; nothing in the file is run."""
    predictor = setr.load(shared / "parity/mmseg/runner_naive_iter4.pth", device="cpu")
    arguments = predictor.model.arguments
    assert arguments["encoder_args"]["num_heads"] == 4
    assert arguments["taps"] == (1, 2, 3, 4)
    assert predictor.classes == ("a", "b", "c", "d", "e", "f", "g")
    assert "mmengine" not in sys.modules


def test_names_colours_crop_and_protocol_come_along(shared):
    info = setr.load(shared / "parity/official/pup.pth", num_heads=4, device="cpu").info
    assert info.labels.classes == tuple(f"c{i}" for i in range(7))
    assert info.labels.colours[1] == (9, 31, 77)
    assert info.crop_size == (64, 64)
    assert info.protocol == preset("paper-ss", grid=(64, 64))


def test_a_known_class_list_brings_its_label_map_and_test_sizes(shared, tmp_path):
    """A port checkpoint that names ADE20K's classes is tested as the port tests ADE20K."""
    known = known_labels("ade20k")
    values = torch.load(shared / "parity/mmseg/mla_ade.pth", weights_only=True)
    state = values["state_dict"]
    for name in [n for n in state if ".conv_seg." in n]:
        shape = (150, *state[name].shape[1:])
        state[name] = torch.zeros(shape)
    names = [f"{name} " for name in known.classes]
    names[89] = "television receiver"  # as mmsegmentation and the authors call it
    torch.save({"state_dict": state, "meta": {"CLASSES": names}}, tmp_path / "ade.pth")
    info = setr.load(tmp_path / "ade.pth", num_heads=4, device="cpu").info
    assert info.labels == known
    assert info.protocol.window == (512, 512)
    assert info.protocol.stride == (341, 341)
    assert (info.protocol.short_side, info.protocol.long_side) == (512, 2048)


def main(folder: Path) -> None:
    """Print the worst errors as a Markdown table."""
    print("| case | input | head fp32 | full fp32 | aux fp32 | head fp64 | full fp64 | aux fp64 |")
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES:
        single, double = (errors(folder, case, dtype) for dtype in LIMITS)
        for tag in single:
            figures = [f"{v:.1e}" for found in (single, double) for v in found[tag].values()]
            print(f"| {case} | {tag} | {' | '.join(figures)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
