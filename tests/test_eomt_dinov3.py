"""EoMT on DINOv3: rotary positions beside queries, and its published layouts."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import setr
from setr.cli import main
from setr.errors import OK, USAGE, SetrError
from setr.labels import known_labels
from setr.weight_files.delta import _is_plain
from setr.weight_files.eomt import eomt_architecture
from setr.weight_files.foreign import convert_foreign
from setr.weight_files.naming import Translation
from setr.weights import load_weights
from tests.conftest import renamed
from tests.models import assert_converts, assert_same
from tests.test_eomt import written_out
from tests.test_segmenter import linear, norm, randomised

K, WIDTH, HEADS, QUERIES = 5, 64, 2, 6
TINY = {"embed_dim": WIDTH, "depth": 3, "num_heads": HEADS, "query_blocks": 2}
ENCODER = "vit_small_patch16_dinov3_qkvb"


def tiny(encoder: str = ENCODER, **arguments: object) -> setr.SETR:
    """An EoMT on a DINOv3 ViT of 3 blocks, of which 2 process the queries."""
    return setr.SETR(encoder=encoder, encoder_args={**TINY, **arguments}, decoder="eomt",
                     decoder_args={"num_queries": QUERIES}, num_classes=K, taps=(3,),
                     img_size=64)  # fmt: skip


def rotated(x: Tensor, h: int, w: int) -> Tensor:
    """Rotate the last h * w of the tokens (B, heads, N, d) by their place, as in DINOv3.

    A pair of channels, d/2 apart, turns by 2 pi times a coordinate (-1 to 1, rows then columns)
    over a period, of 100 ** (4 i / d).
    """
    d = x.shape[-1]
    rows = ((torch.arange(h, dtype=x.dtype) + 0.5) / h * 2 - 1).repeat_interleave(w)
    cols = ((torch.arange(w, dtype=x.dtype) + 0.5) / w * 2 - 1).repeat(h)
    periods = 100 ** (torch.arange(d // 4, dtype=x.dtype) * 4 / d)
    turn = 2 * math.pi * torch.cat([rows[:, None] / periods, cols[:, None] / periods], dim=1)
    still, moved = x[..., : -h * w, :], x[..., -h * w :, :]
    a, b = moved.chunk(2, dim=-1)
    moved = torch.cat([a * turn.cos() - b * turn.sin(), b * turn.cos() + a * turn.sin()], dim=-1)
    return torch.cat([still, moved], dim=2)


def block(
    x: Tensor, p: dict[str, Tensor], name: str, grid: tuple[int, int], allowed: Tensor | None = None
) -> Tensor:
    """A block of DINOv3; `allowed` (B, N, N) limits the attention."""
    B, N, C = x.shape
    given = norm(x, p, f"{name}norm1", 1e-5)
    q_bias, v_bias = p[f"{name}attn.q_bias"], p[f"{name}attn.v_bias"]
    bias = torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])  # keys have none
    qkv = given @ p[f"{name}attn.qkv.weight"].T + bias
    q, k, v = qkv.view(B, N, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)
    scores = rotated(q, *grid) @ rotated(k, *grid).mT / (C // HEADS) ** 0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed[:, None], -math.inf)
    joined = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, N, C)
    x = x + p[f"{name}gamma_1"] * linear(joined, p, f"{name}attn.proj")
    hidden = F.gelu(linear(norm(x, p, f"{name}norm2", 1e-5), p, f"{name}mlp.fc1"))
    return x + p[f"{name}gamma_2"] * linear(hidden, p, f"{name}mlp.fc2")


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("masked", [False, True])
def test_predictions_equal_plain_operations(masked, size):
    torch.manual_seed(0)
    model = randomised(tiny()).double()
    images = torch.randn(2, 3, *size, dtype=torch.double)
    if masked:
        model.set_progress(0.0)
    with torch.no_grad():
        output = model(images, with_aux=True)
        expected = written_out(model, images, masked=masked, block=block, eps=1e-5)
    for stage, (masks, classes) in zip(output.stages, expected, strict=True):
        for ours, theirs in ((stage.masks, masks), (stage.classes, classes)):
            apart = float((ours - theirs).abs().max() / theirs.abs().max())
            assert apart < 2e-5  # the encoder's rotary angles are in fp32


HEAD = [(r"^decoder\.queries$", "q.weight"), (r"^decoder\.", "")]
BLOCKS = [
    (r"gamma_(\d)$", r"layer_scale\1.lambda1"),
    (r"attn\.proj\.", "attention.o_proj."),
    (r"attn\.([qv])_bias$", r"attention.\1_proj.bias"),
    (r"attn\.qkv\.", "attention.qkv."),
    (r"mlp\.fc1\.", "mlp.up_proj."),
    (r"mlp\.fc2\.", "mlp.down_proj."),
    (r"patch_embed\.proj\.", "patch_embeddings."),
    ("reg_token", "register_tokens"),
]
LAYOUTS = {
    "authors": [
        (r"^encoder\.vit\.(patch_embed|cls_token|reg_token)",
         lambda m: "network.encoder.backbone.patch_embed." + m[1]),
        (r"patch_embed\.patch_embed\.proj", "patch_embed.patch_embeddings"),
        (r"^encoder\.vit\.", "network.encoder.backbone."),
        (r"^decoder\.queries$", "network.q.weight"), (r"^decoder\.", "network."), *BLOCKS,
    ],
    "transformers": [
        (r"^encoder\.vit\.(cls_token|reg_token)", r"embeddings.\1"),
        (r"^encoder\.vit\.patch_embed\.proj\.", "embeddings.patch_embeddings."),
        (r"^encoder\.vit\.norm\.", "layernorm."), (r"^encoder\.vit\.blocks\.", "layers."),
        (r"^decoder\.queries$", "query.weight"), (r"^decoder\.class_head\.", "class_predictor."),
        (r"^decoder\.upscale\.(\d)\.norm\.", r"upscale_block.block.\1.layernorm2d."),
        (r"^decoder\.upscale\.(\d)\.", r"upscale_block.block.\1."),
        (r"^decoder\.mask_head\.(\d)\.", lambda m: f"mask_head.fc{int(m[1]) // 2 + 1}."), *BLOCKS,
    ],
    "meta": [  # DINOv3 itself, as Meta publishes it
        (r"^encoder\.vit\.", ""), ("reg_token", "storage_tokens"),
        (r"gamma_(\d)$", r"ls\1.gamma"),
    ],
    "huggingface": [  # DINOv3 itself, as transformers has it
        (r"^encoder\.vit\.(cls_token|reg_token)", r"embeddings.\1"),
        (r"^encoder\.vit\.patch_embed\.proj\.", "embeddings.patch_embeddings."),
        (r"^encoder\.vit\.blocks\.", "layer."), (r"^encoder\.vit\.", ""), *BLOCKS,
    ],
    "timm": [(r"^encoder\.vit\.", "")],
}  # fmt: skip


def in_layout(state: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """A state dict with our names under those of a layout."""
    found = renamed(state, LAYOUTS[layout])
    for name in [name for name in found if ".attention.qkv." in name]:
        for part, value in zip("qkv", found.pop(name).chunk(3), strict=True):
            found[name.replace("qkv", f"{part}_proj")] = value.clone()
    for name in [n for n in found if layout == "meta" and n.endswith("q_bias")]:
        stem = name.removesuffix("q_bias")
        parts = [found.pop(name), torch.full((WIDTH,), 9.0), found.pop(f"{stem}v_bias")]
        found |= {f"{stem}qkv.bias": torch.cat(parts), f"{stem}qkv.bias_mask": torch.zeros(192)}
    return found


def encoder_of(model: setr.SETR) -> dict[str, Tensor]:
    return {n: v for n, v in model.state_dict().items() if n.startswith("encoder.")}


@pytest.fixture
def files(tmp_path):
    """A model, its file of differences, and DINOv3's weights as Meta publishes them."""
    base, model = randomised(tiny()), randomised(tiny())
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    own, before = model.state_dict(), base.state_dict()
    delta = {n: v - before[n] if n.startswith("encoder.") else v for n, v in own.items()}
    extra = {"network.attn_mask_probs": torch.zeros(2),
             "network.encoder.pixel_mean": torch.zeros(1, 3, 1, 1),
             "network.encoder.pixel_std": torch.zeros(1, 3, 1, 1),
             "criterion.empty_weight": torch.ones(K + 1)}  # fmt: skip
    torch.save(in_layout(delta, "authors") | extra, tmp_path / "delta.bin")
    torch.save(in_layout(own, "authors") | extra, tmp_path / "plain.ckpt")
    for layout in ("meta", "huggingface", "timm"):
        torch.save(in_layout(encoder_of(base), layout), tmp_path / f"{layout}.pth")
    return model, tmp_path


