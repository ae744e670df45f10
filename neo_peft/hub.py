"""One file of a hub repository as a local path: the only place that asks the network for anything."""

import os
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
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, filename, repo_type=kind, revision=revision))
    except LocalEntryNotFoundError as error:
        raise InputError(_advice(repository, "the hub cannot be reached and its files are not in the cache")) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"{repository} has no file {filename}") from error
    except (HfHubHTTPError, ValueError) as error:
        raise InputError(_advice(repository, "there is no such repository on the hub, or it is private")) from error
    except Exception as error:  # the transport's own errors: refused, timed out, no name
        raise InputError(_advice(repository, f"the hub cannot be reached ({type(error).__name__})")) from error


def _advice(repository: str, reason: str) -> str:
    return (
        f"{repository}: {reason}; without network use --model neo-mini and --data sample, "
        "or name local folders with --model and --data"
    )
