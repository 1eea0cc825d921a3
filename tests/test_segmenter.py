"""Segmenter: its decoder against plain operations, and its published layouts."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import setr
from setr.errors import USAGE, SetrError
from setr.labels import known_labels
from setr.layers.mask_transformer import MaskTransformer
from setr.weight_files.foreign import convert_foreign
from setr.weight_files.naming import Translation
from setr.weight_files.published import published_labels, segmenter_test
from tests.conftest import renamed
from tests.models import assert_converts, assert_learns, assert_same

WIDTH, CLASSES = 64, 5


def randomised(model: nn.Module) -> nn.Module:
    """In eval mode, and far from what models start as, so that no tensor may go missing."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
            if re.search(r"norm.*weight$", name):
                parameter += 1
    return model.eval()


def norm(x: Tensor, p: dict[str, Tensor], name: str, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], eps)


def linear(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def attended(
    x: Tensor,
    p: dict[str, Tensor],
    block: str,
    heads: int,
    eps: float = 1e-5,
    allowed: Tensor | None = None,
) -> Tensor:
    """A pre-norm block, with LayerScale if it has that; `allowed` (B, N, N) limits attention."""
    B, N, C = x.shape
    qkv = linear(norm(x, p, f"{block}norm1", eps), p, f"{block}attn.qkv")
    q, k, v = qkv.view(B, N, 3, heads, C // heads).permute(2, 0, 3, 1, 4)
    scores = q @ k.mT / (C // heads) ** 0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed[:, None], -torch.inf)
    joined = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, N, C)
    x = x + p.get(f"{block}ls1.gamma", 1) * linear(joined, p, f"{block}attn.proj")
    hidden = F.gelu(linear(norm(x, p, f"{block}norm2", eps), p, f"{block}mlp.fc1"))
    return x + p.get(f"{block}ls2.gamma", 1) * linear(hidden, p, f"{block}mlp.fc2")


def test_masks_are_cosines_between_patches_and_classes():
    decoder = randomised(MaskTransformer(48, CLASSES, channels=WIDTH, num_heads=2)).double()
    features = torch.randn(2, 48, 3, 4, dtype=torch.double)
    p = decoder.state_dict()
    x = features.flatten(2).transpose(1, 2)
    x = linear(norm(x, p, "norm", 1e-6), p, "project")
    x = torch.cat([x, p["class_tokens"].expand(2, -1, -1)], dim=1)
    for i in range(2):
        x = attended(x, p, f"blocks.{i}.", heads=2)
    x = norm(x, p, "last_norm", 1e-5)
    patches = x[:, :12] @ p["patch_proj.weight"].T
    classes = x[:, 12:] @ p["class_proj.weight"].T
    cosines = (patches @ classes.mT) / (
        patches.norm(dim=2)[..., None] * classes.norm(dim=2)[:, None]
    )
    expected = norm(cosines, p, "mask_norm", 1e-5).transpose(1, 2).reshape(2, CLASSES, 3, 4)
    torch.testing.assert_close(decoder([features, features][1:]), expected)


@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_every_parameter_gets_a_gradient_and_any_size_logits(size):
    model = setr.create_model("segmenter_nano", num_classes=CLASSES, img_size=32)
    assert assert_learns(model, *size).aux == []


def test_class_tokens_begin_apart():
    """Equal ones would stay equal: all classes would get one mask."""
    torch.manual_seed(0)
    model = setr.create_model("segmenter_tiny", num_classes=50, img_size=64)
    assert model.decoder.class_tokens.std().item() == pytest.approx(0.02, rel=0.1)


def test_drop_path_grows_and_width_can_be_chosen():
    decoder = MaskTransformer(48, 3, num_layers=3, channels=128, drop_path=0.2)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in decoder.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])
    assert [block.attn.num_heads for block in decoder.blocks] == [2, 2, 2]
    with pytest.raises(SetrError, match="channels 100: not divisible by 3 attention heads"):
        MaskTransformer(48, 3, channels=100, num_heads=3)
    model = setr.create_model("segmenter_nano", num_classes=3, img_size=32, channels=64)
    assert model.decoder.class_tokens.shape == (1, 3, 64)


def own(decoder: str, **arguments: object) -> setr.SETR:
    model = setr.SETR(
        encoder="vit_base_patch16_384",
        encoder_args={"embed_dim": WIDTH, "depth": 2, "num_heads": 1, **arguments},
        decoder=decoder,
        num_classes=CLASSES,
        taps=(2,),
        img_size=64,
    )
    return randomised(model)