@pytest.mark.parametrize("layout", ["meta", "huggingface", "timm"])
def test_differences_are_added_to_dinov3(files, layout):
    model, folder = files
    found, info, report = convert_foreign(
        folder / "delta.bin", num_heads=HEADS, pretrained=str(folder / f"{layout}.pth")
    )
    assert (report.dialect, report.unexpected) == ("eomt", [])
    assert report.loaded == list(found.state_dict())
    assert_same(found, model, 64, 48, rtol=1e-4, atol=1e-4)
    assert info.protocol.window == info.protocol.stride == (512, 512)
    assert info.pretrained == f"{layout}.pth"


def test_plain_weights_of_the_authors_code_are_not_added(files):
    """A training run with their code writes plain weights under the same names (their issue 55)."""
    model, folder = files
    found, _, _ = convert_foreign(
        folder / "plain.ckpt", num_heads=HEADS, pretrained=str(folder / "meta.pth")
    )
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=0, atol=0)


def test_a_model_directory_of_both_files(files, capsys):
    model, folder = files
    command = ["convert", str(folder / "delta.bin"), "--num-heads", str(HEADS), "--pretrained",
               str(folder / "meta.pth"), "--img-size", "64", "64", "-o"]  # fmt: skip
    assert main([*command, str(folder / "model")]) == OK
    assert "dialect eomt" in capsys.readouterr().out
    again = setr.load(folder / "model", device="cpu").model.eval()
    assert_same(again, model, 50, 70, rtol=1e-4, atol=1e-4)


