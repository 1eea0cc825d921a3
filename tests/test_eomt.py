"""EoMT: queries in the encoder's last blocks, its heads, its loss, and its published layouts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import setr
from setr import mask_loss
from setr.errors import USAGE, SetrError
from setr.exporting.graphs import quiet
from setr.labels import IGNORE, known_labels
from setr.layers.mask_classifier import MaskClassifier, MaskOutput, Masks
from setr.lora import add_lora
from setr.mask_loss import mask_weight
from setr.training.build import require_buildable
from setr.transforms import base_scale
from setr.weight_files.foreign import convert_foreign
from setr.weights import load_weights
from tests.conftest import renamed
from tests.models import assert_converts, assert_learns, assert_same
from tests.test_segmenter import attended, linear, norm, randomised

K, WIDTH, QUERIES, PREFIX = 5, 32, 6, 5
TINY = {"embed_dim": WIDTH, "depth": 3, "num_heads": 2}


def tiny(**arguments: object) -> setr.SETR:
    """An EoMT on a DINOv2 ViT of 3 blocks, of which 2 process the queries."""
    return setr.SETR(
        encoder="vit_small_patch14_reg4_dinov2",
        encoder_args={**TINY, "patch_size": 16, "query_blocks": 2, **arguments},
        decoder="eomt",
        decoder_args={"num_queries": QUERIES},
        num_classes=K,
        taps=(3,),
        img_size=64,
    )


def block(
    x: Tensor, p: dict[str, Tensor], name: str, _: tuple[int, int], allowed: Tensor | None = None
) -> Tensor:
    return attended(x, p, name, heads=2, eps=1e-6, allowed=allowed)


def predicted(
    tokens: Tensor, p: dict[str, Tensor], grid: tuple[int, int], eps: float
) -> tuple[Tensor, Tensor]:
    """Masks (B, Q, 4h, 4w) and classes (B, Q, K + 1)."""
    x = norm(tokens, p, "encoder.vit.norm", eps)
    queries, patches = x[:, :QUERIES], x[:, QUERIES + PREFIX :]
    classes = linear(queries, p, "decoder.class_head")
    for i in (0, 2, 4):
        queries = linear(queries, p, f"decoder.mask_head.{i}")
        queries = F.gelu(queries) if i < 4 else queries
    maps = patches.mT.unflatten(2, grid)
    for i in (0, 1):
        up = f"decoder.upscale.{i}."
        maps = F.conv_transpose2d(maps, p[up + "conv1.weight"], p[up + "conv1.bias"], stride=2)
        maps = F.conv2d(F.gelu(maps), p[up + "conv2.weight"], padding=1, groups=maps.shape[1])
        maps = norm(maps.permute(0, 2, 3, 1), p, up + "norm", 1e-6).permute(0, 3, 1, 2)
    return torch.einsum("bqc,bchw->bqhw", queries, maps), classes


def written_out(
    model: setr.SETR,
    images: Tensor,
    *,
    masked: bool,
    block: Callable[..., Tensor] = block,
    eps: float = 1e-6,
) -> list[tuple[Tensor, Tensor]]:
    """The predictions before each query block and after the last, in plain operations."""
    p = model.state_dict()
    stem = "encoder.vit.patch_embed.proj."
    maps = F.conv2d(images, p[stem + "weight"], p[stem + "bias"], stride=16)
    grid = (maps.shape[2], maps.shape[3])
    x = maps.flatten(2).mT + p.get("encoder.vit.pos_embed", 0)
    prefix = torch.cat([p["encoder.vit.cls_token"], p["encoder.vit.reg_token"]], dim=1)
    x = torch.cat([prefix.expand(len(x), -1, -1), x], dim=1)
    x = block(x, p, "encoder.vit.blocks.0.", grid)
    x = torch.cat([p["decoder.queries"].expand(len(x), -1, -1), x], dim=1)
    found = []
    for i in (1, 2):
        found.append(predicted(x, p, grid, eps))
        allowed = torch.ones(len(x), x.shape[1], x.shape[1], dtype=torch.bool)
        inside = F.interpolate(found[-1][0], grid, mode="bilinear") > 0
        assert 0.05 < inside.float().mean() < 0.95  # the masks do limit something
        allowed[:, :QUERIES, QUERIES + PREFIX :] = inside.flatten(2)
        x = block(x, p, f"encoder.vit.blocks.{i}.", grid, allowed if masked else None)
    return [*found, predicted(x, p, grid, eps)]


def test_small_scores_keep_their_digits_in_onnx_runtime(tmp_path):
    """Its Sigmoid would lose them: half of the value at -16, all of it below -18."""
    runtime, _ = pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    classifier = randomised(MaskClassifier(WIDTH, K, patch_size=16, num_queries=QUERIES)).eval()
    features = [torch.randn(1, WIDTH, 3, 4), 4 * torch.randn(1, WIDTH, 1, QUERIES)]
    with torch.inference_mode():
        scale = 40 / classifier.predict(*features).masks.abs().max()
        classifier.mask_head[-1].weight *= scale
        classifier.mask_head[-1].bias *= scale
        expected = classifier(features)
    assert expected.min() < -17
    path = tmp_path / "heads.onnx"
    with quiet():
        torch.onnx.export(classifier, (features,), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path)
    given = {i.name: x.numpy() for i, x in zip(session.get_inputs(), features, strict=True)}
    found = torch.from_numpy(session.run(None, given)[0])
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_predictions_equal_plain_operations(masked):
    torch.manual_seed(0)
    model = randomised(tiny()).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.double)
    if masked:
        model.set_progress(0.0)
    with torch.no_grad():
        output = model(images, with_aux=True)
        expected = written_out(model, images, masked=masked)
    assert output.size == (64, 64)
    for stage, (masks, classes) in zip(output.stages, expected, strict=True):
        torch.testing.assert_close(stage.masks, masks, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(stage.classes, classes, rtol=1e-9, atol=1e-9)


def test_logits_are_logarithms_of_the_classes_scores():
    torch.manual_seed(0)
    model = randomised(tiny()).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.double)
    with torch.no_grad():
        masks, classes = written_out(model, images, masked=False)[-1]
        inside = F.interpolate(masks, (64, 64), mode="bilinear").sigmoid()
        scores = torch.einsum("bqhw,bqk->bkhw", inside, classes.softmax(-1)[..., :-1])
        torch.testing.assert_close(model(images).exp(), scores)
        assert model.coarse(images).logits.shape == (2, K, 64, 64)


def test_logits_are_finite_and_in_fp32_under_autocast(monkeypatch):
    """In bf16 the best two scores of many pixels would be equal."""
    torch.manual_seed(0)
    decoder, features = MaskClassifier(8, K, patch_size=16), [torch.zeros(1, 8, 2, 2)] * 2
    fixed = Masks(torch.randn(1, 100, 8, 8), torch.randn(1, 100, K + 1))
    monkeypatch.setattr(decoder, "predict", lambda *_: fixed)
    expected = decoder(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(decoder(features), expected)
    fixed = fixed._replace(masks=torch.full((1, 100, 8, 8), -200.0))  # in no query's mask
    torch.testing.assert_close(decoder(features), torch.full((1, K, 32, 32), 1e-12).log())


def test_masked_attention_is_annealed_block_by_block():
    """The authors' ADE20K run: starts at 1/6, 2/6, … and ends at 2/6, 3/6, … of the steps."""
    encoder = tiny(query_blocks=3).encoder
    assert encoder.mask_probability.tolist() == [0, 0, 0]  # unless training says how far it is
    for done, expected in (
        (0.0, [1, 1, 1]),
        (1 / 5, [1, 1, 1]),
        (1.5 / 5, [0.5**0.9, 1, 1]),
        (2.25 / 5, [0, 0.75**0.9, 1]),
        (1.0, [0, 0, 0]),
    ):
        encoder.set_progress(done)
        assert encoder.mask_probability.tolist() == pytest.approx(expected)
        assert encoder.masked == [share > 0 for share in expected]


