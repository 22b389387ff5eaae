"""`make sbom`: a bill of materials of exactly what the image installs."""

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def locked() -> dict[str, tuple[str, set[str]]]:
    """Return version and SHA-256 digests of each package that the image installs."""
    lock = (ROOT / "requirements" / "run.txt").read_text()
    pins = re.findall(r"^([\w.-]+)==(\S+)(?: ; .*?)? \\\n((?: +--hash=sha256:\w+(?: \\)?\n)+)", lock, re.MULTILINE)
    return {name: (version, set(re.findall(r"sha256:(\w+)", hashes))) for name, version, hashes in pins}


@pytest.mark.engines
def test_bill_of_materials_is_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "sbom" / "authsvc.cdx.json"
    done = subprocess.run(
        ["/usr/bin/env", "make", "--no-print-directory", "sbom", f"SBOM={path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{path}\n")
    bill = json.loads(path.read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "authsvc")
    assert bill["metadata"]["component"]["licenses"][0]["license"]["id"] == "Apache-2.0"
    assert len(locked()) > 30
    assert {
        component["name"]: (
            component["version"],
            {digest["content"] for reference in component["externalReferences"] for digest in reference["hashes"]},
        )
        for component in bill["components"]
    } == locked()
    for component in bill["components"]:
        assert component["purl"] == f"pkg:pypi/{component['name']}@{component['version']}"
