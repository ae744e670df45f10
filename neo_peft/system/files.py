"""Writing whole or not at all: a temporary name, fsync, `os.replace`. And reading JSON and tensors
with a clear error.

A process that is killed leaves the old state, or the new one, and at most a temporary file or
folder, whose name begins with a dot and ends in its process's number; whoever writes there next
removes it.
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

FORMAT = 3  # of our own JSON files; raised where one of them changes its meaning
LARGEST_JSON = 2**26  # bytes, four times the largest tokenizer or index that we know of


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    A reader, or a machine that stops half-way, sees the old file or the new one, never a part.
    """
    path = path.resolve()  # behind a link it is the file that is written, not the link
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no plain file, and is not replaced by one; name a file")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder; make it first, or name another")
    with _put_in_place(path) as temporary:
        write(temporary)
        os.umask(mask := os.umask(0))  # the only way to read it is to set it
        os.chmod(temporary, 0o666 & ~mask)  # safetensors writes for its owner alone


def refuse_used(folder: Path, flag: str = "") -> None:
    """Refuse what is no folder, and a folder that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{flag}{folder} holds something already; name a folder that is new")


def new_folder(folder: Path) -> Path:
    """Return a folder's absolute path. Refuse one that holds something, or that cannot be put in
    place in one step."""
    refuse_used(folder)
    path = folder.resolve()
    if path == Path.cwd():
        raise InputError(
            f"{folder} is the folder you stand in, which is not replaced; name another"
        )
    return path


def write_folder(folder: Path, write: Callable[[Path], None], anew: bool = False) -> None:
    """Let `write` fill a temporary folder beside a new or empty one, then put it in place in one
    step.

    With `anew` it takes the place of a folder that is not empty; a process that is killed may leave
    neither.
    """
    path = folder.resolve() if anew else new_folder(folder)
    make_folders(path.parent)
    with _put_in_place(path) as temporary:
        temporary.mkdir()
        write(temporary)


def make_folders(folder: Path) -> list[Path]:
    """Make a folder and those around it, their names on the disk too; return the new ones, the
    innermost first."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        sync(path.parent)
    return new


def remove_folder(folder: Path) -> None:
    """Remove a folder so that it is there whole, or not at all."""
    path = folder.resolve()
    doomed = path.with_name(f".{path.name}.tmp{os.getpid()}-old")
    os.replace(path, doomed)
    shutil.rmtree(doomed)


@contextmanager
def _put_in_place(path: Path) -> Iterator[Path]:
    """Yield the name of a temporary neighbour of a path. What the block writes there takes the
    path's place, or is removed where something fails."""
    clean(path.parent, path.name)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        yield temporary
        for inside in [*temporary.rglob("*"), temporary]:
            sync(inside)
        if path.is_dir():
            remove_folder(path)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        _remove(temporary)
        raise


def _remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that it holds."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def clean(folder: Path, name: str | None = None) -> None:
    """Remove what writers that were killed have left in a folder: of any name, or of one."""
    for path in folder.iterdir():
        left = re.fullmatch(r"\.(.+)\.tmp(\d+)(-old)?", path.name)
        if left and name in (None, left[1]) and not _is_running(int(left[2])):
            _remove(path)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return process != os.getpid()  # a temporary of ours is not being written now


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; refuse one that another holds. A process that ends, however,
    lets go of it."""
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
    # A path may be no text: what UTF-8 has no bytes for is escaped, as JSON does.
    write_text(path, text.encode(errors="backslashreplace").decode())


def refuse_endless(path: Path, largest: int | None = None) -> None:
    """Refuse what is no plain file, or a link to one: a pipe would be waited for, and a device has
    no end. Refuse a file of more bytes than `largest`, too."""
    if not path.exists():
        return
    if not path.is_file():
        raise InputError(f"{path} is no plain file")
    if largest and (size := path.stat().st_size) > largest:
        raise InputError(f"{path} has {size:,} bytes; a file of at most {largest:,} is read")


def read_json(path: Path) -> dict:
    """Read a JSON object from a file. Raise InputError, naming the file, where there is none."""
    try:
        refuse_endless(path, LARGEST_JSON)
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (ValueError, RecursionError) as error:  # bad UTF-8 and bad JSON both
        raise InputError(f"{path} is not a JSON file: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object")
    return value


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(value: Any) -> str:
    """Hash a JSON value by its sorted, compact text."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def write_checked_json(path: Path, value: dict) -> None:
    """Write a JSON object with the version of our formats as its first field, and the sha256 of its
    own fields as the last one."""
    # What is hashed is what will be read: tuples are lists.
    value = json.loads(json.dumps({"format": FORMAT} | value))
    write_json(path, value | {"sha256": sha256_of(value)})


def read_checked_json(path: Path) -> dict:
    """Return what `write_sealed` wrote; refuse it where its version is another, or its checksum not
    right."""
    value = read_json(path)
    if (version := value.get("format")) != FORMAT:
        raise InputError(
            f"{path} has the format {version}, and this version of neo_peft reads {FORMAT} alone: "
            "use the version that wrote it, or run it again"
        )
    if value.pop("sha256", None) != sha256_of(value):
        raise InputError(
            f"{path} was changed since it was written, or cut short: its sha256 is another"
        )
    del value["format"]
    return value


def write_tensors(path: Path, tensors: "dict[str, Tensor]") -> None:
    """Write tensors as a safetensors file."""
    from safetensors.torch import save_file

    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    try:
        write_whole(path, lambda temporary: save_file(tensors, temporary, {"format": "pt"}))
    except SafetensorError as error:  # its own error for a full disk, too
        raise InputError(f"{path} cannot be written: {error}") from None


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Read all tensors of a safetensors file."""
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