def test_annealing_compiles_one_graph_for_each_masked_block():
    model = tiny().train()
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=counter)
    images = torch.zeros(1, 3, 64, 64)
    shares = []
    for step in range(9):
        model.set_progress(step / 8)
        compiled(images, with_aux=True)
        shares.append(model.encoder.mask_probability.tolist())
    assert len({tuple(share) for share in shares}) == 5
    assert counter.frame_count == 3  # both blocks masked, one, none


def test_a_share_of_the_queries_is_masked():
    encoder = tiny().encoder
    logits = torch.full((50, QUERIES, 8, 8), -1.0)
    mask = encoder._attention_mask(logits, QUERIES + 5 + 16, (4, 4), torch.tensor(0.25))
    assert mask.shape == (50, 1, QUERIES + 21, QUERIES + 21)
    assert mask[:, :, QUERIES:].all()  # only queries are limited
    assert mask[..., : QUERIES + 5].all()  # and only to patches
    limited = ~mask[:, 0, :QUERIES, QUERIES + 5 :].any(-1)
    assert 0.1 < limited.float().mean() < 0.4


def test_masks_of_another_size_than_the_images_are_refused():
    output = tiny()(torch.zeros(1, 3, 50, 70), with_aux=True)
    target = torch.zeros(1, 64, 80, dtype=torch.long)
    for wrong in (target, target[:, :49, :70]):
        with pytest.raises(SetrError, match=r"at their size \(50x70\)"):
            setr.segmentation_loss(output, wrong)


