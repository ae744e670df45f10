"""Writing whole or not at all: a temporary name, fsync, `os.replace`. And reading JSON with a clear error."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neo_peft.errors import InputError


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    A reader, or a machine that stops half-way, sees the old file or the new one, never a part.
    """
    path = path.resolve()  # behind a link it is the file that is written, not the link
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no plain file, and is not replaced by one; name a file")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder; make it first, or name another")
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        write(temporary)
        os.umask(mask := os.umask(0))
        os.chmod(temporary, 0o666 & ~mask)  # safetensors writes for its owner alone
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def refuse_used(folder: Path, flag: str = "") -> None:
    """Refuse what is no folder, and a folder that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{flag}{folder} holds something already; name a folder that is new")


def new_folder(folder: Path) -> Path:
    """Refuse a folder that holds something, or that cannot be put in place in one step; return its whole path."""
    refuse_used(folder)
    path = folder.resolve()
    if path == Path.cwd():
        raise InputError(f"{folder} is the folder you stand in, which is not replaced; name another")
    return path


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder beside a new or empty one, then put it in place in one step."""
    path = new_folder(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        temporary.mkdir()
        write(temporary)
        if path.exists():
            path.rmdir()
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict:
    """Read a JSON object from a file. Raise InputError, naming the file, where there is none."""
    try:
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
    return hashlib.sha256(text.encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
