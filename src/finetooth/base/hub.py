"""Finds the local folder of a model or tokenizer named by folder or hub name; the network comes last."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, snapshot_download  # pyright: ignore[reportUnknownVariableType]
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from finetooth.base.errors import ConfigError, problem


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
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except HFValidationError:
        fact, remedy = "neither a folder nor a valid hub name", "name an existing folder or a hub repository"
    except GatedRepoError:
        fact, remedy = "gated on the hub", "accept its terms on its page and set HF_TOKEN"
    except RepositoryNotFoundError:
        fact, remedy = "not a folder, and not on the hub", "check the name; private ones need HF_TOKEN"
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        fact, remedy = "not in the local cache, and the hub is unreachable", "check the network"
        if constants.is_offline_mode():
            fact, remedy = (
                "not in the local cache, and offline mode is on",
                "unset HF_HUB_OFFLINE to fetch it",
            )
    raise ConfigError(problem(place, f"{name}: {fact}", remedy))


def _cached(name: str, patterns: Sequence[str]) -> Path | None:
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
