"""A container's process, started by hand: its command and environment, with each mount as a folder of the test's."""

import contextlib
import json
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

from tests.e2e.process import GIVE_UP_SECONDS, Process, environment, started

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def dockerfile_list(instruction: str) -> list[str]:
    """Return the arguments of the image's ENTRYPOINT or CMD."""
    (arguments,) = re.findall(rf"^{instruction} (\[.*\])$", DOCKERFILE, re.MULTILINE)
    return [str(argument) for argument in json.loads(arguments)]


def in_folders(environ: Mapping[str, str], mounts: Mapping[str, Path]) -> dict[str, str]:
    """Replace the paths of mounts in the values, and the fixed ports by free ones."""
    paths = re.compile("|".join(re.escape(path) for path in sorted(mounts, key=len, reverse=True)) or "(?!)")
    return {
        name: re.sub(r"^([\d.]+):\d+$", r"\1:0", paths.sub(lambda match: str(mounts[match[0]]), value))
        for name, value in environ.items()
    }


@contextmanager
def container(arguments: list[str], environ: Mapping[str, str], mounts: Mapping[str, Path]) -> Iterator[Process]:
    """Run what the image runs with these arguments, and nothing of this process's environment but coverage."""
    assert dockerfile_list("ENTRYPOINT") == ["authsvc"]
    coverage = {name: value for name, value in environment().items() if name == "PATH" or "COV" in name}
    with tempfile.TemporaryDirectory(prefix="container-") as folder:
        settings = {**coverage, "HOME": folder, **in_folders(environ, mounts)}
        with started(*arguments, cwd=Path(folder), environ=settings) as process:
            yield process
        assert list(Path(folder).iterdir()) == [], "the service writes into a read-only file system"


def address_of(process: Process, name: str) -> str:
    """Wait until the process listens, and return its `address` or `http_address` for this machine."""
    match = process.wait_for(lambda: re.search(rf'"{name}": "[^"]+:(\d+)"', process.log), "listened")
    assert match
    return f"127.0.0.1:{match[1]}"


def is_well(url: str) -> bool:
    """Return whether a probe succeeds."""
    try:
        with urllib.request.urlopen(url, timeout=GIVE_UP_SECONDS) as response:  # noqa: S310 - of this machine
            return bool(response.status == HTTPStatus.OK)
    except urllib.error.HTTPError:
        return False


class SecretVolume:
    """A folder as the kubelet mounts a secret: each file is a link into a version, which is replaced as a whole.

    Args:
        folder: An empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, files: Mapping[str, str]) -> None:
        """Mount a version of all files."""
        version = Path(tempfile.mkdtemp(prefix="..version-", dir=self.folder))
        for name, content in files.items():
            (version / name).write_text(content)
            (version / name).chmod(0o440)
        data, new = self.folder / "..data", self.folder / "..data_tmp"
        old = data.resolve() if data.exists() else None
        new.symlink_to(version.name)
        new.rename(data)
        for name in files:
            with contextlib.suppress(FileExistsError):
                (self.folder / name).symlink_to(Path("..data") / name)
        if old is not None:
            shutil.rmtree(old)
