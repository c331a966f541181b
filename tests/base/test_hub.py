"""A name is a folder, a copy in the cache, a download, or refused in a sentence; the network comes last."""

import errno
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from finetooth.base import hub
from finetooth.base.errors import ConfigError


class Hub:
    """Stands for the hub's library: a cache with a folder or nothing, and a network that fails or not."""

    def __init__(self, *, cached: Path | None = None, online: Path | Exception | None = None):
        self.cached = cached
        self.online = online
        self.num_downloads = 0

    def __call__(
        self, name: str, *, allow_patterns: list[str], local_files_only: bool = False, **options: str | None
    ) -> str:
        assert options in ({}, {"repo_type": "model", "revision": None})
        if local_files_only:
            if self.cached is None:
                raise LocalEntryNotFoundError("not cached")
            return str(self.cached)
        self.num_downloads += 1
        self.patterns = allow_patterns
        if isinstance(self.online, Exception):
            raise self.online
        return str(self.online)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch):
    def replace(stand_in: Hub) -> Hub:
        monkeypatch.setattr(hub, "snapshot_download", stand_in)
        return stand_in

    return replace


def find(name: str) -> Path:
    return hub.local_folder(
        name, place="model.path", required=("config.json", "*.bin"), patterns=("*.json", "*.bin")
    )


def refusal(name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        find(name)
    return str(caught.value)


def http_error(kind: type[HfHubHTTPError], status: int = 404) -> HfHubHTTPError:
    response = httpx.Response(status, request=httpx.Request("GET", "https://hub.invalid/someone/model"))
    return kind("refused", response=response)


def wrapped(cause: Exception) -> LocalEntryNotFoundError:
    """As the library wraps what it met while it fetched."""
    error = LocalEntryNotFoundError("cannot be fetched")
    error.__cause__ = cause
    return error


def test_a_folder_is_taken_as_it_is(tmp_path: Path, use: Any):
    stand_in = use(Hub())
    assert find(str(tmp_path)) == tmp_path
    assert stand_in.num_downloads == 0


def test_the_home_folder_is_meant_by_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "base").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("~/base") == tmp_path / "base"


def test_a_complete_copy_in_the_cache_needs_no_network(tmp_path: Path, use: Any):
    for name in ("config.json", "model.bin"):
        (tmp_path / name).touch()
    stand_in = use(Hub(cached=tmp_path, online=OSError("no network")))
    assert find("someone/model") == tmp_path
    assert stand_in.num_downloads == 0


def test_an_incomplete_copy_is_fetched(tmp_path: Path, use: Any):
    (tmp_path / "config.json").touch()
    stand_in = use(Hub(cached=tmp_path, online=tmp_path / "fresh"))
    assert find("someone/model") == tmp_path / "fresh"
    assert (stand_in.num_downloads, stand_in.patterns) == (1, ["*.json", "*.bin"])


def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "model.bin").touch()
    assert refusal(f"{tmp_path}/model.bin") == (
        f"model.path: {tmp_path}/model.bin is a file; name a folder or a hub repository"
    )


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "~/nowhere-at-all", "two/slashes/nowhere"])
def test_what_can_only_be_a_folder_is_never_looked_for_on_the_hub(name: str, use: Any):
    stand_in = use(Hub())
    assert refusal(name) == (
        f"model.path: {name}: no such folder; name an existing folder or a hub repository"
    )
    assert stand_in.num_downloads == 0


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            HFValidationError("bad name"),
            "neither a folder nor a valid hub name; name an existing folder or a hub repository",
        ),
        (http_error(GatedRepoError), "gated on the hub; accept its terms on its page and set HF_TOKEN"),
        (
            http_error(RepositoryNotFoundError),
            "not on the hub; check the name; private ones need HF_TOKEN",
        ),
        (
            LocalEntryNotFoundError("no network"),
            "not in the local cache, and the hub is unreachable; check the network",
        ),
        (
            http_error(HfHubHTTPError, 401),
            "not in the local cache, and the hub answered with HTTP status 401; check HF_TOKEN",
        ),
        (
            http_error(HfHubHTTPError, 503),
            "not in the local cache, and the hub answered with HTTP status 503; try again later",
        ),
        (
            wrapped(http_error(HfHubHTTPError, 502)),
            "not in the local cache, and the hub answered with HTTP status 502; try again later",
        ),
        (
            OSError(errno.ENOSPC, "full"),
            "cannot be kept in /kept/here (No space left on device); "
            "free space there or set HF_HOME to another place",
        ),
        (
            wrapped(httpx.ConnectError("refused")),
            "not in the local cache, and the hub is unreachable; check the network",
        ),
        (
            httpx.ReadTimeout("slow"),
            "not in the local cache, and the hub is unreachable; check the network",
        ),
        (OSError("no network"), "not in the local cache, and the hub is unreachable; check the network"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_hub_refuses_is_a_sentence(
    error: Exception, sentence: str, use: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/kept/here")
    use(Hub(online=error))
    assert refusal("someone/model") == f"model.path: someone/model: {sentence}"


def test_a_name_without_slash_may_be_a_folder_mistyped(use: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    use(Hub(online=http_error(RepositoryNotFoundError)))
    assert refusal("bsae") == (
        "model.path: bsae: no folder of that name, and not on the hub; "
        "check the name; private ones need HF_TOKEN"
    )


def test_offline_mode_says_so(use: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    use(Hub(online=LocalEntryNotFoundError("offline")))
    assert refusal("someone/model") == (
        "model.path: someone/model: not in the local cache, and offline mode is on; "
        "unset HF_HUB_OFFLINE to fetch it"
    )


def test_the_library_itself_is_asked_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The stand-in above behaves as the library does where nothing is cached and nothing may be fetched."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert refusal("nowhere") == (
        "model.path: nowhere: no folder of that name, and not in the local cache, and offline mode is on; "
        "unset HF_HUB_OFFLINE to fetch it"
    )
    assert refusal("--/x") == (
        "model.path: --/x: neither a folder nor a valid hub name; name an existing folder or a hub repository"
    )
