"""Ways in which a file that a service follows becomes one that it cannot read, whatever the file holds."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _replace_by_symlink_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _replace_by_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


UNREADABLE: Mapping[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "removed": Path.unlink,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a folder": _replace_by_folder,
    "a symlink loop": _replace_by_symlink_loop,
    "a pipe that nobody writes to": _replace_by_pipe,
    "a device that never ends": _replace_by_device,
    "not UTF-8": lambda path: path.write_bytes(b"\xff"),
}
"""By what was done to the path."""
