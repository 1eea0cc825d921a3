"""Facts of the paper's encoder, and of every timm family that may take its place."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from setr._timm import timm
from setr.encoder import Encoder
from setr.errors import USAGE, SetrError
from setr.hybrid import ResNetEncoder
from setr.layers.positions import resample_grid
from setr.layers.rotary import Rotary
from setr.model import SETR, create_model
from tests.conftest import tiny_model
from tests.models import assert_pads_with_zeros

SIZE = {"embed_dim": 64, "depth": 3, "num_heads": 4}
VIT = "vit_base_patch16_384"


def tiny_vit(**arguments: object) -> Encoder:
    torch.manual_seed(0)
    settings = {"taps": (1, 3), "img_size": 64, **SIZE, **arguments}
    return Encoder(VIT, **settings).eval()  # type: ignore[arg-type]


def tokens_after(encoder: Encoder, images: Tensor) -> Tensor:
    """The sequence that enters the first block."""
    return encoder.vit._pos_embed(encoder.vit.patch_embed(images))


# --- the sequence ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("H", "W"), [(64, 64), (64, 96), (512, 512)])
def test_sequence_length_is_one_token_per_16_by_16_pixels(H, W):
    tokens = tokens_after(tiny_vit(), torch.zeros(1, 3, H, W))
    assert tokens.shape[1] - 1 == H * W // 256  # one class token besides


def test_maps_have_the_real_shape_and_no_class_token():
    maps = tiny_vit()(torch.zeros(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(2, 64, 4, 6)] * 2


def test_odd_sizes_are_padded_with_zeros_at_the_bottom_and_right():
    assert_pads_with_zeros(tiny_vit())


def test_position_embeddings_are_added_per_location():
    encoder, images = tiny_vit(), torch.randn(1, 3, 64, 64)
    before = tokens_after(encoder, images)
    with torch.no_grad():
        encoder.vit.pos_embed[:, 1 + 5] += 1.0  # the sixth patch
    changed = (tokens_after(encoder, images) - before).abs().amax(dim=(0, 2)) > 0
    assert changed.nonzero().flatten().tolist() == [6]


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_own_grid_is_not_resampled(mode):
    grid = torch.randn(1, 12, 8)
    assert torch.equal(resample_grid(grid, (3, 4), (3, 4), mode=mode), grid)


@pytest.mark.parametrize("new", [(8, 8), (3, 7), (2, 2)])
def test_bicubic_equals_timm(new):
    grid = torch.randn(1, 24, 8)
    expected = timm.layers.resample_abs_pos_embed(
        grid, new_size=new, old_size=(4, 6), num_prefix_tokens=0
    )
    torch.testing.assert_close(resample_grid(grid, (4, 6), new, mode="bicubic"), expected)


def test_resampling_keeps_a_linear_ramp_and_double_precision():
    ramp = torch.arange(6, dtype=torch.float64).repeat(4, 1).reshape(1, 24, 1)
    wide = resample_grid(ramp, (4, 6), (4, 12), mode="bilinear")
    assert wide.dtype == torch.float64
    inner = wide.reshape(4, 12)[0, 1:-1]
    torch.testing.assert_close(inner.diff(), torch.full((9,), 0.5, dtype=torch.float64))


def test_dropped_prefix_tokens_leave_patches_only():
    tokens = tokens_after(tiny_vit(prefix_tokens="drop"), torch.zeros(1, 3, 64, 64))
    assert tokens.shape[1] == 16


def test_dropped_prefix_tokens_are_not_trained():
    """DDP waits for the gradient of every parameter that is."""
    encoder = tiny_vit(prefix_tokens="drop")
    for count in (None, 0, 1, -1):
        if count is not None:
            encoder.freeze(count)
        encoder.zero_grad()
        maps = encoder(torch.randn(1, 3, 64, 64, requires_grad=True))
        sum(x.square().sum() for x in maps).backward()
        trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
        assert trained == {name for name, p in encoder.named_parameters() if p.grad is not None}
        assert ("vit.pos_embed" in trained) == (not count)


# --- overlapping patches --------------------------------------------------------------------------


def test_overlapping_patches_are_the_plain_ones_at_finer_places():
    plain, fine = tiny_vit(), tiny_vit(patch_stride=8)
    images = torch.randn(1, 3, 64, 96)
    tokens = fine.vit.patch_embed(images)  # (B, h, w, C); token i covers pixels 8i - 4 to 8i + 12
    assert tokens.shape[1:3] == (8, 12)
    shifted = plain.vit.patch_embed(F.pad(images, (4, 12, 4, 12)))
    torch.testing.assert_close(tokens[:, ::2, ::2], shifted[:, :4, :6])
    assert [tuple(m.shape) for m in fine(images[..., :50, :70])] == [(1, 64, 7, 9)] * 2


def test_a_stride_of_the_patch_changes_nothing_and_weights_fit_any_stride():
    plain, same, fine = tiny_vit(), tiny_vit(patch_stride=16), tiny_vit(patch_stride=10)
    images = torch.randn(1, 3, 50, 70)
    assert all(map(torch.equal, plain(images), same(images)))
    fine.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "eva02_tiny_patch14_224"])
def test_overlapping_patches_of_other_families(name):
    encoder = Encoder(name, taps=(1, 2), patch_stride=8, depth=2, img_size=112)
    maps = encoder(torch.zeros(1, 3, 64, 80))
    assert [tuple(m.shape[-2:]) for m in maps] == [(8, 10)] * 2


@pytest.mark.parametrize("normalized", ["separate", "max", "min"])
@pytest.mark.parametrize("indexing", ["ij", "xy"])
def test_dinov3s_positions_are_timms_to_the_bit(normalized, indexing):
    kinds = {"normalize_coords": normalized, "grid_indexing": indexing, "grid_offset": 0.3}
    theirs, ours = (timm.layers.RotaryEmbeddingDinoV3(64, **kinds) for _ in range(2))
    ours.__class__ = Rotary
    for grid in ((1, 1), (3, 7), (14, 14), (37, 91)):
        assert torch.equal(ours.get_embed(grid), theirs.get_embed(grid))


def test_dinov3s_positions_change_at_random_as_timms_do():
    theirs, ours = (timm.layers.RotaryEmbeddingDinoV3(64, rescale_coords=2.0) for _ in range(2))
    ours.__class__ = Rotary
    found = []
    for rope in (theirs, ours):
        torch.manual_seed(0)
        found.append(rope.train().get_embed((3, 7)))
    assert torch.equal(*found)
    assert torch.equal(ours.eval().get_embed((3, 7)), theirs.eval().get_embed((3, 7)))


def test_an_encoder_of_dinov3_can_be_stored_with_its_positions():
    encoder = Encoder("vit_small_patch16_dinov3", taps=(1,), depth=1).eval()
    assert type(encoder.vit.rope) is Rotary
    x = torch.rand(1, 3, 32, 48)
    for copied in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(copied(x)[0], encoder(x)[0])


def test_strides_that_are_refused():
    for stride in (7, 18, 0):
        with pytest.raises(SetrError, match=r"patches of 16 px; give 16, 14, 12, 10, 8 or"):
            tiny_vit(patch_stride=stride)
    with pytest.raises(SetrError, match="ResNet in place of patches"):
        create_model("hybrid_base", num_classes=2, patch_stride=8)
    with pytest.raises(SetrError, match="merge_tokens: resnet101c has none of them"):
        create_model("fcn_r101", num_classes=2, patch_stride=8)


# --- the block (paper eq. 1 to 3) -----------------------------------------------------------------


def explicit_attention(block: torch.nn.Module, z: Tensor, heads: int) -> Tensor:
    """MSA(Z) of eq. 1 and 2: softmax(Q K^T / sqrt(d)) V per head, concatenated, times W_O."""
    width = z.shape[-1]
    d = width // heads
    weights = block.attn.qkv.weight.chunk(3)
    biases = block.attn.qkv.bias.chunk(3)
    q, k, v = (z @ w.T + b for w, b in zip(weights, biases, strict=True))
    outputs = []
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / d**0.5
        outputs.append(scores.softmax(dim=-1) @ v[..., part])
    return torch.cat(outputs, dim=-1) @ block.attn.proj.weight.T + block.attn.proj.bias


def test_block_is_the_papers_formula():
    """Z_l = MSA(LN(Z)) + Z, then MLP(LN(·)) + ·: norm before each part, residual around it."""
    encoder = tiny_vit().double()
    block = encoder.vit.blocks[0]
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.3)
    z = torch.randn(2, 17, 64, dtype=torch.float64)
    attended = z + explicit_attention(block, block.norm1(z), SIZE["num_heads"])
    hidden = F.gelu(block.mlp.fc1(block.norm2(attended)))
    torch.testing.assert_close(block(z), attended + block.mlp.fc2(hidden))


def test_norms_use_the_papers_epsilon_and_the_last_norm_is_gone():
    encoder = tiny_vit()
    assert encoder.vit.blocks[0].norm1.eps == 1e-6
    assert isinstance(encoder.vit.norm, torch.nn.Identity)


def test_tapped_maps_are_the_blocks_outputs():
    encoder, images = tiny_vit(), torch.randn(1, 3, 64, 64)
    tokens = tokens_after(encoder, images)
    maps = encoder(images)
    for i, block in enumerate(encoder.vit.blocks):
        tokens = block(tokens)
        if i + 1 in encoder.taps:
            expected = tokens[:, 1:].transpose(1, 2).reshape(1, 64, 4, 4)
            torch.testing.assert_close(maps[encoder.taps.index(i + 1)], expected)


def test_drop_path_grows_with_depth_and_rests_in_eval():
    encoder = tiny_vit(drop_path_rate=0.5, taps=(3,))
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.vit.blocks]
    assert rates == [0.0, 0.25, 0.5]
    images = torch.randn(4, 3, 64, 64)
    assert torch.equal(encoder(images)[0], encoder(images)[0])
    encoder.train()
    assert not torch.equal(encoder(images)[0], encoder(images)[0])


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_gradient_checkpointing_gives_identical_gradients(kind):
    torch.manual_seed(0)
    if kind == "vit":
        model: SETR = tiny_model("mla")
    else:
        model = SETR(
            encoder="resnet10t",
            decoder="semantic_fpn",
            num_classes=2,
            taps=(1, 2, 3, 4),
            neck_args={"channels": 8},
            decoder_args={"channels": 8, "dropout": 0.0},
        )
    model.train()
    images = torch.randn(2, 3, 64, 64)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    grads = []
    for enable in (False, True):
        model.load_state_dict(state)  # batch statistics moved in the first pass
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).square().mean().backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        assert torch.equal(grad, grads[1][name]), name


# --- freezing and depth ---------------------------------------------------------------------------


def free_parts(encoder: torch.nn.Module) -> set[str]:
    return {n.split(".")[2] if "blocks" in n else n.split(".")[1]
            for n, p in encoder.named_parameters() if p.requires_grad}  # fmt: skip


def test_freezing_all_none_and_the_first_blocks():
    encoder = tiny_vit()
    encoder.freeze(0)
    assert free_parts(encoder) == {"cls_token", "pos_embed", "patch_embed", "0", "1", "2"}
    encoder.freeze(1)
    assert free_parts(encoder) == {"1", "2"}
    encoder.freeze(-1)
    assert free_parts(encoder) == set()
    encoder.freeze(0)
    assert all(p.requires_grad for p in encoder.parameters())
    assert not any(m.training for m in encoder.modules())
    assert all(m.training for m in encoder.train().modules())
    with pytest.raises(SetrError, match="freeze 4: this encoder has 3 blocks"):
        encoder.freeze(4)


def test_frozen_blocks_stay_in_eval_mode():
    encoder = tiny_vit(drop_path_rate=0.5)
    encoder.freeze(2)
    encoder.train()
    assert encoder.training
    assert [block.training for block in encoder.vit.blocks] == [False, False, True]
    assert not encoder.eval().vit.blocks[2].training


def test_frozen_batch_norms_keep_their_statistics():
    torch.manual_seed(0)
    encoder = ResNetEncoder("resnet10t", taps=(1, 2, 3, 4))
    encoder.freeze(3)
    encoder.train()
    before = {k: v.clone() for k, v in encoder.state_dict().items() if "running_mean" in k}
    encoder(torch.randn(2, 3, 64, 64))
    moved = {k for k, v in encoder.state_dict().items() if k in before and not v.equal(before[k])}
    assert moved
    assert all(name.startswith("net.layer4.") for name in moved)


def test_layer_depth_counts_from_the_heads():
    model = tiny_model("pup")
    depths = {n: model.layer_depth(n) for n, _ in model.named_parameters()}
    assert depths["decoder.classifier.weight"] == depths["aux_heads.0.norm.weight"] == 0
    assert depths["encoder.vit.blocks.1.norm1.weight"] == 1
    assert depths["encoder.vit.blocks.0.norm1.weight"] == 2
    assert depths["encoder.vit.pos_embed"] == 3
    with torch.device("meta"):
        baseline = create_model("fcn_r101", num_classes=2)
    assert baseline.layer_depth("encoder.net.layer4.2.conv1.weight") == 1
    assert baseline.layer_depth("encoder.net.layer1.0.conv1.weight") == 4
    assert baseline.layer_depth("encoder.net.conv1.0.weight") == 5


def test_blocks_of_a_convolutional_stem_are_no_transformer_blocks():
    with torch.device("meta"):
        encoder = Encoder("vit_base_r50_s16_224", taps=(2,), depth=2)
    depths = {n: encoder.layer_depth(n) for n, _ in encoder.named_parameters()}
    assert {d for n, d in depths.items() if ".patch_embed." in n} == {3}
    assert depths["vit.blocks.1.norm1.weight"] == 1


# --- every family of timm -------------------------------------------------------------------------

FAMILIES = {
    "vit_small_patch14_dinov2": {},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_small_patch16_dinov3": {},
    "vit_tiny_patch16_dinov3_qkvb": {},
    "eva02_tiny_patch14_224": {},
    "vit_base_patch16_siglip_224": {},
    "vit_base_patch16_siglip_gap_224": {},
    "deit3_small_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "vit_tiny_patch16_384": {},
    "vit_base_patch16_clip_224": {},
    "beit_base_patch16_224": {},
    "beitv2_base_patch16_224": {},
    "samvit_base_patch16": {},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_any_timm_vit_trains_on_a_non_square_size(name):
    """Build at depth 2, run a size that is no square and no multiple, take one step."""
    torch.manual_seed(0)
    model = create_model(
        "setr_mla_tiny", num_classes=3, encoder=name, channels=16, encoder_args={"depth": 2}
    )
    images = torch.randn(2, 3, 60, 90)
    assert model.eval()(images).shape == (2, 3, 60, 90)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    output = model(images, with_aux=True)
    sum(x.square().mean() for x in (output.logits, *output.aux)).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without  # data-parallel wrappers would hang on them
    optimizer.step()
    assert not torch.equal(model.encoder.vit.patch_embed.proj.weight,
                           before["encoder.vit.patch_embed.proj.weight"])  # fmt: skip


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("vit_base_patch14_dinov4", "nearest: vit_base_patch14_dinov2"),
        ("timm/vit_small_patch16_dinov3.lvd1689m", "nearest: vit_small_patch16_dinov3"),
        ("hf-hub:timm/vit_tiny_patch16_224", "nearest: .*vit_tiny_patch16_224"),
    ],
)
def test_an_unknown_encoder_is_answered_with_its_neighbours(name, near):
    with pytest.raises(SetrError, match=near):
        Encoder(name, taps=(1,))


def test_pixels_that_nobody_normalised_are_refused():
    with pytest.raises(RuntimeError):
        tiny_vit()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_errors_name_the_fix():
    with pytest.raises(SetrError, match=r"'vit_bse' is not a timm model; nearest"):
        Encoder("vit_bse", taps=(1,))
    with pytest.raises(SetrError, match="is not a plain ViT"):
        Encoder("swin_tiny_patch4_window7_224", taps=(1,))
    with pytest.raises(SetrError, match=r"taps \(4,\): blocks are numbered 1 to 3"):
        tiny_vit(taps=(4,))
    with pytest.raises(SetrError, match=r"cannot be built with .*num_heads 5 .*divisible"):
        tiny_vit(num_heads=5)
    with pytest.raises(SetrError, match=r"cannot be built with .*unexpected keyword.*'drop_pat'"):
        tiny_vit(drop_pat=0.1)
    with pytest.raises(SetrError, match="prefix_tokens 'dropped': give keep or drop"):
        tiny_model("pup", prefix_tokens="dropped")
    with pytest.raises(SetrError, match="need an absolute position embedding"):
        Encoder("eva02_tiny_patch14_224", taps=(1,), pos_interp="bilinear")
    with pytest.raises(SetrError, match="is not a timm ResNet"):
        ResNetEncoder("vgg16", taps=(1,))
    for name in ("resnetv2_50", "resnet51q"):
        with torch.device("meta"), pytest.raises(SetrError, match="not called layer1") as caught:
            ResNetEncoder(name, taps=(1,))
        assert caught.value.code == USAGE


@pytest.mark.parametrize("new", [(3, 5), (9, 11)])
def test_bilinear_is_that_of_the_2021_code(new):
    """Without antialiasing, also where the image is smaller than the grid was made for."""
    grid = torch.randn(1, 6 * 8, 4)
    maps = grid.reshape(1, 6, 8, 4).permute(0, 3, 1, 2)
    expected = F.interpolate(maps, size=new, mode="bilinear", align_corners=False)
    ours = resample_grid(grid, (6, 8), new, mode="bilinear")
    torch.testing.assert_close(ours, expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("name", [VIT, "deit_tiny_distilled_patch16_224"])
def test_kept_prefix_tokens_have_their_positions_in_the_2021_code_too(name):
    torch.manual_seed(0)
    arguments = {"taps": (1,), "img_size": 64, "depth": 1}
    ours, theirs = (Encoder(name, pos_interp=m, **arguments) for m in ("bilinear", "bicubic"))
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 64, 64)  # the grid's own size: nothing is resampled
    torch.testing.assert_close(
        tokens_after(ours.eval(), images), tokens_after(theirs.eval(), images)
    )


def test_images_are_embedded_exactly_under_autocast():
    embed, images = tiny_vit().vit.patch_embed, torch.randn(2, 3, 64, 48)
    exact = embed(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(embed(images), exact)
        assert embed(images.bfloat16()).dtype == torch.float32
    rounded = copy.deepcopy(embed).bfloat16()  # a model in bf16 has its own type
    assert rounded(images).dtype == torch.bfloat16


def test_the_resnet_of_a_hybrid_stays_in_autocast():
    model = create_model(
        "hybrid_base", num_classes=3, img_size=64, resnet="resnet18", taps=(1, 2), channels=16,
        encoder_args={"depth": 2, "embed_dim": 64, "num_heads": 2},
    ).eval()  # fmt: skip
    with torch.autocast("cpu", torch.bfloat16):
        assert model.encoder.vit.patch_embed(torch.randn(1, 3, 64, 64)).dtype == torch.bfloat16


def test_images_smaller_than_a_patch_are_refused():
    with pytest.raises(SetrError, match=r"img_size 8: .* patches of 16 pixels") as caught:
        tiny_vit(img_size=8)
    assert caught.value.code == USAGE


def test_compiled_for_images_of_several_sizes():
    """torch's own gradient of an antialiased resize compiles for one size only."""
    torch.manual_seed(0)
    encoder = Encoder("vit_tiny_patch16_224", taps=(1,), embed_dim=16, depth=1, num_heads=1)
    torch._dynamo.reset()
    compiled = torch.compile(encoder, backend="aot_eager")
    for size in ((64, 48), (96, 80), (80, 112)):
        images = torch.randn(1, 3, *size)
        gradients = []
        for call in (encoder, compiled):
            encoder.zero_grad()
            maps = call(images)[0]
            maps.square().sum().backward()
            gradients.append((maps.detach(), encoder.vit.pos_embed.grad))
        for found, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
