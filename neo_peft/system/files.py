"""Atomic writing of files and folders: a temporary name, fsync, `os.replace`. Reading of JSON and
tensors with clear errors.

If a process is killed, the old state or the new one is on disk, never a mixture. A temporary file
or folder can remain. Its name begins with a dot and contains the process id. The next write to the
same path removes it.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from neo_peft.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 3  # version of our own JSON files; increased when the meaning of one of them changes
LARGEST_JSON = 2**26  # bytes; four times the largest tokenizer or index file that we know


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file atomically: `write` fills a temporary file, which then replaces `path`."""
    path = path.resolve()  # replace the file that a link points to, not the link
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no plain file, and is not replaced by one; name a file")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder; make it first, or name another")
    with _put_in_place(path) as temporary:
        write(temporary)
        os.umask(mask := os.umask(0))  # reads the umask, which is only possible by setting it
        os.chmod(temporary, 0o666 & ~mask)  # safetensors lets only the owner read its file


def refuse_used(folder: Path, flag: str = "") -> None:
    """Raise InputError if the path exists and is not an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{flag}{folder} exists and is not an empty folder; name a new folder")


def new_folder(folder: Path) -> Path:
    """Return the absolute path of a new or empty folder. Raise InputError for other paths, and for
    the current folder, which cannot be replaced."""
    refuse_used(folder)
    path = folder.resolve()
    if path == Path.cwd():
        raise InputError(f"{folder} is the current folder, which is not replaced; name another")
    return path


def write_folder(folder: Path, write: Callable[[Path], None], overwrite: bool = False) -> None:
    """Write a new folder atomically: `write` fills a temporary folder, which is then renamed.

    With `overwrite` the folder can exist. It is removed before the new one is renamed. If the
    process is killed between the two, there is no folder.
    """
    path = folder.resolve() if overwrite else new_folder(folder)
    make_folders(path.parent)
    with _put_in_place(path) as temporary:
        temporary.mkdir()
        write(temporary)


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise InputError unless the disk of a folder has room for `needed` more bytes."""
    if (free := shutil.disk_usage(folder).free) < needed:
        raise InputError(
            f"{what} needs {needed / 1e6:,.2f} MB, but the disk of {folder} has "
            f"{free / 1e6:,.2f} MB free; make room"
        )


def make_folders(folder: Path) -> list[Path]:
    """Make a folder and its parents, synced to disk. Return the new ones, innermost first."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        sync(path.parent)
    return new


def remove_folder(folder: Path) -> None:
    """Remove a folder atomically: rename it first, then delete it."""
    path = folder.resolve()
    renamed = path.with_name(f".{path.name}.tmp{os.getpid()}-old")
    os.replace(path, renamed)
    shutil.rmtree(renamed)


@contextmanager
def _put_in_place(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder. What the block writes there then replaces `path`,
    or is removed if an error occurs."""
    clean(path.parent, path.name)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        yield temporary
        for written in [*temporary.rglob("*"), temporary]:
            sync(written)
        if path.is_dir():
            remove_folder(path)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        _remove(temporary)
        raise


def _remove(path: Path) -> None:
    """Remove a file, a link, or a folder with its content."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def clean(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files and folders of killed processes: all, or those of one `name`."""
    for path in folder.iterdir():
        match = re.fullmatch(r"\.(.+)\.tmp(\d+)(-old)?", path.name)
        if match and name in (None, match[1]) and not _is_running(int(match[2])):
            _remove(path)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's process
        return True
    return process != os.getpid()  # this process is not writing one at the moment


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for this process. Raise InputError if another process has locked it. The lock
    ends with the process, even if it is killed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{folder} is in use by another run; wait for its end, or name another folder"
            ) from None
        yield
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # A path can contain characters that UTF-8 cannot encode: they are escaped, as in JSON.
    write_text(path, text.encode(errors="backslashreplace").decode())


def refuse_endless(path: Path, largest: int | None = None) -> None:
    """Raise InputError for a file of more than `largest` bytes, and for a path that is neither a
    plain file nor a link to one: a pipe would block, and a device can be endless."""
    if not path.exists():
        return
    if not path.is_file():
        raise InputError(f"{path} is no plain file")
    if largest and (size := path.stat().st_size) > largest:
        raise InputError(f"{path} has {size:,} bytes; the maximum is {largest:,}")


def read_json(path: Path) -> dict:
    """Return the JSON object of a file. Raise InputError if there is no such file or object."""
    try:
        refuse_endless(path, LARGEST_JSON)
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (ValueError, RecursionError) as error:  # bad UTF-8 or bad JSON
        raise InputError(f"{path} is not a JSON file: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object")
    return value


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(value: Any) -> str:
    """Return the sha256 of a JSON value, written compactly with sorted keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def write_checked_json(path: Path, value: dict) -> None:
    """Write a JSON object with FORMAT as its first field, and the sha256 of all other fields as its
    last one."""
    # Hash the value as it will be read again: tuples become lists.
    value = json.loads(json.dumps({"format": FORMAT} | value))
    write_json(path, value | {"sha256": sha256_of(value)})


def read_checked_json(path: Path) -> dict:
    """Return what `write_checked_json` wrote. Raise InputError if format or sha256 differs."""
    value = read_json(path)
    if (version := value.get("format")) != FORMAT:
        raise InputError(
            f"{path} has format {version}, but this version of neo_peft reads only {FORMAT}: use "
            "the version that wrote it, or run it again"
        )
    if value.pop("sha256", None) != sha256_of(value):
        raise InputError(
            f"{path} was changed since it was written, or cut short: its sha256 differs"
        )
    del value["format"]
    return value


def write_tensors(path: Path, tensors: "dict[str, Tensor]") -> None:
    """Write tensors as a safetensors file."""
    from safetensors.torch import save_file

    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    try:
        write_whole(path, lambda temporary: save_file(tensors, temporary, {"format": "pt"}))
    except SafetensorError as error:  # raised for a full disk too
        raise InputError(f"{path} cannot be written: {error}") from None


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Return all tensors of a safetensors file."""
    from safetensors.torch import load_file

    refuse_endless(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from None


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
