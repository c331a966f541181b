"""Finds models, tokenizers and datasets by folder or hub name in the local cache; the network comes last."""

import contextlib
import errno
import glob
import json
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import cast

import httpx
from huggingface_hub import constants, snapshot_download  # pyright: ignore[reportUnknownVariableType]
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from finetooth.base.errors import ConfigError, problem

_INVALID_DATASET = ("not a valid hub name", "write hf://OWNER/NAME")
_NOT_KEPT = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def local_folder(name: str, *, place: str, required: Sequence[str], patterns: Sequence[str]) -> Path:
    """The folder `name` itself, its copy in the hub's cache, or a fresh download of it.

    place:    the setting the name stands in, for messages.
    required: glob patterns; a cached copy counts only if it has a file for each of them.
    patterns: which files of a hub repository are fetched.
    Honours HF_HUB_OFFLINE, HF_HOME and HF_TOKEN. Raises ConfigError for a name that is neither.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ConfigError(problem(place, f"{name} is a file", "name a folder or a hub repository"))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ConfigError(
            problem(place, f"{name}: no such folder", "name an existing folder or a hub repository")
        )
    cached = _cached(name, patterns)
    if cached is not None and all(any(cached.glob(pattern)) for pattern in required):
        return cached
    # A name with a slash is seldom a folder's; one without may well be a folder mistyped.
    no_folder = "" if "/" in name else "no folder of that name, and "
    invalid = "neither a folder nor a valid hub name", "name an existing folder or a hub repository"
    with _told(place, f"{name}: {no_folder}", invalid=invalid):
        return Path(snapshot_download(name, allow_patterns=list(patterns)))


def dataset_listing(name: str, *, place: str) -> tuple[Path, list[str]]:
    """The folder of a hub dataset's copy in the cache and the names of all its files.

    The hub is asked only where the cache does not know the dataset. Raises ConfigError.
    """
    folder = _cached(name, ["README.md"], repo_type="dataset")
    if folder is None or (names := _listed(folder)) is None:
        with _told(place, f"hf://{name}: ", invalid=_INVALID_DATASET):
            folder = Path(snapshot_download(name, repo_type="dataset", allow_patterns=["README.md"]))
        names = _listed(folder)
    if names is None:
        fact = "the list of its files is not in the cache"
        remedy = "allow the network once, with huggingface_hub 1.22 or later"
        raise ConfigError(problem(place, f"hf://{name}: {fact}", remedy))
    return folder, names


def dataset_files(name: str, names: Sequence[str], *, commit: str, place: str) -> list[Path]:
    """Copies in the cache of these files of a hub dataset; what is not there is fetched, else ConfigError."""
    patterns = [glob.escape(file) for file in names]
    folder = _cached(name, patterns, repo_type="dataset", revision=commit)
    if folder is None:
        with _told(place, f"hf://{name}: ", invalid=_INVALID_DATASET):
            folder = Path(
                snapshot_download(name, repo_type="dataset", revision=commit, allow_patterns=patterns)
            )
    return [folder / file for file in names]


@contextlib.contextmanager
def _told(place: str, subject: str, *, invalid: tuple[str, str]) -> Generator[None]:
    """What the hub's library raises becomes a ConfigError about the subject.

    invalid: fact and remedy for what cannot be a name.
    """
    try:
        yield
    except HFValidationError:
        fact, remedy = invalid
    except GatedRepoError:
        fact, remedy = "gated on the hub", "accept its terms on its page and set HF_TOKEN"
    except RepositoryNotFoundError:
        fact, remedy = "not on the hub", "check the name; private ones need HF_TOKEN"
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError, OSError) as error:
        fact, remedy = _failure_in_words(error)
    else:
        return
    raise ConfigError(problem(place, subject + fact, remedy))


def _failure_in_words(error: Exception) -> tuple[str, str]:
    """Why nothing could be fetched, and what to do; the library wraps what the network said in its own."""
    if constants.is_offline_mode():
        return "not in the local cache, and offline mode is on", "unset HF_HUB_OFFLINE to fetch it"
    causes: list[BaseException] = [error]
    while (before := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(before)
    for cause in causes:
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            remedy = "check HF_TOKEN" if status in (401, 403) else "try again later"
            return f"not in the local cache, and the hub answered with HTTP status {status}", remedy
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in _NOT_KEPT:
            fact = f"cannot be kept in {constants.HF_HUB_CACHE} ({os.strerror(cause.errno)})"
            return fact, "free space there or set HF_HOME to another place"
    return "not in the local cache, and the hub is unreachable", "check the network"


def _cached(
    name: str, patterns: Sequence[str], *, repo_type: str = "model", revision: str | None = None
) -> Path | None:
    try:
        return Path(
            snapshot_download(
                name,
                repo_type=repo_type,
                revision=revision,
                allow_patterns=list(patterns),
                local_files_only=True,
            )
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _listed(folder: Path) -> list[str] | None:
    """The names of all files at the commit of a copy, as the hub's library notes them since version 1.22."""
    try:
        noted: object = json.loads((folder.parents[1] / "trees" / f"{folder.name}.json").read_bytes())
    except (OSError, ValueError):
        return None
    files = cast(dict[str, object], noted).get("files") if isinstance(noted, dict) else None
    names = sorted(cast(dict[str, object], files)) if isinstance(files, dict) else None
    is_within = names is not None and not any(
        name.startswith("/") or ".." in name.split("/") for name in names
    )
    return names if is_within else None
