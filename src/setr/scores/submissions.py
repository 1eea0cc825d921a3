"""Predictions in the submission format of the Cityscapes and ADE20K test servers.

Cityscapes: one 8-bit PNG per image, 2048x1024, of label ids (7, 8, 11, …, 33, not training ids),
named CITY_SEQUENCE_FRAME*.png, each image once (cityscapesScripts, getPrediction of
evaluation/evalPixelLevelSemanticLabeling.py). ADE20K: one 8-bit PNG per image of ids 1 .. 150,
named as the image (CSAILVision/sceneparsing README "Submission format"). Both without palette, in
one zip file.
"""

from __future__ import annotations

import io
import os
import re
import uuid
import zipfile
from pathlib import Path
from types import TracebackType

import numpy as np

from setr.arguments.choices import ServerName
from setr.errors import SetrError, UsageError
from setr.images import encode_png
from setr.labels import IGNORE, Labels, known_labels
from setr.writing import write_errors

_NAMES = {
    "cityscapes": (re.compile(r"[a-z-]+_\d{6}_\d{6}"), "CITY_000000_000019_leftImg8bit.png"),
    "ade20k": (re.compile(r"ADE_test_\d{8}$"), "ADE_test_00000001.jpg"),
}
TEST_IMAGES = {"cityscapes": 1525, "ade20k": 3352}
"""Images of each server's test split, of which it wants all (paper, section 4.1)."""
_SIZE = (1024, 2048)  # of every Cityscapes image
_STAMP = (2021, 1, 1, 0, 0, 0)  # of every member, so that equal predictions make equal files


class Submission:
    """A zip file for a test server, written in a `with` block by one `add` per image.

    The file appears under its name when complete; after an exception nothing is written.

    Args:
        server: the test server.
        labels: the model's classes, which must be the server's.

    Raises:
        SetrError: other classes, or no prediction was added.
    """

    def __init__(self, server: ServerName, path: Path, labels: Labels) -> None:
        known = known_labels(server)
        if labels.classes != known.classes:
            raise UsageError(
                f"--submit {server}: the model's {len(labels.classes)} classes are not the "
                f"{len(known.classes)} of {server}; give a model trained on {server}"
            )
        self.server, self.path = server, path
        self.raw_ids = raw_ids(known)
        self.names: set[str] = set()
        self._part = path.with_name(f".{uuid.uuid4().hex}.part")

    def __enter__(self) -> Submission:
        with write_errors(self.path):
            self._zip = zipfile.ZipFile(self._part, "w", zipfile.ZIP_STORED)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            with write_errors(self.path):
                self._zip.close()
                if kind is None and self.names:
                    os.replace(self._part, self.path)
        finally:
            self._part.unlink(missing_ok=True)
        if kind is None and not self.names:
            raise SetrError(f"{self.path}: no predictions to submit")

    def add(self, image: str, prediction: np.ndarray) -> None:
        """Add one prediction.

        Args:
            image: file name of the image.
            prediction: (H, W) training ids 0 .. K-1.

        Raises:
            SetrError: a name, size or id the server would reject, an image given twice, or a full
                disk.
        """
        stem = Path(image).stem
        pattern, example = _NAMES[self.server]
        matched = pattern.match(stem)
        if not matched:
            raise SetrError(f"{image}: not a test image of {self.server}; names are like {example}")
        if matched[0] in self.names:
            raise SetrError(f"{image}: two predictions for {matched[0]}; the server takes one")
        if self.server == "cityscapes" and prediction.shape != _SIZE:
            raise SetrError(
                f"{image}: prediction is {prediction.shape[1]}x{prediction.shape[0]}; the server "
                f"takes {_SIZE[1]}x{_SIZE[0]}"
            )
        if prediction.size and prediction.max() >= len(self.raw_ids):
            raise SetrError(f"{image}: predicted id {prediction.max()} is not a class")
        member = zipfile.ZipInfo(f"{stem}.png", _STAMP)
        with write_errors(self.path):
            self._zip.writestr(member, encode_png(self.raw_ids[prediction]))
        self.names.add(matched[0])


def raw_ids(labels: Labels) -> np.ndarray:
    """(K,) uint8: the id in the released masks for each training id."""
    table = {train: raw for raw, train in (labels.label_map or {}).items() if train != IGNORE}
    return np.array([table[k] for k in range(len(labels.classes))], np.uint8)


def check_submission(server: ServerName, path: Path) -> int:
    """Check a submission against the server's rules and return the number of images.

    Raises:
        SetrError: the first violation found.
    """
    from PIL import Image

    allowed = set(raw_ids(known_labels(server)).tolist())
    seen: set[str] = set()
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            matched = _NAMES[server][0].match(Path(name).stem)
            if not name.endswith(".png") or not matched or matched[0] in seen:
                raise SetrError(
                    f"{path}: {name} is not a file name for {server}, or its image is there twice"
                )
            seen.add(matched[0])
            with Image.open(io.BytesIO(file.read(name))) as image:
                if image.mode != "L":
                    raise SetrError(
                        f"{path}: {name} has mode {image.mode}; the server takes 8-bit ids without "
                        "palette"
                    )
                ids = np.asarray(image)
            if server == "cityscapes" and ids.shape != _SIZE:
                raise SetrError(
                    f"{path}: {name} is {ids.shape[1]}x{ids.shape[0]}; the server takes "
                    f"{_SIZE[1]}x{_SIZE[0]}"
                )
            if not set(np.unique(ids).tolist()) <= allowed:
                raise SetrError(f"{path}: {name} contains ids the server does not take")
    return len(seen)