def test_differences_are_never_taken_for_weights(files, capsys):
    model, folder = files
    file = folder / "delta.bin"
    before = {n: v.clone() for n, v in model.state_dict().items()}
    for load in (
        lambda: convert_foreign(file, num_heads=HEADS),
        lambda: setr.load(file),
        lambda: load_weights(model, file, partial=True, new_head=True),
    ):
        with pytest.raises(SetrError, match=r"holds .*differences .*DINOv3") as raised:
            load()
        assert raised.value.code == USAGE
        assert "--pretrained lvd1689m" in str(raised.value)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    for options in ([], ["--model", "eomt_small", "--num-classes", "5"]):
        assert main(["convert", str(file), *options, "-o", str(folder / "x")]) == USAGE
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (folder / "x").exists()


def test_weights_that_do_not_fit_are_named(files):
    model, folder = files
    state = torch.load(folder / "timm.pth")
    torch.save({n: v for n, v in state.items() if "_bias" not in n}, folder / "unbiased.pth")
    other = tiny(embed_dim=32)
    torch.save(in_layout(encoder_of(other), "timm"), folder / "narrow.pth")
    torch.save(in_layout(model.state_dict(), "authors"), folder / "eomt.pth")
    save_file(in_layout(model.state_dict(), "transformers"), folder / "model.safetensors")
    for name, message in (
        ("unbiased.pth", r"has no blocks\.0\.attn\.q_bias that fits .*_qkvb.* lvd1689m"),
        ("narrow.pth", r"narrow\.pth: has no cls_token that fits"),
        ("eomt.pth", "is a whole model"),
        ("model.safetensors", "is a whole model"),
        ("nothing.pth", "no such weight file"),
    ):
        with pytest.raises(SetrError, match=message):
            convert_foreign(folder / "delta.bin", num_heads=HEADS, pretrained=str(folder / name))
    with pytest.raises(SetrError, match="leave it out"):
        convert_foreign(folder / "delta.bin", pretrained=str(folder / "meta.pth"), encoder=ENCODER)