@pytest.mark.parametrize("size", [(64, 64), (50, 70)])
@pytest.mark.parametrize("encoder", [None, "vit_small_patch16_dinov3"])
def test_every_parameter_gets_a_gradient_and_any_size_logits(size, encoder):
    if encoder:
        model = setr.SETR(encoder=encoder, encoder_args={"depth": 3, "query_blocks": 2},
                          decoder="eomt", num_classes=K, taps=(3,), img_size=64)  # fmt: skip
    else:
        model = tiny(init_values=0.1)
    model.set_progress(0.3)
    output = assert_learns(model, *size)
    losses = setr.segmentation_loss(output, torch.zeros(2, *size, dtype=torch.uint8))
    assert set(losses) == {"loss", "main", "aux_1", "aux_2"}


def stage(target: Tensor, order: list[int], *, sure: float = 20.0) -> Masks:
    """Predictions of Q queries that show class `order[q]` of the target, perfectly if sure."""
    ids = torch.tensor(order)
    masks = ((target[:, None] == ids[:, None, None]).float() * 2 - 1) * sure
    classes = F.one_hot(ids, K + 1).float().expand(len(target), -1, -1) * sure
    return Masks(masks, classes)


def quarters() -> Tensor:
    """Two images: the first with classes 0 to 3 in its quarters, the second with class 4 only."""
    target = torch.full((2, 32, 32), 4, dtype=torch.uint8)
    target[0] = torch.tensor([[0, 1], [2, 3]], dtype=torch.uint8).repeat_interleave(
        16, 0).repeat_interleave(16, 1)  # fmt: skip
    return target


def test_the_loss_finds_the_queries_whatever_their_order():
    target = quarters()
    torch.manual_seed(0)
    for order in ([0, 1, 2, 3, 4, K], [4, K, 3, 0, 2, 1]):
        masks, classes = stage(target, order)
        absent = torch.tensor([[i not in image for i in order] for image in ([0, 1, 2, 3], [4])])
        classes = classes.where(~absent[..., None], F.one_hot(torch.tensor(K), K + 1) * 20.0)
        loss = setr.segmentation_loss(MaskOutput([Masks(masks, classes)], (32, 32)), target)
        # points at the borders of a quarter see both sides, so the loss is not quite 0
        assert loss["loss"] < 3
        worse = setr.segmentation_loss(MaskOutput([Masks(-masks, classes)], (32, 32)), target)
        assert worse["loss"] > 50


def test_class_and_mask_terms_by_hand(monkeypatch):
    """One image of one class: every point is inside, and one of two queries is matched."""
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, 0.5))
    monkeypatch.setattr(torch, "rand_like", lambda like: torch.full_like(like, 0.5))
    target = torch.full((1, 8, 8), 1, dtype=torch.uint8)
    masks = torch.stack([torch.full((8, 8), 0.5), torch.full((8, 8), -2.0)])[None]
    classes = torch.tensor([[[0.0, 1, 0, 0, 0, 2], [1.0, 0, 0, 0, 0, 0]]])
    loss = setr.segmentation_loss(MaskOutput([Masks(masks, classes)], (8, 8)), target)["loss"]
    logs = classes[0].log_softmax(-1)
    entropy = -(logs[0, 1] + 0.1 * logs[1, K]) / 1.1
    inside, points = torch.tensor(0.5).sigmoid(), 64
    mask = -inside.log() * 5 + 5 * (1 - (2 * inside * points + 1) / ((inside + 1) * points + 1))
    torch.testing.assert_close(loss, 2 * entropy + mask)


