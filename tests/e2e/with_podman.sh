#!/usr/bin/env bash
# Builds and tests the image on a Debian machine that has neither Docker nor a registry: podman
# from Debian, and a base image out of Debian's packages whose Python is the Dockerfile's. As root.
set -euo pipefail
cd "$(dirname "$0")/../.."
base=localhost/authsvc-test-base
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

apt-get update --quiet
DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends \
  debootstrap podman runc

# Debian's podman with crun stops at hybrid control groups; runc does not. The limits are low enough
# to be set without the right to raise them.
export CONTAINERS_CONF="$work/containers.conf"
cat >"$CONTAINERS_CONF" <<'CONF'
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
CONF

podman image exists "$base" || {
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$work/root"
  ln -s /usr/bin/python3 "$work/root/usr/local/bin/python"
  # Whatever authorities this machine trusts, the build trusts.
  cp /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/"
  tar --directory "$work/root" --create --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' . |
    podman import --change 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt' - "$base"
}

make .venv
AUTHSVC_TEST_IMAGE_ENGINE=podman \
  AUTHSVC_TEST_IMAGE_BUILD="--network=host --build-arg=PYTHON_IMAGE=$base" \
  .venv/bin/python -m pytest tests/e2e/test_image.py "$@"