def published(folder, model: setr.SETR, **settings: object) -> None:
    """A folder of transformers' EomtDinov3ForUniversalSegmentation."""
    state = in_layout(model.state_dict(), "transformers")
    state |= {"attn_mask_probs": torch.zeros(model.encoder.num_query_blocks),
              "criterion.empty_weight": torch.ones(K + 1)}  # fmt: skip
    save_file(state, folder / "model.safetensors")
    config = {"model_type": "eomt_dinov3", "num_attention_heads": HEADS, "layer_norm_eps": 1e-5,
              "image_size": 96, **settings}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    size = {"shortest_edge": 96, "longest_edge": None}
    values = {"size": size, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def test_a_folder_of_transformers(tmp_path, capsys):
    model = randomised(tiny(query_blocks=1, norm_eps=1e-6))
    names = {str(i): f"kind {i}" for i in range(K)}
    published(tmp_path, model, layer_norm_eps=1e-6, id2label=names)
    found, info, report = convert_foreign(tmp_path)
    assert (report.dialect, report.unexpected, report.missing) == ("eomt", [], [])
    assert found.arguments["encoder"] == ENCODER
    assert found.encoder.num_query_blocks == 1
    assert {found.encoder.vit.norm.eps, found.encoder.vit.blocks[0].norm1.eps} == {1e-6}
    assert info.protocol.window == (96, 96)
    assert (info.mean, info.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert info.labels.classes == tuple(names.values())
    assert_same(found, model, 64, 80)
    assert_converts(tmp_path, model, tmp_path / "model")


def test_a_file_of_transformers_alone(tmp_path):
    model = randomised(tiny())
    published(tmp_path, model)
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).unlink()
    found, info, _ = convert_foreign(tmp_path / "model.safetensors", num_heads=HEADS)
    assert_same(found, model, 64, 64)
    assert info.protocol.window == (512, 512)
    with pytest.raises(SetrError, match=r"pretrained .*is a whole model; leave it out"):
        convert_foreign(tmp_path / "model.safetensors", pretrained="lvd1689m")


def test_gated_encoders_of_transformers_are_refused(tmp_path):
    published(tmp_path, tiny())
    state = in_layout(tiny().state_dict(), "transformers")
    state["layers.0.mlp.gate_proj.weight"] = torch.zeros(4 * WIDTH, WIDTH)
    torch.save(state, tmp_path / "gated.pth")
    with pytest.raises(SetrError, match=r"gated DINOv3 .*ViT-S, ViT-B and ViT-L"):
        convert_foreign(tmp_path / "gated.pth")


@pytest.mark.parametrize(
    ("width", "depth", "size", "blocks"),
    [(384, 12, "small", 3), (768, 12, "base", 3), (1024, 24, "large", 4)],
)
def test_the_size_follows_from_the_tensors(width, depth, size, blocks):
    with torch.device("meta"):
        model = setr.create_model(f"eomt_{size}", encoder=f"vit_{size}_patch16_dinov3_qkvb",
                                  num_classes=150, img_size=512)  # fmt: skip
    assert (model.encoder.channels, len(model.encoder.vit.blocks)) == (width, depth)
    found = eomt_architecture(Translation("eomt", model.state_dict(), whole=True))
    assert found["encoder"] == f"vit_{size}_patch16_dinov3_qkvb"
    assert found["encoder_args"] == {"patch_size": 16, "query_blocks": blocks}
    assert (found["img_size"], found["decoder_args"]) == (512, {"num_queries": 100})


def test_the_number_of_classes_names_ade20k(files):
    _, folder = files
    state = torch.load(folder / "delta.bin")
    state["network.class_head.weight"] = torch.randn(151, WIDTH)
    state["network.class_head.bias"] = torch.randn(151)
    torch.save(state, folder / "ade.bin")
    _, info, _ = convert_foreign(
        folder / "ade.bin", num_heads=HEADS, pretrained=str(folder / "meta.pth")
    )
    assert info.labels == known_labels("ade20k")


@pytest.mark.parametrize(
    ("width", "depth", "size"), [(384, 12, "small_plus"), (1280, 32, "huge_plus")]
)
def test_the_size_of_a_gated_encoder_follows_from_its_tensors(width, depth, size):
    tensors = {
        "encoder.vit.cls_token": torch.empty(1, 1, width, device="meta"),
        "encoder.vit.patch_embed.proj.weight": torch.empty(width, 3, 16, 16, device="meta"),
        "encoder.vit.blocks.0.mlp.fc1_g.weight": torch.empty(1, device="meta"),
        f"encoder.vit.blocks.{depth - 1}.norm1.weight": torch.empty(width, device="meta"),
        "decoder.class_head.weight": torch.empty(151, width, device="meta"),
        "decoder.queries": torch.empty(100, width, device="meta"),
    }
    found = eomt_architecture(Translation("eomt", tensors, whole=True))
    assert found["encoder"] == f"vit_{size}_patch16_dinov3"
    assert "embed_dim" not in found["encoder_args"]


def test_weights_that_training_moved_far_are_no_differences():
    base = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    other = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    assert _is_plain({"w": base["w"] + 0.5 * other}, base)
    assert not _is_plain({"w": 0.5 * other}, base)
