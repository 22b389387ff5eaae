#!/bin/sh
# Run by deploy/compose.yaml in the service's image, as root: makes what the services and Envoy need.
set -eu

authsvc tables create
[ ! -e /etc/authsvc/keys.json ] || exit 0

# A certificate for auth.internal, and for localhost, where the port is published.
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 365 -subj "/CN=authsvc compose" \
  -addext "keyUsage=critical,keyCertSign" -keyout /tmp/ca.key -out /etc/gateway/ca.pem 2>/dev/null
openssl req -x509 -CA /etc/gateway/ca.pem -CAkey /tmp/ca.key -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc \
  -days 365 -subj "/CN=auth.internal" -addext "basicConstraints=critical,CA:FALSE" \
  -addext "subjectAltName=DNS:auth.internal,DNS:localhost" \
  -keyout /etc/authsvc/server.key -out /etc/authsvc/server.pem 2>/dev/null
rm /tmp/ca.key

# new_caller NAME FILE PERMISSIONS: the key goes into the file, its digest into the callers file.
new_caller() {
  authsvc callers new-key >/tmp/new_key 2>/dev/null
  sed -n 1p /tmp/new_key >"/etc/gateway/$2"
  printf '[callers.%s]\napi_key_sha256 = ["%s"]\npermissions = [%s]\n' "$1" "$(sed -n 2p /tmp/new_key)" "$3" \
    >>/etc/authsvc/callers.toml
  rm /tmp/new_key
}
: >/etc/authsvc/callers.toml
new_caller envoy api_key '"validate"'
new_caller client client_api_key '"validate", "login", "sessions", "users"'

authsvc keys generate /etc/authsvc/keys.new
chown -R 10001:10001 /etc/authsvc
chmod 644 /etc/gateway/*
# Last: where it exists, everything does.
mv /etc/authsvc/keys.new /etc/authsvc/keys.json