AUTHORS = [
    (r"encoder\.vit\.(.+)", r"encoder.\1"),
    (r"decoder\.norm\.(.+)", r"encoder.norm.\1"),
    (r"decoder\.class_tokens", "decoder.cls_emb"),
    (r"decoder\.project\.(.+)", r"decoder.proj_dec.\1"),
    (r"decoder\.last_norm\.(.+)", r"decoder.decoder_norm.\1"),
    (r"decoder\.patch_proj\.weight", "decoder.proj_patch"),
    (r"decoder\.class_proj\.weight", "decoder.proj_classes"),
]
BLOCK = [
    (r"\.blocks\.", ".layers."), (r"\.norm([12])\.", r".ln\1."),
    (r"attn\.qkv\.", "attn.attn.in_proj_"), (r"attn\.proj\.", "attn.attn.out_proj."),
    (r"mlp\.fc1\.", "ffn.layers.0.0."), (r"mlp\.fc2\.", "ffn.layers.1."),
]  # fmt: skip
PORT = [
    (r"^encoder\.vit\.patch_embed\.proj\.", "backbone.patch_embed.projection."),
    (r"^encoder\.vit\.", "backbone."),
    (r"^decoder\.norm\.|^decoder\.norms\.0\.", "backbone.ln1."),
    (r"^decoder\.", "decode_head."), (r"class_tokens", "cls_emb"), (r"\.project\.", ".dec_proj."),
    (r"last_norm", "decoder_norm"), (r"class_proj", "classes_proj"), (r"classifier", "conv_seg"),
    *BLOCK,
]  # fmt: skip


def test_a_checkpoint_of_the_authors(tmp_path, capsys):
    """All norms have PyTorch's epsilon there, and projections multiply from the right."""
    state = renamed(own("segmenter"), AUTHORS)
    for name in ("decoder.proj_patch", "decoder.proj_classes"):
        state[name] = state[name].T.contiguous()
    state |= {"encoder.head.weight": torch.zeros(10, WIDTH), "encoder.head.bias": torch.zeros(10)}
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": state, "n_cls": CLASSES}, path)
    model, info, report = convert_foreign(path)
    assert (report.dialect, report.unexpected) == ("segmenter", [])
    expected = own("segmenter", norm_eps=1e-5)
    expected.decoder.norm.eps = 1e-5
    assert_same(model, expected, 64, 64)
    assert model.arguments["pos_interp"] == "bilinear"
    assert (info.mean, info.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (info.protocol.window, info.protocol.stride) == ((64, 64), (42, 42))
    assert_converts(path, model, tmp_path / "model")
    assert "dialect segmenter" in capsys.readouterr().out


@pytest.mark.parametrize("decoder", ["segmenter", "linear"])
def test_a_checkpoint_of_mmsegmentation(tmp_path, decoder):
    model = own(decoder)
    state = renamed(model, PORT)
    filled = [name for name in state if "batch_norm" in name]
    for name in [*filled, "backbone.patch_embed.projection.bias"]:
        del state[name]  # the port has none
    path = tmp_path / "port.pth"
    meta = {"CLASSES": [f"c{i}" for i in range(CLASSES)]}
    torch.save({"state_dict": state, "meta": meta}, path)
    nn.init.zeros_(model.encoder.vit.patch_embed.proj.bias)
    if decoder == "linear":
        model.decoder.batch_norm = nn.Identity()
    found, info, report = convert_foreign(path)
    assert (report.dialect, report.unexpected) == ("mmseg", [])
    assert len(report.filled) == 1 + len(filled)
    assert_same(found, model, 64, 64)
    assert (info.mean, info.protocol.stride) == ((0.5,) * 3, (32, 32))
    assert (info.protocol.short_side, info.protocol.long_side) == (64, 256)


@pytest.mark.parametrize(
    ("dataset", "port", "crop", "stride", "sides"),
    [
        ("ade20k", False, 512, 512, (512, None)),
        ("cityscapes", False, 768, 512, (1024, None)),
        ("pascal_context", False, 480, 320, (520, None)),
        ("ade20k", True, 640, 608, (640, 2560)),
    ],
)
def test_published_tests_by_data_set(dataset, port, crop, stride, sides):
    test = segmenter_test((crop, crop), known_labels(dataset), port=port)
    assert (test.window, test.stride) == ((crop, crop), (stride, stride))
    assert (test.short_side, test.long_side) == sides
    assert test.fill_window is not port  # the authors enlarge images smaller than a window


@pytest.mark.parametrize(("num_classes", "name"), [(150, "ade20k"), (19, "cityscapes"), (7, None)])
def test_files_of_the_authors_name_no_classes(num_classes, name):
    found = published_labels(Translation("segmenter", {}, whole=True), {}, "segmenter", num_classes)
    assert found == (name and known_labels(name))


def test_labels_must_fit_the_checkpoint(tmp_path):
    torch.save({"model": renamed(own("segmenter"), AUTHORS)}, tmp_path / "x.pth")
    with pytest.raises(SetrError, match="has 5 classes, the labels given 150") as raised:
        convert_foreign(tmp_path / "x.pth", labels=known_labels("ade20k"))
    assert raised.value.code == USAGE


def test_a_cut_checkpoint_is_named(tmp_path):
    state = renamed(own("segmenter"), AUTHORS)
    del state["decoder.proj_dec.weight"]
    torch.save({"model": state}, tmp_path / "cut.pth")
    with pytest.raises(SetrError, match=r"decoder\.project\.weight is missing"):
        convert_foreign(tmp_path / "cut.pth")
