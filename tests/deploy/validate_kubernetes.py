"""Run with kubernetes-validate on the path: validates files strictly against each version, and prints what is valid.

python validate_kubernetes.py VERSION,VERSION FILE...
"""

import functools
import sys
from pathlib import Path

import yaml
from kubernetes_validate import utils  # type: ignore[import-not-found]

# It reads the definitions of a version, some megabytes, for each object anew.
utils.schema_contents = functools.cache(utils.schema_contents)

versions, *files = sys.argv[1:]
for version in versions.split(","):
    for file in files:
        for document in yaml.safe_load_all(Path(file).read_text()):
            # An unknown version is validated as the newest older one, whose name is returned.
            assert utils.validate(document, version, strict=True) == version
            print(version, document["kind"])  # noqa: T201 - for the test
