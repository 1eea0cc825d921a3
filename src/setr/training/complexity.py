"""Number of parameters and FLOPs of a model.

Models are built on torch's meta device, so nothing is allocated or computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from setr.model import SETR, Features, create_model, predictions
from setr.weight_files.licences import offered_licence

UNUSED_CLASSIFIER = 512 * 150 + 150
"""Parameters of the 1x1 classifier 512 -> 150 that every head of the authors' code creates but
never uses; Table 2 counts it, our models do not have it."""


@dataclass(frozen=True)
class Table2Row:
    """A row of the paper's Table 2: parameters for 512x512 and 150 classes.

    Args:
        system: name in the paper.
        name: our model name.
        paper: millions of parameters in the paper.
        unused_heads: number of heads of the authors' code with an unused classifier.
        note: why our count differs from the paper's.
    """

    system: str
    name: str
    paper: float
    unused_heads: int = 0
    note: str = ""


TABLE2 = (
    Table2Row("FCN, ResNet-101", "fcn_r101", 68.59),
    Table2Row("Semantic FPN, ResNet-101", "semantic_fpn_r101", 47.51),
    Table2Row(
        "Hybrid-Base",
        "hybrid_base",
        112.59,
        4,
        "no configuration was published; ours is ResNet-50 at stride 16, a 1x1 projection, "
        "12 blocks, the Naive head and three auxiliary heads",
    ),
    Table2Row("SETR-Naive-Base", "setr_naive_base", 87.69, 4),
    Table2Row("SETR-MLA-Base", "setr_mla_base", 92.59, 5),
    Table2Row("SETR-PUP-Base", "setr_pup_base", 97.64, 5),
    Table2Row("SETR-Naive", "setr_naive_large", 305.67, 4),
    Table2Row("SETR-MLA", "setr_mla_large", 310.57, 5),
    Table2Row("SETR-PUP", "setr_pup_large", 318.31, 5),
)


def meta_model(name: str, *, num_classes: int, img_size: int | None) -> SETR:
    """A named model on the meta device."""
    with torch.device("meta"):
        return create_model(name, num_classes=num_classes, img_size=img_size)


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Numbers of (trainable, all) parameters of a model."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trains in counts if trains), sum(n for n, _ in counts)


def forward_flops(model: SETR, H: int, W: int) -> int:
    """Floating-point operations of one image's forward pass, without auxiliary heads.

    A multiply-add counts as two operations; many papers count it as one. Only matrix products,
    convolutions and attention are counted, in the order of operations common to all devices (MLA
    classifies before its upsampling); savings on single devices are not subtracted.
    """
    from torch.func import functional_call
    from torch.utils.flop_counter import FlopCounterMode

    state = {k: v.to("meta") for k, v in (*model.named_parameters(), *model.named_buffers())}
    images = torch.empty(1, model.encoder.in_chans, H, W, device="meta")
    was_training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(model, state, (images,))
    model.train(was_training)
    return int(counter.get_total_flops())


def training_flops(model: SETR, H: int, W: int, *, cached: bool = False) -> int:
    """Floating-point operations of one image's forward and backward pass, with auxiliary heads.

    Frozen parts have no backward pass. Counted as in `forward_flops`.

    Args:
        model: on the meta device, in train mode, without gradient checkpointing.
        H: height of the image in pixels.
        W: width of the image in pixels.
        cached: the encoder's features are stored, not computed.
    """
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.parameters()).device
    images = torch.empty(2, model.encoder.in_chans, H, W, device=device)
    inputs: Tensor | Features = images
    if cached:
        with torch.no_grad():
            inputs = Features(model.encoder(images), (H, W))
    with FlopCounterMode(display=False) as counter:
        output = model(inputs, with_aux=True)
        torch.autograd.backward([x.sum() for x in predictions(output)])
    return int(counter.get_total_flops()) // 2  # batch norm needs more than one value per channel


def model_figures(name: str, *, num_classes: int, size: int) -> dict[str, Any]:
    """The values that `setr models` prints for a named model."""
    model = meta_model(name, num_classes=num_classes, img_size=size)
    return {
        "name": name,
        "encoder": model.arguments["encoder"],
        **transformer_size(model),
        "decoder": model.arguments["decoder"],
        "parameters": parameter_counts(model)[1],
        "auxiliary_parameters": parameter_counts(model.aux_heads)[1],
        "gflops": forward_flops(model, size, size) / 1e9,
        "stride": model.encoder.patch_size,
        "licence": offered_licence(model.arguments["encoder"]),
    }


def transformer_size(model: SETR) -> dict[str, int | None]:
    """Layers, hidden size and attention heads, as in the paper's Table 1; None for a ResNet."""
    vit: Any = getattr(model.encoder, "vit", None)
    if vit is None:
        return dict.fromkeys(("layers", "width", "heads"))
    heads = vit.blocks[0].attn.num_heads
    return {"layers": len(vit.blocks), "width": vit.embed_dim, "heads": heads}


def table2_figures(row: Table2Row) -> dict[str, Any]:
    """Parameters of a Table 2 row: the paper's count, and ours by part."""
    model = meta_model(row.name, num_classes=150, img_size=512)
    parts = {part: parameter_counts(module)[1] for part, module in model.named_children()}
    unused = row.unused_heads * UNUSED_CLASSIFIER
    total = sum(parts.values()) + unused
    return {
        "system": row.system,
        "name": row.name,
        "paper_millions": row.paper,
        **parts,
        "unused_classifiers": unused,
        "total": total,
        "difference_millions": round(row.paper - total / 1e6, 3),
        "note": row.note,
    }
