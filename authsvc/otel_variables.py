"""OpenTelemetry's own environment variables: whether spans are exported, of which calls, and what is wrong with them.

Its SDK reads them. It ignores some malformed ones and logs others, such as headers that may hold an API key.
"""

import os
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from typing import NamedTuple

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PACKAGES = ("opentelemetry-exporter-otlp-proto-grpc", "opentelemetry-sdk")
_EXPORTER_VARIABLE = re.compile(r"OTEL_EXPORTER_OTLP_(?:TRACES_)?([A-Z_]+)")
_HEADER = r"[ \t]*[!#-'*+\-.0-9A-Z^-z|~]+[ \t]*=[ !#-+\--:<-\[\]-~]*"
_SAMPLERS = ("always_on", "always_off", "traceidratio")
_FORMS = {
    "ENDPOINT": (
        r"https?://[^\s/?#@]+/?",
        "must be an http or https URL of a host and a port, for instance http://127.0.0.1:4317",
    ),
    "PROTOCOL": ("grpc", "must be grpc, or unset"),
    "HEADERS": (rf"{_HEADER}(?:,{_HEADER})*", "must be NAME=VALUE, several separated by commas"),
    "TIMEOUT": (r"[0-9]{1,6}(?:\.[0-9]{1,6})?", "must be a number of seconds"),
    "COMPRESSION": ("(?i:gzip)", "must be gzip, or unset"),
    "INSECURE": ("(?i:true|false)", "must be true or false"),
    "OTEL_TRACES_SAMPLER": (
        f"(?i:(?:parentbased_)?(?:{'|'.join(_SAMPLERS)}))",
        f"must be {', '.join(_SAMPLERS)}, or one of these after parentbased_",
    ),
    "OTEL_TRACES_SAMPLER_ARG": (r"0(?:\.[0-9]*)?|\.[0-9]+|1(?:\.0*)?", "must be a number from 0 to 1"),
}
"""The form of a variable's value, and what to say of another one; those of the exporter without their prefix."""
_FILES = ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")


class Sampling(NamedTuple):
    """Which calls are sampled.

    Args:
        follows_parent: Whether the flag of a call's parent decides, where there is one.
        share: Of the other calls, from 0 to 1.
    """

    follows_parent: bool
    share: float


def sampling(environ: Mapping[str, str]) -> Sampling:
    """Return what the variables, which have no problems, say about sampling."""
    name = (environ.get("OTEL_TRACES_SAMPLER") or "parentbased_always_on").lower()
    sampler = name.removeprefix("parentbased_")
    share = float(environ.get("OTEL_TRACES_SAMPLER_ARG") or 1)
    return Sampling(sampler != name, {"always_on": 1.0, "always_off": 0.0}.get(sampler, share))


def exports_spans(environ: Mapping[str, str]) -> bool:
    """Return whether spans are exported: an OTLP endpoint is set, and nothing turns tracing off."""
    has_endpoint = any(environ.get(name) for name in _ENDPOINTS)
    is_disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return has_endpoint and not is_disabled and environ.get("OTEL_TRACES_EXPORTER", "") in {"", "otlp"}


def problems(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for what keeps spans from being exported; none where they are not to be."""
    if not exports_spans(environ):
        return
    if missing := [package for package in _PACKAGES if not _is_installed(package)]:
        endpoint = next(name for name in _ENDPOINTS if environ.get(name))
        yield (
            f"{endpoint}: needs the extra \"otel\": pip install 'authsvc[server,otel]'"
            f" (not installed: {', '.join(missing)})"
        )
    for name, value in sorted(environ.items()):
        match = _EXPORTER_VARIABLE.fullmatch(name)
        kind = match[1] if match else name
        form, problem = _FORMS.get(kind, ("(?s:.*)", ""))
        if value and not re.fullmatch(form, value):
            yield f"{name}: {problem}"
        if value and match and kind in _FILES and not os.access(value, os.R_OK):
            yield f"{name}: {value} cannot be read"


def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True