def test_of_two_queries_with_one_mask_the_one_of_the_class_is_matched():
    target = torch.full((1, 8, 8), 1, dtype=torch.uint8)
    classes = F.one_hot(torch.tensor([[0, 1]]), K + 1).float().requires_grad_()
    output = MaskOutput([Masks(torch.ones(1, 2, 8, 8), classes)], (8, 8))
    setr.segmentation_loss(output, target)["loss"].backward()
    assert classes.grad[0, 1, 1] < 0  # towards the class
    assert classes.grad[0, 0, 1] > 0  # and the other to "no object"


def test_masks_are_matched_and_compared_where_pixels_count(monkeypatch):
    """Half of the points are ignored. The query that is right elsewhere, but there, is chosen."""

    def points(*size: int, **_: object) -> Tensor:
        places = torch.full(size, 0.5)
        places[..., ::2, 0], places[..., 1::2, 0] = 0.25, 0.75
        return places

    monkeypatch.setattr(torch, "rand", points)
    monkeypatch.setattr(mask_loss, "OVERSAMPLING", 1)
    monkeypatch.setattr(mask_loss, "UNCERTAIN_SHARE", 1.0)
    target = torch.full((1, 8, 8), 1, dtype=torch.uint8)
    target[..., 4:] = IGNORE
    masks = torch.full((1, 2, 8, 8), 9.0)
    masks[:, 1] = torch.where(target == IGNORE, -9.0, 1.5)
    masks.requires_grad_()
    output = MaskOutput([Masks(masks, torch.zeros(1, 2, K + 1))], (8, 8))
    loss = setr.segmentation_loss(output, target)["loss"]
    loss.backward()
    assert masks.grad[0, 0].any()
    assert not masks.grad[0, 1].any()
    inside, counted = torch.tensor(9.0).sigmoid(), 32
    dice = 1 - (2 * inside * counted + 1) / ((inside + 1) * counted + 1)
    expected = 2 * math.log(K + 1) - 5 * inside.log() + 5 * dice
    torch.testing.assert_close(loss.detach(), expected)


def test_ignored_pixels_do_not_count():
    target = quarters()
    target[:, :, 24:] = IGNORE
    masks, classes = stage(target, [0, 1, 2, 3, 4, K], sure=1.0)
    masks = masks.clone().requires_grad_()
    torch.manual_seed(0)
    setr.segmentation_loss(MaskOutput([Masks(masks, classes)], (32, 32)), target)["loss"].backward()
    assert masks.grad[0, :4, :, :23].any()
    assert not masks.grad[..., 25:].any()


def test_an_image_that_is_ignored_everywhere_changes_nothing():
    target = quarters()[:1]
    both = torch.cat([target, torch.full_like(target, IGNORE)])
    assert mask_weight(both, K).tolist() == mask_weight(target, K).tolist() == [4, 4, 1]
    masks, classes = stage(quarters(), [0, 1, 2, 3, 4, K], sure=1.0)
    masks, classes = masks * 0, classes.clone().requires_grad_()  # so points do not matter
    beside = setr.segmentation_loss(MaskOutput([Masks(masks, classes)], (32, 32)), both)["loss"]
    beside.backward()
    assert classes.grad[0].any()
    assert not classes.grad[1].any()
    first = MaskOutput([Masks(masks[:1], classes[:1])], (32, 32))
    alone = setr.segmentation_loss(first, target)["loss"]
    torch.testing.assert_close(beside, alone, rtol=0.02, atol=0.0)
    nothing = setr.segmentation_loss(first, torch.full_like(target, IGNORE))["loss"]
    assert nothing == 0
    assert not torch.autograd.grad(nothing, classes)[0].any()


