"""Files from the Hugging Face Hub or an http(s) URL, cached locally."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from setr._extras import unreported
from setr.errors import SetrError, UsageError, first_line
from setr.reading.files import require_alive
from setr.reading.urls import download_file, split_url, without_password

_PREFIX = re.compile(r"^hf([-_]hub)?:(//)?")
"""What other libraries write before the name of a repository, at the start of a text."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".npz")
"""Of files with weights."""


def import_hub() -> Any:
    """The client of the Hugging Face Hub, which downloads and uploads and reports nothing else."""
    unreported("huggingface_hub")
    for module in ("constants", "errors"):  # become attributes by this
        importlib.import_module(f"huggingface_hub.{module}")
    return importlib.import_module("huggingface_hub")


def is_repository(source: str) -> bool:
    """Whether this is `owner/name` or `owner/name@revision`, not a local path or a weight file.

    A revision is a branch, a tag or a commit. The prefixes `hf-hub:` and `hf_hub:` of timm, `hf:`
    and `hf://` may stand before it.
    """
    repo_id = repository_name(source)
    if Path(repo_id).suffix in WEIGHT_SUFFIXES or Path(source).exists():
        return False
    return bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+", repo_id))


def repository_name(source: str) -> str:
    """The `owner/name` of a repository, without what may stand before and after it."""
    return _PREFIX.sub("", source).partition("@")[0]


def at_revision(source: str | os.PathLike, revision: str | None) -> str:
    """`owner/name@revision`, or the source itself without a revision.

    Raises:
        SetrError: a revision for a source that is not a Hub repository, or has one already.
    """
    source = os.fspath(source)
    if revision is None:
        return source
    if not is_repository(source) or "@" in source:
        raise UsageError(
            f"revision '{revision}': only an owner/name on the Hub has revisions, and {source} is "
            "none; leave it out"
        )
    return f"{source}@{revision}"


def fetch(
    source: str,
    files: tuple[str, ...],
    *,
    is_complete: Callable[[Path], object] = Path.is_dir,
    kind: Literal["model", "dataset"] = "model",
) -> Path:
    """Download files of a repository and return their local folder; cached ones need no network.

    Args:
        source: `owner/name` or `owner/name@revision`.
        files: names or shell patterns of the files.
        is_complete: whether a cached folder has all that is needed; an interrupted download leaves
            an incomplete one. By default any folder counts as complete.
        kind: of the repository.

    Raises:
        SetrError: no such repository, a gated one, or not in the cache and no network.
    """
    require_alive(source)
    hub = import_hub()
    errors, snapshot_download = hub.errors, hub.snapshot_download
    repo_id, at, revision = _PREFIX.sub("", source).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id) or ".." in source or (at and not revision):
        raise UsageError(
            f"{source}: not a Hub repository; those are called owner/name, or owner/name@revision"
        )
    options = {"revision": revision or None, "allow_patterns": list(files), "repo_type": kind}
    fix = "correct the path, or download it on another machine and give the path"
    missing = f"{source}: no such folder here, and not in the Hub's cache"
    try:
        folder = Path(snapshot_download(repo_id, local_files_only=True, **options))
        if is_complete(folder):
            return folder
    except errors.LocalEntryNotFoundError:
        pass
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "on", "yes"):
        raise SetrError(f"{missing}, and HF_HUB_OFFLINE is set; {fix}")
    _require_network(missing, fix)
    try:
        return Path(snapshot_download(repo_id, **options))
    except errors.GatedRepoError:
        raise SetrError(
            f"{repo_id}: is gated; accept its terms on https://huggingface.co/{repo_id} and run "
            "`hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise UsageError(
            f"{repo_id}: has no revision '{revision or 'main'}'; give a branch, tag or commit"
        ) from None
    except errors.RepositoryNotFoundError:
        raise SetrError(
            f"{repo_id}: no such folder here, and no such repository on the Hub, or it is private "
            "(`hf auth login`)"
        ) from None
    except Exception as error:
        raise SetrError(f"{source}: download failed ({first_line(error):.80}); {fix}") from None


def fetched(url: str) -> Path:
    """Download a file from an http(s) URL into torch's cache, unless it is already there.

    Raises:
        SetrError: no file at that URL, or no network.
    """
    import torch

    shown, name = without_password(url), Path(unquote(split_url(url).path)).name
    if name in ("", ".."):
        raise UsageError(f"{shown}: names no file")
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]  # several URLs may have one file name
    path = Path(torch.hub.get_dir(), "setr", digest, name)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            download_file(url, path)
        except SetrError as error:
            raise SetrError(f"{error}; download it on another machine and give the path") from None
    return path


def _require_network(missing: str, fix: str) -> None:
    """Fail at once if the Hub cannot be reached; its client would retry for a minute."""
    if urllib.request.getproxies():
        return
    address = urlsplit(import_hub().constants.ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=10).close()
    except OSError as error:
        raise SetrError(
            f"{missing}, and {address.hostname} cannot be reached ({error.strerror or error}); "
            f"{fix}"
        ) from None
