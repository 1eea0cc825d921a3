"""Recognise the layout (dialect) of a checkpoint and rename its tensors to our names.

Whole models (`official`: the authors' repository, `mmseg`, `segmenter`, `dpt`: their authors'
repositories, `dpt-transformers`, `dpt-smp`, `beit-transformers`, `eomt`, `lightly-linear`, our own
`setr`), DINOv2's linear heads (`linear`) and EoMT's differences to DINOv3 (`eomt-delta`) get our
full names; encoders (`google`, `timm`, `deit`, `prithvi`, `dinov3`, `radio`, `siglip`, `clip`,
`openclip`, `aimv2`, `internvit`, `gemma4`, `huggingface`, `sam`, `resnet`) get timm's names
without a prefix.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from setr.errors import SetrError
from setr.reading.parsed import BROKEN
from setr.weight_files.beit_layouts import transformers_beit
from setr.weight_files.dpt_layouts import authors_dpt, smp_dpt, transformers_dpt
from setr.weight_files.encoder_layouts import (
    PREFIX,
    dinov3,
    google,
    huggingface,
    resnet,
    siglip,
    timm,
)
from setr.weight_files.eomt import eomt, eomt_huggingface
from setr.weight_files.flexible_layouts import radio
from setr.weight_files.lightly_layouts import eomt_lightly, linear_lightly
from setr.weight_files.multimodal_layouts import aimv2, gemma4, internvit, openclip
from setr.weight_files.naming import Tensors, Translation
from setr.weight_files.sam import sam
from setr.weight_files.setr_layouts import linear, mmseg, official, segmenter
from setr.weight_files.smp import require_dpt

Convert = Callable[[Tensors], Translation]


def translate(given: Tensors, source: str = "checkpoint") -> Translation:
    """Recognise the layout of a checkpoint and rename its tensors to our names.

    Raises:
        SetrError: unknown layout, tensors that contradict it, several models, or unmerged LoRA.
    """
    bare = {_DATA_PARALLEL.sub("", _WRAPPERS.sub("", name)): v for name, v in given.items()}
    tensors = _own_model(bare, source)
    if lora := next((name for name in tensors if re.search(_LORA, name)), None):
        raise SetrError(
            f"{source}: has LoRA layers of PEFT ({lora}); merge them into the weights: "
            "torch.save(model.merge_and_unload().state_dict(), FILE)"
        )
    layers = [tensors]
    while (inner := _without_wrapper(layers[-1])) is not None:
        layers.append(inner)
    for dialects in (_WHOLE_MODELS, _ENCODERS):  # a whole model inside of another module, too
        for inside in layers:
            for marker, convert in dialects:
                if any(re.match(marker, name) for name in inside):
                    return _converted(convert, inside, source)
        for inside in layers:
            require_dpt(inside, source)
    if staged := next((name for name in tensors if re.search(_STAGES, name)), None):
        raise SetrError(
            f"{source}: its encoder has stages of several resolutions ({staged}), as in SegFormer, "
            "Swin or ConvNeXt; only models on plain ViTs are read"
        )
    raise SetrError(
        f"{source}: unknown layout (its tensors are called {', '.join(list(given)[:3])}, …); "
        "read are this toolkit's models; SETR, Segmenter, DPT and EoMT of their authors; those and "
        "UPerNet of mmsegmentation; EoMT, DPT, BEiT and data2vec of transformers; smp's DPT; EoMT "
        "and linear heads of LightlyTrain; linear heads of DINOv2; encoders of timm, Google, "
        "DINOv3, RADIO, SAM, OpenCLIP, AIMv2, InternViT, Prithvi, Hugging Face "
        "ViT/BEiT/DINOv2/SigLIP/CLIP/Gemma, torchvision's ResNets"
    )


def _converted(convert: Convert, tensors: Tensors, source: str) -> Translation:
    try:
        return convert(tensors)
    except SetrError as error:
        raise SetrError(f"{source}: {error}") from None
    except (*BROKEN, RuntimeError) as error:
        raise SetrError(
            f"{source}: incomplete or damaged; tensors contradict its layout ({error!r:.80})"
        ) from None


WRAPPED = 0.9
"""Share of a checkpoint's tensors whose names begin with the name of a wrapping module."""
_WRAPPERS = re.compile(
    r"(?<![^.])(_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""Names that torch.compile, Lightning's Fabric, FSDP and recomputed blocks add, anywhere."""
_DATA_PARALLEL = re.compile(r"^(module\.)+")
"""Names that DataParallel and averages of weights add in front."""
_STAGES = r"(blocks?|layers?|stages?)\.\d+\.((blocks?|layers?)\.)?\d+\."
"""Names of blocks that are counted by stages."""
_LORA = r"\.(base_layer|lora_[AB]|lora_magnitude_vector)\."
"""Names of PEFT's layers."""


def _own_model(tensors: Tensors, source: str) -> Tensors:
    """The tensors without the names of the modules around a model of this toolkit.

    Raises:
        SetrError: there are several models, such as one and the average of its weights.
    """
    found = (re.match(r"(.*?)(?<![^.])encoder\.(vit|net)\.", name) for name in tensors)
    starts = sorted({match[1] for match in found if match})
    if len(starts) > 1:
        names = " and ".join(f"'{start}'" for start in starts)
        raise SetrError(
            f"{source}: holds several models, whose names begin with {names}; save the tensors of "
            "the one you mean"
        )
    return {name.removeprefix("".join(starts)): value for name, value in tensors.items()}


def _without_wrapper(tensors: Tensors) -> Tensors | None:
    """The tensors without the word that nearly all names begin with; None if there is none.

    A model inside another module, such as Lightning's, has the name of the attribute there. The few
    others are of losses and metrics.
    """
    words = Counter(name.partition(".")[0] for name in tensors if "." in name)
    (word, count), *_ = words.most_common(1) or [("", 0)]
    if not word.isidentifier() or count < WRAPPED * len(tensors):
        return None
    return {name.removeprefix(f"{word}."): value for name, value in tensors.items()}


def _own(tensors: Tensors) -> Translation:
    return Translation("setr", tensors, whole=any(n.startswith("decoder.") for n in tensors))


_WHOLE_MODELS: list[tuple[str, Convert]] = [
    (r"encoder\.(vit|net)\.", _own),
    (r"(network\.)?encoder\.backbone\.", eomt),
    (r"upscale_block\.", eomt_huggingface),
    (r"model\.upscale\.0\.conv1\.", eomt_lightly),
    (r"model\.backbone\._model\.", linear_lightly),
    (r"fpn1\.0\.weight$|fpn\.fpn1\.conv_transpose1\.weight$", transformers_beit),
    (r"backbone\.layers\.\d+\.attn\.(attn\.|relative_position_bias_table)", mmseg),
    (r"backbone\.mla\.|decode_head\.(norm|syncbn_fc_\d|conv_\d|mlahead|cls)\.", official),
    (r"decoder\.cls_emb$", segmenter),
    (r"head\.head\.1\.running_mean$", transformers_dpt),  # depth models have no batch norm here
    (r"scratch\.output_conv\.1\.running_mean$", authors_dpt),
    (r"decoder\.reassemble_blocks\.\d+\.project_to_out_channel\.", smp_dpt),
    (r"decode_head\.bn\.", linear),
]
_ENCODERS: list[tuple[str, Convert]] = [
    (r"(.*/)?Transformer/encoderblock_0/", google),
    (r"(.*\.)?storage_tokens$|(?!(.*\.)?encoder\.)(.*\.)?layer\.0\.attention\.q_proj\.", dinov3),
    (r"(.*\.)?(blocks|layers)\.0\.mlp\.lin1\.", sam),
    (r"(.*\.)?(encoder\.layer|layers)\.0\.(attention|layernorm_before)\.", huggingface),
    (r"(.*\.)?encoder\.layers\.0\.attn\.qkv\.", internvit),
    (r"(.*\.)?embeddings\.patch_embedding\.weight$", siglip),
    (r"radio_model\.model\.patch_generator\.", radio),
    (r"(.*\.)?preprocessor\.patchifier\.proj\.", aimv2),
    (r"(.*\.)?(patch_embed|patch_embedder)\.input_proj\.weight$", gemma4),
    (rf"{PREFIX}blocks\.0\.", timm),
    (r"layer1\.0\.conv1\.", resnet),
    (r"(.*\.)?transformer\.resblocks\.0\.ln_1\.", openclip),
]
