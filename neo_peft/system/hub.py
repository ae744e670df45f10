"""Download a file of a hub repository. No other module uses the network.

All files of a repository are of one commit, that of the first file: a push between two downloads
cannot mix versions. Files of that commit that are in the cache are not downloaded again.
"""

import contextlib
import os
import re
import threading
from pathlib import Path

from neo_peft.errors import InputError
from neo_peft.system.files import write_text

SECONDS = 10  # longest time that a user waits for a hub that does not respond

# (repository, kind, revision) -> the commit that this process uses
_commits: dict[tuple[str, str, str | None], str] = {}


def hub_file(
    repository: str, filename: str, kind: str = "model", revision: str | None = None
) -> Path:
    """Return the local path of a file of a hub repository. Download it unless it is in the cache.

    `kind` is "model" or "dataset". `revision` is a branch, a tag or a commit; main by default.
    Raises FileNotFoundError if the repository has no such file, and InputError if the hub, the
    repository or the revision is not available.
    """
    _set_timeouts()
    key = repository, kind, revision
    revision = _commits.get(key, revision or "main")
    try:
        path = _fetch(repository, filename, kind, revision)
    except InputError:
        path = _cached(repository, filename, kind, revision)  # from an earlier download
        if path is None:
            raise
    snapshot = path.parents[filename.count("/")]
    _commits[key] = commit = snapshot.name
    # Write the branch's commit to the file where huggingface_hub has it, for use without network.
    ref = snapshot.parents[1] / "refs" / revision
    with contextlib.suppress(OSError):  # the cache can be read-only
        if not _is_commit(revision) and not (ref.exists() and ref.read_text() == commit):
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_text(ref, commit)
    return path


def _set_timeouts() -> None:
    """Set what huggingface_hub reads at its import. So functions import it, not this module."""
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(SECONDS // 2))
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", str(SECONDS // 2))
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def cached_folder(repository: str, revision: str | None) -> Path | None:
    """Return the folder of a model's repository in the cache; None if it is not there."""
    _set_timeouts()
    with contextlib.suppress(FileNotFoundError):
        config = _cached(repository, "config.json", "model", revision or "main")
        return config and config.parent


def repository_of(folder: Path) -> str | None:
    """Return owner/name@commit for a folder of the hub's cache, and None for another folder."""
    match = re.search(r"/models--([^/]+)/snapshots/([0-9a-f]{40})$", folder.absolute().as_posix())
    return f"{match[1].replace('--', '/')}@{match[2]}" if match else None


def _cached(repository: str, filename: str, kind: str, revision: str) -> Path | None:
    """Return a file's path in the cache, or None. Raise FileNotFoundError if the cache has recorded
    that the repository has no such file."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    with contextlib.suppress(HFValidationError):  # an invalid name is in no cache
        path = try_to_load_from_cache(repository, filename, repo_type=kind, revision=revision)
        if path is _CACHED_NO_EXIST:
            raise FileNotFoundError(f"{repository} has no file {filename}")
        return path and Path(path)


def _fetch(repository: str, filename: str, kind: str, revision: str) -> Path:
    """Download a file into the cache unless it is there. Raise InputError with the reason if that
    fails."""
    from huggingface_hub import constants, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if _is_commit(revision) and (path := _cached(repository, filename, kind, revision)):
        return path
    failed = f"the hub at {constants.ENDPOINT} cannot be reached"
    try:
        # Download by commit, because a branch can change between two requests of huggingface_hub.
        commit = _ask_for_commit(
            hf_hub_url(repository, filename, repo_type=kind, revision=revision)
        )
        failed = "the download was interrupted"
        return Path(hf_hub_download(repository, filename, repo_type=kind, revision=commit))
    except RemoteEntryNotFoundError as error:
        raise FileNotFoundError(f"{repository} has no file {filename}") from error
    except Exception as error:  # the HTTP library has many: refused, timed out, interrupted
        if isinstance(error, OSError) and error.errno:
            raise  # of this machine: a full disk, a cache that is read-only
        status = getattr(getattr(error, "response", None), "status_code", None)
        cause = f"HTTP {status}" if status else type(error).__name__
        reason = _refusal(error, status, revision) or f"{failed} ({cause})"
        raise InputError(
            f"{repository}: {reason}, and {filename} is not in the cache; without network use "
            "--model neo-mini and --data sample, or name local folders with --model and --data"
        ) from error


def _refusal(error: Exception, status: int | None, revision: str | None) -> str | None:
    """Return why the hub or the settings refused the request; None for a failed connection."""
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


def _ask_for_commit(url: str) -> str:
    """Return the commit of a file. Raise an error within SECONDS.

    hf_hub_download alone would repeat its request for minutes if the hub does not respond. The
    request runs in a thread, because a name server or a firewall can block for longer than the
    timeout of the request.
    """
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.errors import FileMetadataError, RemoteEntryNotFoundError

    answers: list[str | Exception | None] = [TimeoutError()]

    def ask():
        try:
            answers.append(get_hf_file_metadata(url, timeout=SECONDS // 2).commit_hash)
        except RemoteEntryNotFoundError as error:
            # There is no such file. hf_hub_download will get the same response, and cache it.
            answers.append(error.response.headers.get("X-Repo-Commit"))
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS - 3)
    answer = answers[-1]
    if answer is None:
        raise FileMetadataError("the response has no commit, so it is not from a hub")
    if isinstance(answer, Exception):
        raise answer
    return answer


def _is_commit(revision: str) -> bool:
    return re.fullmatch("[0-9a-f]{40}", revision) is not None
