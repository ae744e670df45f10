"""One file of a hub repository as a local path: the only place that asks the network for anything.

All files of a repository come from one commit, that of the first one fetched, so that a push
between two files cannot mix them. What the cache holds of a commit is never asked for again.
"""

import contextlib
import os
import re
import threading
from pathlib import Path

from neo_peft.errors import InputError
from neo_peft.system.files import write_text

SECONDS = 10  # the longest that a hub which does not answer may hold a user up

# the commit of each repository, kind and revision that this process has asked for
_commits: dict[tuple[str, str, str | None], str] = {}


def hub_file(
    repository: str, filename: str, kind: str = "model", revision: str | None = None
) -> Path:
    """Return the local path of a file of a hub repository, fetched unless it is in the cache
    already.

    `kind` is "model" or "dataset", `revision` a branch, a tag or a commit, main by default. Raises
    FileNotFoundError where the repository has no such file, InputError where the hub, the
    repository or the revision cannot be had.
    """
    # Read by huggingface_hub at its import, which is why it is imported in functions.
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(SECONDS // 2))
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", str(SECONDS // 2))
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    asked = repository, kind, revision
    revision = _commits.get(asked, revision or "main")
    try:
        path = _fetch(repository, filename, kind, revision)
    except InputError:
        path = _cached(repository, filename, kind, revision)  # of a day when it could be had
        if path is None:
            raise
    snapshot = path.parents[filename.count("/")]
    _commits[asked] = commit = snapshot.name
    # A branch's commit is noted where huggingface_hub does, for a day without network.
    ref = snapshot.parents[1] / "refs" / revision
    with contextlib.suppress(OSError):  # a cache that may only be read
        if not _is_commit(revision) and not (ref.exists() and ref.read_text() == commit):
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_text(ref, commit)
    return path


def _cached(repository: str, filename: str, kind: str, revision: str) -> Path | None:
    """Return a file's path in the cache, or None. Raise FileNotFoundError where the cache knows
    that the repository lacks it."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    with contextlib.suppress(HFValidationError):  # what is no repository's name is in no cache
        path = try_to_load_from_cache(repository, filename, repo_type=kind, revision=revision)
        if path is _CACHED_NO_EXIST:
            raise FileNotFoundError(f"{repository} has no file {filename}")
        return path and Path(path)


def _fetch(repository: str, filename: str, kind: str, revision: str) -> Path:
    """Fetch a file into the cache, if it is not there. Raise an error that names what failed."""
    from huggingface_hub import constants, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if _is_commit(revision) and (path := _cached(repository, filename, kind, revision)):
        return path
    failed = f"the hub at {constants.ENDPOINT} cannot be reached"
    try:
        # By its commit, since main may move between the library's question and its download too.
        commit = _ask(hf_hub_url(repository, filename, repo_type=kind, revision=revision))
        failed = "the download broke off"
        return Path(hf_hub_download(repository, filename, repo_type=kind, revision=commit))
    except RemoteEntryNotFoundError as error:
        raise FileNotFoundError(f"{repository} has no file {filename}") from error
    except Exception as error:  # the transport has its own errors: refused, timed out, cut off
        if isinstance(error, OSError) and error.errno:
            raise  # of this machine: a full disk, a cache that may not be written
        status = getattr(getattr(error, "response", None), "status_code", None)
        came = f"HTTP {status}" if status else type(error).__name__
        reason = _refusal(error, status, revision) or f"{failed} ({came})"
        raise InputError(
            f"{repository}: {reason}, and {filename} is not in the cache; without network use "
            "--model neo-mini and --data sample, or name local folders with --model and --data"
        ) from error


def _refusal(error: Exception, status: int | None, revision: str | None) -> str | None:
    """Return what was refused, and by whom; None where nobody answered."""
    from huggingface_hub.errors import (
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, RevisionNotFoundError):
        return f"the hub has no revision {revision} of it"
    if isinstance(error, (RepositoryNotFoundError, HFValidationError)) or status in (401, 403):
        return "the hub has no such repository, or a private one that needs a token in HF_TOKEN"
    return None


def _ask(url: str) -> str:
    """Ask for a file's commit, in time. hf_hub_download itself would ask a silent hub again for
    minutes.

    In a thread, since a resolver or a firewall that says nothing can outlast the timeout of a
    single question.
    """
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.errors import FileMetadataError, RemoteEntryNotFoundError

    answers: list[str | Exception | None] = [TimeoutError()]

    def ask():
        try:
            answers.append(get_hf_file_metadata(url, timeout=SECONDS // 2).commit_hash)
        except RemoteEntryNotFoundError as error:
            # an answer too; hf_hub_download will hear it again, and note it
            answers.append(error.response.headers.get("X-Repo-Commit"))
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS - 3)
    answer = answers[-1]
    if answer is None:
        raise FileMetadataError("an answer without a commit: no hub's")
    if isinstance(answer, Exception):
        raise answer
    return answer


def _is_commit(revision: str) -> bool:
    return re.fullmatch("[0-9a-f]{40}", revision) is not None
