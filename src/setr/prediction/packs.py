"""Outputs packed into tar shards (webdataset layout) or Parquet files, for millions of images.

A pack is written whole, then its rows go to the manifest. A run that was killed between the two
finds a pack without rows and removes it, so that no image is in two packs.
"""

from __future__ import annotations

import io
import re
import tarfile
from typing import Any, Literal

from setr._extras import import_extra
from setr.batch import Outcome
from setr.prediction.manifest import Manifest
from setr.reading.files import printable
from setr.reading.storage import Storage

PACK_BYTES = 256 << 20
"""A pack of this many bytes is written, however few images it holds."""


class Packer:
    """Collects outcomes and writes a pack when there are enough.

    Args:
        storage: the output folder; packs in it that no row of the manifest names are removed.
        form: `tar` or `parquet`; `no` writes no packs, only the manifest.
        stem: what the packs' names begin with.
        samples: images per pack.
    """

    def __init__(
        self,
        storage: Storage,
        manifest: Manifest,
        form: Literal["no", "tar", "parquet"],
        *,
        stem: str,
        samples: int,
    ) -> None:
        if form == "parquet":
            import_extra("pyarrow.parquet", "parquet", "--pack parquet")
        self.storage, self.manifest, self.form = storage, manifest, form
        self.stem, self.samples = stem, samples
        self._waiting: list[Outcome] = []
        self._bytes = self._number = 0
        pattern = re.compile(rf"{re.escape(stem)}-\d{{6,}}\.(tar|parquet)")
        for name in storage.names(f"{stem}-") if form != "no" else ():
            if pattern.fullmatch(name) and name not in manifest.packs:
                storage.delete(name)

    def add(self, outcome: Outcome) -> None:
        """Add an outcome; one without files to pack goes to the manifest at once."""
        if not outcome.files:
            self.manifest.append([outcome.row])
            return
        self._waiting.append(outcome)
        self._bytes += sum(map(len, outcome.files.values()))
        if len(self._waiting) >= self.samples or self._bytes >= PACK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the outcomes collected so far as a pack."""
        if not self._waiting:
            return
        while (name := f"{self.stem}-{self._number:06}.{self.form}") in self.manifest.packs:
            self._number += 1
        encode = _tar if self.form == "tar" else _parquet
        self.storage.write(name, encode(self._waiting))
        self.manifest.packs.add(name)
        pack = [name, len(self._waiting)]
        self.manifest.append({**outcome.row, "pack": pack} for outcome in self._waiting)
        self._waiting, self._bytes = [], 0


def _tar(outcomes: list[Outcome]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for outcome in outcomes:
            for name, data in outcome.files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _parquet(outcomes: list[Outcome]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = [_kind(name) for name in outcomes[0].files]
    columns: dict[str, Any] = {
        key: [printable(outcome.row[key]) for outcome in outcomes] for key in ("name", "input")
    }
    columns |= {key: [outcome.row[key] for outcome in outcomes] for key in ("width", "height")}
    for position, kind in enumerate(kinds):
        values = [list(outcome.files.values())[position] for outcome in outcomes]
        columns[kind] = pa.array(values, pa.large_binary())
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), buffer, compression="none", row_group_size=100)
    return bytes(buffer.getvalue())


def _kind(name: str) -> str:
    return name.rsplit(".", 2)[-2]
