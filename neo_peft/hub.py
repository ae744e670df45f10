"""One file of a hub repository as a local path: the only place that asks the network for anything."""

import contextlib
import functools
import os
import threading
from pathlib import Path

from neo_peft.errors import InputError

SECONDS = 10  # the longest that a hub which does not answer may hold a user up


def hub_file(repository: str, filename: str, kind: str = "model", revision: str | None = None) -> Path:
    """Return the local path of a file of a hub repository, fetched unless it is in the cache already.

    `kind` is "model" or "dataset". Raises InputError when the hub, the repository or the file cannot be had.
    """
    # Read by huggingface_hub at its import, which is why it is imported here and not above.
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(SECONDS // 2))
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", str(SECONDS // 2))
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    where = {"repo_type": kind, "revision": revision}
    try:
        return Path(hf_hub_download(repository, filename, **where, local_files_only=not _hub_answers()))
    except LocalEntryNotFoundError as error:
        if try_to_load_from_cache(repository, filename, **where) is _CACHED_NO_EXIST:  # known from a time with network
            raise FileNotFoundError(f"{repository} has no file {filename}") from error
        _hub_answers.cache_clear()
        raise InputError(_advice(repository, "the hub cannot be reached and its files are not in the cache")) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"{repository} has no file {filename}") from error
    except (HfHubHTTPError, ValueError) as error:
        raise InputError(_advice(repository, "there is no such repository on the hub, or it is private")) from error
    except Exception as error:  # the transport's own errors: refused, timed out, no name
        raise InputError(_advice(repository, f"the hub cannot be reached ({type(error).__name__})")) from error


@functools.cache
def _hub_answers() -> bool:
    """Ask once whether the hub is there. hf_hub_download itself would ask again for minutes, file after file.

    In a thread, since a resolver or a firewall that says nothing can outlast the timeout of a single question.
    """
    from huggingface_hub import constants, get_session

    answered = threading.Event()

    def ask():
        with contextlib.suppress(Exception):  # the transport's own errors: refused, timed out, no name, offline
            if get_session().head(constants.ENDPOINT, timeout=SECONDS // 2).status_code < 500:
                answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS - 2)
    return answered.is_set()


def _advice(repository: str, reason: str) -> str:
    return (
        f"{repository}: {reason}; without network use --model neo-mini and --data sample, "
        "or name local folders with --model and --data"
    )
