"""Augmentation from the user's code, applied to the recipe's crops.

It comes last, so it gets crops of the final size, and the network sees what it returns. The
recipe's own random numbers are drawn before it, so a run has the same crops with and without it.

All random numbers that it may use are seeded for each sample by (seed, epoch, index), and Python's,
numpy's and torch's global generators are restored afterwards. So samples do not depend on workers
and processes, and resumed runs get those of uninterrupted ones.
"""

from __future__ import annotations

import contextlib
import inspect
import multiprocessing
import pickle
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import cv2
import numpy as np
import torch

from setr.errors import SetrError, UsageError
from setr.labels import IGNORE

Augment = Callable[..., Any]
"""A function or transform, as `setr.train` takes it."""


class OwnAugmentation:
    """Calls the user's augmentation and checks what it returns.

    Args:
        augment: one of
            - a function of image uint8 (H, W, C) and mask uint8 (H, W) that returns the pair; a
              third argument is a numpy `Generator`, if it must be given or is called `rng`;
            - a transform with the protocol of albumentations: it takes `image=` and `mask=` and
              returns a mapping of both;
            - a transform of torchvision.transforms.v2.
        num_classes: ids in the masks are below it, or `IGNORE`.
    """

    def __init__(self, augment: Augment, num_classes: int) -> None:
        self.augment, self.num_classes = augment, num_classes
        self._form = _form(augment)

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, name: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augment copies of one crop.

        Args:
            image: uint8 (H, W, C).
            mask: training ids uint8 (H, W).
            rng: of the sample.
            name: of the sample, for errors.

        Raises:
            SetrError: the result is not an image and a mask of the same shapes, in uint8, with
                known ids. Exceptions of the user's code are passed on.
        """
        with _seeded(self.augment, int(rng.integers(2**32))):
            found = _called(self._form, self.augment, image.copy(), mask.copy(), rng)
        return self._checked(found, image, mask, name)

    def _checked(
        self, found: Any, image: np.ndarray, mask: np.ndarray, name: str
    ) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(found, Mapping) and "image" in found and "mask" in found:
            found = found["image"], found["mask"]
        if not (isinstance(found, tuple | list) and len(found) == 2):
            raise SetrError(
                f"{name}: augment returned {_kind(found)}; return the pair (image, mask), or a "
                "dict with the keys 'image' and 'mask'"
            )
        for what, given, got in zip(("image", "mask"), (image, mask), found, strict=True):
            is_array = isinstance(got, np.ndarray)
            if not is_array or got.dtype != np.uint8 or got.shape != given.shape:
                raise SetrError(
                    f"{name}: augment returned the {what} as {_kind(got)}; return an array uint8 "
                    f"{given.shape} as given: normalisation and crops are the recipe's"
                )
        counts = cv2.calcHist([np.ascontiguousarray(found[1])], [0], None, [256], [0, 256])
        unknown = np.flatnonzero(counts[self.num_classes : IGNORE])
        if unknown.size:
            raise SetrError(
                f"{name}: augment returned the id {unknown[0] + self.num_classes} in the mask; "
                f"return 0 to {self.num_classes - 1}, or {IGNORE} to ignore a pixel"
            )
        # copies, as the next call may write into the arrays that this one returned
        return found[0].copy(), found[1].copy()


def described(augment: Augment) -> str:
    """What identifies an augmentation: its `version` if that is text, else its repr in one line.

    Addresses in memory are left out of the repr.
    """
    version = getattr(augment, "version", None)
    if isinstance(version, str):
        return version
    return " ".join(re.sub(r" at 0x[0-9a-fA-F]+", "", repr(augment)).split())


def require_augment(augment: Any, *, cache_features: str = "none") -> None:
    """Check that an augmentation can be called, in a run with this `train.cache_features`.

    Raises:
        SetrError: a class, a list, a function of other arguments, or cached features.
    """
    if cache_features != "none":
        raise UsageError(
            f"train.cache_features {cache_features}: stored features cannot be augmented; leave "
            "it out, or augment"
        )
    if isinstance(augment, type) or not callable(augment):
        what = f"the class {augment.__name__}" if isinstance(augment, type) else _kind(augment)
        raise UsageError(
            f"augment is {what}; give a function of (image, mask, rng), or one transform, such as "
            "an albumentations.Compose([…])"
        )
    _form(augment)


def require_sendable(augment: Augment) -> None:
    """Check that worker processes which do not begin as copies of this one can load it.

    Raises:
        SetrError: it cannot be pickled, or is defined in a notebook or at a prompt.
    """
    if multiprocessing.get_start_method() == "fork":
        return
    try:
        content = pickle.dumps(augment)
    except (AttributeError, TypeError, pickle.PicklingError):
        content = None
    has_file = hasattr(sys.modules.get("__main__"), "__file__")
    if content is None or (b"__main__" in content and not has_file):
        raise UsageError(
            f"augment {described(augment)[:60]}: worker processes cannot load it; define it at the "
            "top level of a .py file and import it from there, or set data.workers to 0"
        )


def _kind(value: Any) -> str:
    """Type of a value, with shape and type of numbers if it has them."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    name = type(value).__name__
    if shape is not None and dtype is not None:
        return f"{name} {str(dtype).removeprefix('torch.')} {tuple(shape)}"
    return f"{name} of {len(value)}" if isinstance(value, tuple | list) else name


