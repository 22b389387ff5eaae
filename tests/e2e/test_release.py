"""What is released: the wheel and the source distribution."""

import re
import tarfile
import tomllib
import zipfile
from datetime import date
from pathlib import Path

import pytest
from packaging.metadata import Metadata

import authsvc
from tests import bare, tools
from tests.bare import ROOT, BareEnvironment

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare.build_sdist(tmp_path_factory.mktemp("sdist"))


@pytest.fixture
def unpacked(sdist: Path, tmp_path: Path) -> Path:
    """The folder of the unpacked source distribution."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / f"authsvc-{authsvc.__version__}"


def files(folder: str) -> set[str]:
    """Return the names of the checkout's files below a folder, relative to the checkout."""
    paths = (ROOT / folder).rglob("*")
    return {str(path.relative_to(ROOT)) for path in paths if path.is_file() and path.suffix != ".pyc"}


def test_the_version_has_its_date_and_its_changes() -> None:
    version = PROJECT["version"]
    assert version == authsvc.__version__
    headings = re.findall(r"^## \[(.+)\](?: - (.+))?$", CHANGELOG, re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    assert headings[1][0] == version
    assert all(date.fromisoformat(released) for _, released in headings[1:])


@pytest.mark.engines
def test_the_wheel_holds_the_package_and_its_licences(wheel: Path) -> None:
    info = f"authsvc-{PROJECT['version']}.dist-info"
    names = set(zipfile.ZipFile(wheel).namelist())
    licences = {f"{info}/licenses/{name}" for name in ("LICENSE", "NOTICE")}
    assert names == files("authsvc") | licences | {
        f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")
    }
    assert {"authsvc/py.typed", "authsvc/passwords/common_passwords.txt.gz"} <= names


@pytest.mark.engines
def test_the_source_distribution_holds_what_the_wheel_is_built_from(unpacked: Path) -> None:
    names = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    documents = {"CHANGELOG.md", "LICENSE", "NOTICE", "README.md"}
    made = {".gitignore", "PKG-INFO", "pyproject.toml"}
    assert names == files("authsvc") | files("protos") | documents | made


@pytest.mark.engines
def test_both_are_the_same_wherever_and_whenever_they_are_built(
    wheel: Path, sdist: Path, unpacked: Path, tmp_path: Path
) -> None:
    """Anybody can build the release again, from its source alone, and compare."""
    for path in unpacked.rglob("*"):
        path.touch()
        path.chmod(0o700 if path.is_dir() else 0o600)
    assert bare.build_sdist(tmp_path, unpacked).read_bytes() == sdist.read_bytes()
    assert bare.build_wheel(tmp_path, unpacked).read_bytes() == wheel.read_bytes()


@pytest.mark.engines
def test_its_metadata_are_valid_and_show_the_readme(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"authsvc-{PROJECT['version']}.dist-info/METADATA")
    metadata = Metadata.from_email(text, validate=True)
    assert (metadata.name, str(metadata.version)) == ("authsvc", PROJECT["version"])
    assert metadata.summary == PROJECT["description"]
    assert metadata.description_content_type == "text/markdown"
    assert (metadata.description or "").strip() == (ROOT / "README.md").read_text().strip()
    assert metadata.license_expression == "Apache-2.0"
    assert set(metadata.provides_extra or ()) == set(PROJECT["optional-dependencies"])


@pytest.fixture(scope="session")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> BareEnvironment:
    """An environment with what `pip install 'authsvc[server]'` brings."""
    return tools.required_or_skip(bare.bare_environment, tmp_path_factory.mktemp("env"), "run", wheel)


@pytest.mark.engines
def test_the_service_is_installed_with_its_extra(installation: BareEnvironment) -> None:
    """Without it: tests/client/test_distribution.py."""
    command = str(installation.python.with_name("authsvc"))
    version = installation.run(command, "--version")
    assert (version.stdout, version.stderr) == (f"authsvc, version {PROJECT['version']}\n", "")
    serve = installation.run(command, "serve", "--help")
    assert (serve.returncode, serve.stderr) == (0, "")
    assert "AUTHSVC_SIGNING_KEYS" in serve.stdout
    assert installation.run("-c", "import authsvc.client").stderr == ""