def test_a_class_of_weight_0_is_as_if_ignored():
    """Neither its query nor its mask is learnt, and it is not among the divisors."""
    target, weight = quarters(), torch.tensor([1.0, 2.0, 0.0, 1.0, 3.0])
    hidden = target.where(target != 2, IGNORE)
    assert mask_weight(target, K, weight).tolist() == mask_weight(hidden, K, weight).tolist()
    masks, classes = stage(target, [0, 1, 2, 3, 4, K], sure=1.0)
    masks, found = masks.clone().requires_grad_(), []
    for truth in (target, hidden):
        torch.manual_seed(0)
        output = MaskOutput([Masks(masks, classes)], (32, 32))
        loss = setr.segmentation_loss(output, truth, weight=weight)["loss"]
        found.append((loss, torch.autograd.grad(loss, masks)[0]))
    torch.testing.assert_close(*found)


def test_micro_batches_add_up_to_the_whole_batch():
    """Of the class terms exactly; the mask terms draw other points."""
    target, weight = quarters(), torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])
    assert mask_weight(target, K, weight).tolist() == [7.5, 5, 2]
    assert mask_weight(target, K).tolist() == [5, 5, 2]
    masks, classes = stage(target, [0, 1, 2, 3, 4, K], sure=1.0)
    masks = masks * 0  # the same everywhere, so points do not matter
    total = mask_weight(target, K, weight)

    def loss(part: slice) -> Tensor:
        torch.manual_seed(0)
        output = MaskOutput([Masks(masks[part], classes[part])], (32, 32))
        arguments = {"weight": weight, "normalizer": total}
        return setr.segmentation_loss(output, target[part], **arguments)["loss"]

    torch.testing.assert_close(loss(slice(0, 1)) + loss(slice(1, 2)), loss(slice(0, 2)), rtol=0.02,
                               atol=0.0)  # fmt: skip


def test_the_loss_is_in_fp32_under_autocast():
    """Queries that fit almost equally well would be matched at random by costs in bf16."""
    torch.manual_seed(0)
    target, found = quarters(), []
    masks = torch.randn(2, 6, 32, 32) * 0.01
    stages = MaskOutput([Masks(masks, torch.zeros(2, 6, K + 1))], (32, 32))
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(setr.segmentation_loss(stages, target)["loss"])
    assert torch.equal(*found)


def test_more_classes_than_queries():
    target = quarters()
    masks, classes = stage(target, [2])
    loss = setr.segmentation_loss(MaskOutput([Masks(masks, classes)], (32, 32)), target)["loss"]
    assert torch.isfinite(loss)


