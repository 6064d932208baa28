"""The Hugging Face Hub: a bundle as one commit of a model repository.

The bundle lies in a folder of its name, so that a repository is a model repository of Triton's and
the folder is the bundle, no file more: the Hub puts files of its own beside it. ``README.md`` there
is the bundle's card.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from d2nas._version import __version__
from d2nas.errors import BusyError, ConfigError, StorageError, brief_reason
from d2nas.telemetry import disable_hub_telemetry

from ..bundle.documents import CARD
from ..bundle.reader import Bundle
from ..credentials import reason_without_credentials

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

README = "README.md"
_TOKEN_HINT = "set HF_TOKEN to a token that may write, or log in: hf auth login"
_AGAIN = "push again when it answers; until then the bundle is there whole or not at all"


def push_to_hub(
    repository: str, bundle: Bundle, files: Mapping[str, bytes], *, public: bool
) -> dict[str, Any]:
    """Commit a bundle's ``repository_files`` to ``repository`` (``OWNER/NAME``), which is made
    where there is none; return the commit, as JSON data.

    What an earlier push left in the bundle's folder goes in the same commit. Raises ``ConfigError``
    without a token or permission, and where the repository is public and ``public`` is not asked
    for; ``BusyError`` where somebody else commits meanwhile, ``StorageError`` where the Hub does
    not answer. All of them leave the repository as it was, or new and empty.
    """
    with _errors_told(repository):
        api = _connect()
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        found = _find(api, repository)
        if found is None:
            api.create_repo(repository, private=not public, exist_ok=True)
            found = api.model_info(repository)
        elif not public and found.private is False:
            raise ConfigError(
                f"{repository} is public, and so would be the bundle",
                hint="--public pushes it all the same",
            )
        folder = f"{bundle.name}/"
        there = [one.rfilename for one in found.siblings or ()]
        stale = [path for path in there if path.startswith(folder) and path not in files]
        commit = api.create_commit(
            repository,
            [
                *(CommitOperationAdd(path, data) for path, data in files.items()),
                *(CommitOperationDelete(path) for path in stale),
            ],
            commit_message=f"{bundle.name}, version {bundle.number}",
            commit_description=f"d2nas {__version__}; the bundle's digest is {bundle.digest}",
            parent_commit=found.sha,
        )
    return {
        "url": f"{api.endpoint}/{repository}",
        "commit": commit.oid,
        "private": found.private,
        "removed": stale,
    }


def repository_files(bundle: Bundle, contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return what a repository holds of a bundle, by path."""
    files = {f"{bundle.name}/{path}": data for path, data in contents.items()}
    return {README: contents[CARD], **files}


def _connect() -> "HfApi":
    disable_hub_telemetry()
    # Plain HTTP: Xet's client retries for minutes, and another server than the Hub has no Xet.
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import disable_progress_bars

    token = get_token()
    if token is None:
        raise ConfigError("there is no token for the Hugging Face Hub", hint=_TOKEN_HINT)
    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return HfApi(
        endpoint=os.environ.get("HF_ENDPOINT"),
        token=token,
        library_name="d2nas",
        library_version=__version__,
    )


def _find(api: "HfApi", repository: str) -> "ModelInfo | None":
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.model_info(repository)
    except RepositoryNotFoundError as error:
        if error.response.status_code == 404:
            return None
        raise  # the Hub says so to a token that it does not know, too


@contextmanager
def _errors_told(repository: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

    try:
        yield
    except HFValidationError as error:
        raise ConfigError(f"invalid name {repository}: {brief_reason(error)}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise ConfigError("the Hub does not know the token (401)", hint=_TOKEN_HINT) from error
        if status == 403:
            raise ConfigError(
                f"the token may not write to {repository} (403)",
                hint="choose another OWNER, or a token with write access to it",
            ) from error
        if status in (409, 412):
            raise BusyError(
                f"{repository} changed while the bundle was pushed ({status})", hint="push again"
            ) from error
        reason = reason_without_credentials(error)
        raise StorageError(f"{repository}: the Hub refuses: {reason}", hint=_AGAIN) from error
    except (HTTPError, OSError, RuntimeError) as error:
        reason = reason_without_credentials(error)
        raise StorageError(f"{repository}: the Hub is not there: {reason}", hint=_AGAIN) from error
