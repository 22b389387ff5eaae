"""The `authsvc` command, also as `python -m authsvc`."""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution, requires


def main() -> None:
    """Run the command.

    Raises:
        SystemExit: The command ends, with code 1 if the packages of the extra `server` are not installed.
    """
    if missing := _missing_packages("server"):
        sys.exit(
            "error: this command needs the extra \"server\": pip install 'authsvc[server]'\n"
            f"error: not installed: {', '.join(missing)}"
        )
    from authsvc.cli.main import main as run

    run()


def _missing_packages(extra: str) -> list[str]:
    """Return the packages of an extra that are not installed."""
    # A line of metadata, for instance: bcrypt<6,>=5; extra == 'server'
    names = [re.split(r"[^\w.-]", line)[0] for line in requires("authsvc") or [] if f"extra == '{extra}'" in line]
    return [name for name in names if not _is_installed(name)]


def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