def test_it_learns_four_pictures_by_heart():
    torch.manual_seed(0)
    model, steps = tiny(init_values=1.0).train(), 30
    target = torch.zeros(4, 64, 64, dtype=torch.uint8)
    for image in range(4):
        target[image, :, 16 * image :] = 1
        target[image, 40:] = 2
        target[image, 10:20, 10:30] = 3
    colours = torch.randn(K, 3)[target.long()].permute(0, 3, 1, 2)
    images = colours + 0.1 * torch.randn(4, 3, 64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        model.set_progress(step / steps)
        losses = setr.segmentation_loss(model(images, with_aux=True), target)
        optimizer.zero_grad()
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.inference_mode():
        right = model.eval()(images).argmax(1) == target
    assert right.float().mean() > 0.97


def test_another_loss_and_wrong_targets_are_refused():
    target = quarters()
    output = MaskOutput([stage(target, [0, 1])], (32, 32))
    with pytest.raises(SetrError, match="kind 'dice': EoMT has a loss of its own"):
        setr.segmentation_loss(output, target, kind="dice")
    with pytest.raises(SetrError, match="target"):
        setr.segmentation_loss(output, target[:1])
    with pytest.raises(SetrError, match="give one for each of 5 classes"):
        setr.segmentation_loss(output, target, weight=torch.ones(K + 1))


def test_parts_that_do_not_fit():
    for arguments, message in (
        ({"taps": (2, 3)}, "only tap"),
        ({"aux_taps": (3,)}, "EoMT has none of them"),
        ({"patch_stride": 8}, "EoMT has none of them"),
        ({"encoder_args": {"readout": "add"}}, "EoMT has none of them"),
        ({"encoder_args": {**TINY, "query_blocks": 4}}, "1 to 3 query blocks"),
    ):
        given = {"taps": (3,), "encoder_args": TINY, **arguments}
        with pytest.raises(SetrError, match=message) as raised:
            setr.SETR(encoder="vit_small_patch14_reg4_dinov2", decoder="eomt", num_classes=K,
                      img_size=64, **given)  # fmt: skip
        assert raised.value.code == USAGE
    with pytest.raises(SetrError, match=r"channels 64: eomt_nano has a fixed width; give None"):
        setr.create_model("eomt_nano", num_classes=K, channels=64)


@pytest.mark.parametrize(
    "setting",
    [
        {"loss": "dice"},
        {"loss_norm": "all"},
        {"aux_weight": 0.2},
        {"cache_features": "once"},
        {"adjust_logits": True},
    ],
)
def test_settings_that_do_not_fit_are_refused_before_training(setting):
    config = setr.recipe("finetune")
    model = dataclasses.replace(config.model, name="eomt_nano", encoder=None, freeze=-1)
    train = dataclasses.replace(config.train, **setting)
    with pytest.raises(SetrError, match=r"EoMT.* leave "):
        require_buildable(dataclasses.replace(config, model=model, train=train), weights=False)


def test_named_models_have_the_authors_query_blocks():
    for name, blocks, encoder in (
        ("eomt_small", 3, "vit_small_patch14_reg4_dinov2"),
        ("eomt_base", 3, "vit_base_patch14_reg4_dinov2"),
        ("eomt_large", 4, "vit_large_patch14_reg4_dinov2"),
    ):
        with torch.device("meta"):
            model = setr.create_model(name, num_classes=150, img_size=512)
        assert model.encoder.num_query_blocks == blocks
        assert model.arguments["encoder"] == encoder
        assert (model.encoder.patch_size, len(model.decoder.upscale)) == (16, 2)
        assert model.decoder.queries.shape[0] == 100


@pytest.mark.parametrize(
    ("name", "size"),
    [("cityscapes_eomt_large_20k", (1024, 2048)), ("ade20k_eomt_large_39k", (768, 1024))],
)
def test_training_images_are_scaled_by_their_long_side_as_by_the_authors(name, size):
    data = setr.recipe(name).data
    base = base_scale(*size, data.short_side, data.long_side)
    found = [base * factor for factor in data.scale_range]
    crop = min(data.crop_size)
    assert found == pytest.approx([0.5 * crop / max(size), 2 * crop / max(size)])


def test_the_final_norm_learns_as_the_last_block():
    model = tiny()
    assert model.layer_depth("encoder.vit.norm.weight") == 1
    assert model.layer_depth("encoder.vit.blocks.2.norm1.weight") == 1
    assert model.layer_depth("decoder.queries") == 0
    model.encoder.freeze(2)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert "encoder.vit.norm.weight" in trained
    assert "encoder.vit.blocks.1.norm1.weight" not in trained
    model.encoder.freeze(-1)
    assert not model.encoder.vit.norm.weight.requires_grad
    assert model.decoder.queries.requires_grad


def test_the_final_norm_stays_frozen_beside_lora():
    model = tiny()
    add_lora(model, 2)
    model.encoder.freeze(0)
    trained = [n for n, p in model.encoder.named_parameters() if p.requires_grad]
    assert trained
    assert all("parametrizations" in name for name in trained)


def test_gradient_checkpointing_changes_no_gradient():
    model = tiny(init_values=0.1)
    images = torch.randn(1, 3, 64, 64)
    found = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        last = model(images, with_aux=True).stages[-1]
        (last.masks.square().mean() + last.classes.square().mean()).backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(map(torch.equal, *found))


def test_patches_of_another_size_are_resampled(tmp_path):
    source = setr.SETR(encoder="vit_small_patch14_reg4_dinov2", encoder_args=TINY, decoder="naive",
                       num_classes=K, taps=(3,), img_size=56)  # fmt: skip
    weights = {n.removeprefix("encoder.vit."): v for n, v in source.encoder.state_dict().items()}
    weights = {n.removeprefix("vit."): v for n, v in weights.items()}
    torch.save(weights, tmp_path / "vit.pth")
    model = tiny()
    report = load_weights(model, tmp_path / "vit.pth")
    assert report.resized == ["encoder.vit.patch_embed.proj.weight"]  # both grids are 4 x 4
    # a constant patch has the same embedding at both sizes
    flat = torch.full((1, 3, 16, 16), 0.7)
    ours, theirs = model.encoder.vit.patch_embed.proj, source.encoder.vit.patch_embed.proj
    torch.testing.assert_close(ours(flat), theirs(flat[..., :14, :14]), rtol=1e-3, atol=1e-3)


AUTHORS = [
    (r"^encoder\.vit\.", "network.encoder.backbone."),
    (r"^decoder\.queries", "network.q.weight"), (r"^decoder\.", "network."),
]  # fmt: skip
TRANSFORMERS = [
    (r"^encoder\.vit\.(cls_token)", r"embeddings.\1"),
    (r"^encoder\.vit\.reg_token", "embeddings.register_tokens"),
    (r"^encoder\.vit\.pos_embed", "embeddings.position_embeddings.weight"),
    (r"^encoder\.vit\.patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^encoder\.vit\.norm\.", "layernorm."),
    (r"^encoder\.vit\.blocks\.(\d)\.", r"layers.\1."),
    (r"attn\.proj\.", "attention.out_proj."), (r"attn\.qkv\.", "attention.qkv."),
    (r"ls(\d)\.gamma", r"layer_scale\1.lambda1"),
    (r"^decoder\.queries", "query.weight"), (r"^decoder\.class_head\.", "class_predictor."),
    (r"^decoder\.upscale\.(\d)\.norm\.", r"upscale_block.block.\1.layernorm2d."),
    (r"^decoder\.upscale\.(\d)\.", r"upscale_block.block.\1."),
    (r"^decoder\.mask_head\.(\d)\.", lambda m: f"mask_head.fc{int(m[1]) // 2 + 1}."),
]  # fmt: skip


def published(model: setr.SETR, layout: str) -> dict[str, Tensor]:
    """A state dict as in the files of the authors or of transformers."""
    if layout == "authors":
        extra = {"network.attn_mask_probs": torch.zeros(model.encoder.num_query_blocks),
                 "network.encoder.pixel_mean": torch.zeros(1, 3, 1, 1),
                 "criterion.empty_weight": torch.ones(K + 1)}  # fmt: skip
        return renamed(model, AUTHORS) | extra
    state = renamed(model, TRANSFORMERS)
    state["embeddings.position_embeddings.weight"] = state["embeddings.position_embeddings.weight"][
        0
    ]
    for name in [name for name in state if ".qkv." in name]:
        for part, value in zip("qkv", state.pop(name).chunk(3), strict=True):
            state[name.replace("qkv", f"{part}_proj")] = value
    state["attn_mask_probs"] = torch.zeros(model.encoder.num_query_blocks)
    return state | {"criterion.empty_weight": torch.ones(K + 1)}


@pytest.mark.parametrize("layout", ["authors", "transformers"])
def test_published_checkpoints(tmp_path, capsys, layout):
    model = randomised(tiny(query_blocks=1))  # stored beside the weights
    path = tmp_path / "checkpoint.pth"
    torch.save(published(model, layout), path)
    found, info, report = convert_foreign(path, num_heads=2)
    assert (report.dialect, report.unexpected) == ("eomt", [])
    assert_same(found, model, 64, 64)
    test = info.protocol
    assert (test.window, test.stride, test.short_side) == ((64, 64), (64, 64), 64)
    assert info.mean == (0.485, 0.456, 0.406)
    assert_converts(path, model, tmp_path / "model", "--num-heads", "2")
    assert "dialect eomt" in capsys.readouterr().out


def test_masked_attention_of_transformers_in_predictions_is_told(tmp_path):
    state = published(tiny(query_blocks=1), "transformers")
    for share in (0, 1):
        state["attn_mask_probs"] = torch.full((1,), float(share))
        torch.save(state, tmp_path / "checkpoint.pth")
        report = convert_foreign(tmp_path / "checkpoint.pth", num_heads=2)[2]
        assert ("masked attention" in str(report)) == bool(share)


LIGHTLY = [(r"^encoder\.vit\.", "model.backbone."), (r"\.reg_token$", ".register_tokens"),
           (r"^decoder\.queries$", "model.queries.weight"), (r"^decoder\.", "model.")]  # fmt: skip


@pytest.mark.parametrize(("patch", "doublings"), [(14, 2), (16, 1)])
def test_an_export_of_lightlytrain(tmp_path, patch, doublings):
    """Other norms and doublings than the authors', DINOv2's own positions, and settings inside."""
    model = randomised(
        setr.SETR(
            encoder="vit_small_patch14_reg4_dinov2",
            encoder_args={**TINY, "patch_size": patch, "query_blocks": 1},
            decoder="eomt",
            decoder_args={"num_queries": QUERIES, "doublings": doublings, "norm_eps": 1e-5},
            num_classes=K,
            taps=(3,),
            img_size=4 * patch,
        )
    )
    assert model.decoder.upscale[0].norm.eps == 1e-5
    state = renamed(model, LIGHTLY)
    token = state["model.backbone.cls_token"]
    own = torch.randn_like(token)  # the class token's position
    state["model.backbone.cls_token"] = token - own
    name = "model.backbone.pos_embed"
    state[name] = torch.cat([own, state[name]], dim=1)
    state |= {"model.backbone.mask_token": own[0], "criterion.empty_weight": torch.ones(K + 1)}
    settings = {
        "image_size": (8 * patch, 8 * patch),
        "image_normalize": {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)},
        "num_joint_blocks": 1,
        "classes": {3 * i: f"name {i}" for i in range(K)},
    }
    path = tmp_path / "exported_best.pt"
    torch.save({"model_init_args": settings, "train_model": state, "license_info": "x"}, path)
    found, info, report = convert_foreign(path, num_heads=2)
    assert (report.dialect, report.unexpected) == ("eomt", [])
    images = torch.randn(1, 3, 5 * patch, 8 * patch)
    with torch.inference_mode():
        expected = model(images)
        torch.testing.assert_close(found(images), expected, rtol=1e-4, atol=1e-4)
    assert info.protocol.window == (8 * patch, 8 * patch)
    assert info.protocol.short_side == 8 * patch
    assert (info.mean, info.std) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    assert info.labels.classes[1] == "name 1"
    assert info.labels.label_map[3] == 1
    settings["image_size"] = "large"
    torch.save({"model_init_args": settings, "train_model": state}, path)
    with pytest.raises(SetrError, match="stored beside its tensors"):
        convert_foreign(path, num_heads=2)