# --- calling it -----------------------------------------------------------------------------------

Form = Literal["tensors", "rng", "names", "three", "two"]
"""How an augmentation takes image, mask and random numbers."""


def _form(augment: Augment) -> Form:
    """How to call it; decided once, as inspecting a signature takes time.

    Raises:
        SetrError: its arguments are none of those that are supported.
    """
    if isinstance(augment, torch.nn.Module):
        return "tensors"
    try:
        signature = inspect.signature(augment)
    except ValueError:  # some functions written in C have none
        return "three"
    if "rng" in signature.parameters:
        return "rng"
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return "names"
    forms: tuple[Form, ...] = ("two", "three")
    for count, form in enumerate(forms, 2):
        with contextlib.suppress(TypeError):
            signature.bind(*range(count))
            return form
    raise UsageError(f"augment takes {signature}; write it for (image, mask, rng) or (image, mask)")


def _called(
    form: Form, augment: Augment, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator
) -> Any:
    match form:
        case "tensors":
            return _with_tensors(augment, image, mask)
        case "rng":
            return augment(image, mask, rng=rng)
        case "names":
            return augment(image=image, mask=mask)
        case "three":
            return augment(image, mask, rng)
        case "two":
            return augment(image, mask)


def _with_tensors(augment: Augment, image: np.ndarray, mask: np.ndarray) -> Any:
    """As torchvision's v2 does, which ignores plain arrays silently."""
    from setr import _torchvision  # noqa: F401  must come before torchvision  # isort: skip
    from torchvision import tv_tensors

    found = augment(
        tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)),
        tv_tensors.Mask(torch.from_numpy(mask)),
    )
    if not (isinstance(found, tuple | list) and [getattr(x, "ndim", 0) for x in found] == [3, 2]):
        return found
    return found[0].permute(1, 2, 0).numpy(), found[1].numpy()


# --- random numbers -------------------------------------------------------------------------------


@contextlib.contextmanager
def _seeded(augment: Augment, seed: int) -> Iterator[None]:
    """Seed the generators of the transform, of Python, numpy, torch (CPU) and OpenCV.

    All but the first and the last are restored.
    """
    # albumentations: set_random_state is preferred, as AlbumentationsX adds the worker to a seed
    if hasattr(augment, "set_random_state"):
        augment.set_random_state(np.random.default_rng(seed), random.Random(seed))
    elif hasattr(augment, "set_random_seed"):
        augment.set_random_seed(seed)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    cv2.setRNGSeed(seed & 0x7FFFFFFF)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
