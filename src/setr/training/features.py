"""Features of a frozen encoder, computed once and stored on disk to train heads on them.

A view is a whole image resized to fit the crop size, mirrored or not; the padding has the mean
colour and is ignored in the mask. `maps.npy` holds the feature maps of all taps, concatenated along
the channels (fp16), `masks.npy` the masks of the same views; both are memory-mapped. They are in
the user's cache folder under a hash of everything they depend on: the encoder's weights and
settings, the files of the split, the labels, the size, normalisation, precision and library
versions. `facts.json` is written last, so a folder without it is incomplete. Each run computes in a
scratch folder of its own; if several runs compute the same features at once, the first to finish
publishes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from setr._timm import timm
from setr.config import Config
from setr.crop_window import CropWindow
from setr.data.dataset import Dataset
from setr.data.loader import whole_images
from setr.data.survey import survey
from setr.distributed import say
from setr.errors import DataError, SetrError, UsageError
from setr.evaluation import testing
from setr.inference import normalize
from setr.labels import IGNORE
from setr.model import SETR
from setr.processes.lock import ScratchFolder
from setr.processes.progress import Progress
from setr.training.build import build_info
from setr.training.facts import weights_digest
from setr.transforms import PAD_COLOUR, fill_colour, flipped
from setr.writing import cache_folder

VERSION = 3
_HEAD_ARGUMENTS = frozenset(
    {"decoder", "num_classes", "aux_taps", "decoder_args", "neck_args", "aux_args", "odd_sizes"}
)
"""Arguments of `SETR` that do not affect the features of its encoder."""


class FeatureFiles(NamedTuple):
    """The stored views of a split: those of image i from index i * `views` on, mirrored last.

    Attributes:
        maps: (N, C, h, w) float16, the channels of all taps concatenated.
        masks: (N, H, W) uint8 training ids.
        views: views per image: 2 with mirrored ones, else 1.
    """

    maps: np.ndarray
    masks: np.ndarray
    views: int


def fit(
    image: np.ndarray, mask: np.ndarray, size: tuple[int, int], fill: tuple[int, ...] = PAD_COLOUR
) -> tuple[np.ndarray, np.ndarray]:
    """Resize an image and its mask to fit into a size, and pad them at the bottom and right."""
    H, W = image.shape[:2]
    scale = min(size[0] / H, size[1] / W)
    resized = max(1, round(H * scale)), max(1, round(W * scale))
    window = CropWindow((H, W), resized, (0, 0), size)
    return (
        window.cut(image, nearest=False, fill=fill),
        window.cut(mask, nearest=True, fill=IGNORE),
    )


def open_features(
    config: Config, dataset: Dataset, model: SETR, dtype: torch.dtype | None
) -> FeatureFiles:
    """The features of a split; computed now unless they are cached.

    Args:
        config: settings of the run; `cache_features`, crop size and normalisation are used.
        dataset: the training split.
        model: with a frozen encoder, on its device.
        dtype: of autocast; None for fp32.

    Raises:
        SetrError: a full disk, an image that cannot be read or does not exist, features out of the
            range of fp16.
    """
    if dataset.decoded and dataset.version is None:
        raise UsageError(
            "train.cache_features: stored features need a version of the data; give "
            "wrap_dataset one, or leave it out"
        )
    views = 2 if config.train.cache_features == "flip" else 1
    folder = cache_folder("features") / _key(config, dataset, model, dtype)
    stored = _stored(folder)
    if stored is None:
        _compute(config, dataset, model, dtype, folder, views)
        stored = _stored(folder)
    if stored is None:
        raise SetrError(f"{folder}: features cannot be read; remove this folder")
    maps, masks = stored
    say(f"features of {len(dataset)} images: {folder} ({maps.nbytes / 1e9:.1f} GB)")
    return FeatureFiles(maps, masks, views)


def _stored(folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """The maps and masks in a folder; None if they are missing or damaged."""
    if not (folder / "facts.json").is_file():
        return None
    try:
        maps, masks = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("maps", "masks"))
    except (OSError, ValueError):  # shorter than its header says, or no array
        return None
    return maps, masks


def _key(config: Config, dataset: Dataset, model: SETR, dtype: torch.dtype | None) -> str:
    facts: dict[str, Any] = {
        "version": VERSION,
        "encoder": {k: v for k, v in model.arguments.items() if k not in _HEAD_ARGUMENTS},
        "libraries": [torch.__version__, timm.__version__, cv2.__version__],
        "labels": dataset.labels.to_dict(),
        "size": config.data.crop_size,
        "mean": config.model.mean,
        "std": config.model.std,
        "views": config.train.cache_features,
        "dtype": str(dtype),
        "device": next(model.parameters()).device.type,
    }
    if dataset.bands:
        facts["bands"] = str(dataset.bands)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    files = survey(dataset).key
    if not files.all():  # missing files have no key to identify them by
        raise DataError(
            f"{dataset.pairs[int(files.argmin())].image}: it or its mask does not exist; "
            "`setr doctor` lists what is missing"
        )
    digest.update(files.tobytes())
    digest.update(weights_digest(model.encoder).encode())
    return digest.hexdigest()[:24]


def _compute(
    config: Config,
    dataset: Dataset,
    model: SETR,
    dtype: torch.dtype | None,
    folder: Path,
    views: int,
) -> None:
    size, count = config.data.crop_size, views * len(dataset)
    info = build_info(config, dataset.labels)
    device = next(model.parameters()).device
    progress = Progress("features", count)
    maps = masks = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with ScratchFolder(folder.parent, ".computing-") as scratch, testing(model, dtype):
            made = scratch / folder.name
            made.mkdir()
            for number, (image, mask) in enumerate(_views(config, dataset, views)):
                x = normalize(torch.from_numpy(image)[None].to(device), info.mean, info.std)
                found = torch.cat(model.encoder(x), dim=1)[0].to(torch.float16).cpu()
                if not bool(torch.isfinite(found).all()):
                    raise SetrError(
                        "train.cache_features: features exceed the range of fp16; leave it out"
                    )
                if maps is None or masks is None:
                    maps, masks = _create_arrays(made, (count, *found.shape), (count, *size))
                maps[number], masks[number] = found.numpy(), mask
                progress.update(number + 1, images=1)
            for file in (maps, masks):
                if file is not None:
                    file.flush()
            (made / "facts.json").write_text(json.dumps({"version": VERSION, "views": count}))
            _publish(made, folder)
    except OSError as error:
        raise SetrError(f"{folder}: cannot write features: {error.strerror or error}") from None
    finally:
        progress.close()


def _publish(made: Path, folder: Path) -> None:
    """Move features to their place, unless another run has published the same."""
    try:
        os.rename(made, folder)  # fails if the folder exists and is not empty
    except OSError:
        if _stored(folder):
            return
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(made, folder)


def _create_arrays(
    folder: Path, maps: tuple[int, ...], masks: tuple[int, ...]
) -> tuple[np.memmap, np.memmap]:
    needed = 2 * int(np.prod(maps)) + int(np.prod(masks))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SetrError(
            f"train.cache_features: {needed / 1e9:.1f} GB are needed in "
            f"{cache_folder('features')}, where {free / 1e9:.1f} GB are free; set SETR_CACHE to "
            "another disk, a smaller --data.crop-size, or --train.cache-features once"
        )
    return (
        _preallocated(folder / "maps.npy", np.float16, maps),
        _preallocated(folder / "masks.npy", np.uint8, masks),
    )


def _preallocated(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """A new memory-mapped array, preallocated: a write to a full disk would kill the process."""
    made: np.memmap = open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return made


def _views(config: Config, dataset: Dataset, views: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for sample in whole_images(dataset, config.data.workers, range(len(dataset))):
        if isinstance(sample, SetrError):
            raise sample
        image, mask = sample[0][0].numpy(), sample[1][0].numpy()
        for mirrored in range(views):
            if mirrored:
                image, mask = flipped(image, 1), cv2.flip(mask, 1)
            yield fit(image, mask, config.data.crop_size, fill_colour(config.model.mean))


def split_maps(packed: Tensor, widths: list[int]) -> list[Tensor]:
    """(B, C, h, w) with the channels of all taps -> one float32 map per tap."""
    return list(packed.float().split(widths, dim=1))