def test_the_number_of_classes_names_the_data_set(tmp_path):
    model = setr.SETR(encoder="vit_small_patch14_reg4_dinov2",
                      encoder_args={**TINY, "patch_size": 16, "query_blocks": 1}, decoder="eomt",
                      num_classes=150, taps=(3,), img_size=32)  # fmt: skip
    torch.save(published(model, "authors"), tmp_path / "x.pth")
    _, info, _ = convert_foreign(tmp_path / "x.pth", num_heads=2)
    assert info.labels == known_labels("ade20k")


def test_a_cut_checkpoint_is_named(tmp_path):
    state = published(tiny(), "authors")
    del state["network.mask_head.2.weight"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(SetrError, match=r"decoder\.mask_head\.2\.weight is missing"):
        convert_foreign(tmp_path / "cut.pth", num_heads=2)
    state = published(tiny(), "transformers")
    del state["embeddings.position_embeddings.weight"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(SetrError, match="incomplete or damaged"):
        convert_foreign(tmp_path / "cut.pth", num_heads=2)


def test_upscaling_follows_the_patch_size():
    features = [torch.randn(1, 8, 2, 3), torch.randn(1, 8, 1, 5)]
    for patch, doublings in ((8, 1), (14, 1), (16, 2), (18, 2), (32, 3)):
        decoder = MaskClassifier(8, K, patch_size=patch, num_queries=5)
        assert len(decoder.upscale) == doublings
        assert decoder(features).shape == (1, K, 2 * patch, 3 * patch)


def test_points_of_the_mask_loss_lie_where_masks_are_uncertain():
    """Three quarters are the nearest to a logit of 0 of three times as many random ones."""
    torch.manual_seed(0)
    ramp = torch.linspace(-1, 1, 64).expand(1, 1, 64, 64)  # from left to right
    points = mask_loss._uncertain_points(ramp)
    assert points.shape == (1, 64 * 64, 2)
    uncertain, random = points[0].split([3072, 1024])
    inside = (uncertain[:, 1] - 0.5).abs() < 0.49  # beyond its border a map counts as 0
    assert (uncertain[inside, 0] - 0.5).abs().max() < 0.13  # a quarter, so an eighth to each side
    assert (random[:, 0] - 0.5).abs().max() > 0.4
