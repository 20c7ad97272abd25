"""The Hugging Face Hub: repositories into its cache, folders into repositories. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from adaptx.errors import HubError

_NAME = re.compile(r"(?!.*(?:--|\.\.))(\w[\w.-]*/\w[\w.-]*)(?:@(.+))?", re.ASCII)
TOKENIZER_FILES = (
    *("tokenizer*.json", "special_tokens_map.json", "vocab.*", "merges.txt", "*.model"),
)
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def split(name: str) -> tuple[str, str | None] | None:
    """`user/name` and the revision (or None) of `user/name[@revision]`; None for no such name."""
    found = _NAME.fullmatch(name)
    return (found[1], found[2]) if found else None


def is_repository(name: str) -> bool:
    """Whether others find it by this name: a repository's, and not that of a folder here."""
    return split(name) == (name, None) and not Path(name).exists()


def download(repository: str, files: Sequence[str], revision: str | None = None) -> Path:
    """The folder, in the Hub's cache, of a repository's files whose names match one of `files`.

    Nothing is downloaded twice, and without a network the cache answers. Raises HubError.
    """
    with _explained(repository, revision, "read"):
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=[*files], ignore_patterns=["*/*"]
            )
        )


def upload(
    folder: Path,
    repository: str,
    files: Sequence[str],
    stale: Sequence[str] = (),
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Put `files` of a folder into a repository, and take `stale` out; the commit's address.

    Repository and branch are made when they don't exist; other files stay. Raises HubError.
    """
    with _explained(repository, revision, "write"):
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repository, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            commit_message=message,
            allow_patterns=[*files],
            delete_patterns=[*stale] or None,
        )
        return str(commit.commit_url)


@contextmanager
def _explained(repository: str, revision: str | None, what: str) -> Iterator[None]:
    """What huggingface_hub raises inside becomes a HubError with its remedy."""
    from huggingface_hub import errors

    # Its HTTP client is requests, httpx or httpx2, by its version: so by the base of its own error.
    client: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    try:
        yield
    except errors.HFValidationError as error:
        raise HubError(f"{repository!r} can't be a repository's name: {_line(error)}") from error
    except (client, OSError, RuntimeError, ValueError) as error:
        raise HubError(_reason(error, repository, revision, what)) from error


def _reason(error: Exception, repository: str, revision: str | None, what: str) -> str:
    from huggingface_hub import constants, errors

    chain = tuple(e for e in (error, error.__cause__) if e is not None)
    answers = (getattr(e, "response", None) for e in chain)
    status = next((answer.status_code for answer in answers if answer is not None), None)

    def is_a(kind: type[Exception]) -> bool:
        return any(isinstance(e, kind) for e in chain)

    if is_a(errors.RevisionNotFoundError):
        return (
            f"The Hub's repository {repository!r} has no revision {revision!r}: name a branch, a "
            f"tag or a commit that it has."
        )
    if is_a(errors.GatedRepoError):
        return (
            f"The Hub's repository {repository!r} is gated: ask for access on its page, "
            f"{constants.ENDPOINT}/{repository}, then {_LOGIN}."
        )
    missing = is_a(errors.RepositoryNotFoundError)
    if status in (401, 403) and not (missing and what == "read"):
        return (
            f"The Hub doesn't let you {what} {repository!r} ({status}): {_LOGIN}, with a token "
            f"that may {what} it."
        )
    hub = f"{repository!r} is no folder here, and the Hub" if what == "read" else "The Hub"
    if missing:
        return (
            f"{hub} has no repository {repository!r} that you may {what}: check the name. "
            f"If it is a private one, {_LOGIN}."
        )
    if constants.HF_HUB_OFFLINE:
        return (
            f"{hub} can't be reached (HF_HUB_OFFLINE is set) to {what} {repository!r}. "
            f"Unset HF_HUB_OFFLINE, with a network."
        )
    return f"{hub} can't be reached to {what} {repository!r}: {_line(chain[-1])}"


def _line(error: Exception | BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") + "."
