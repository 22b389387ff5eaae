import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from authsvc import config, otel_variables
from authsvc.errors import ConfigError
from tests.e2e.process import environment, invoke

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
URL = "http://127.0.0.1:4317"
SECRET = "a secret; not a header"


def problems(**variables: str) -> list[str]:
    """Return what is wrong with the variables, named without their prefix."""
    return list(otel_variables.problems({ENDPOINT: URL, **{f"OTEL_{k}": v for k, v in variables.items()}}))


@pytest.mark.parametrize(
    ("environ", "is_on"),
    [
        ({}, False),
        ({ENDPOINT: URL}, True),
        ({TRACES_ENDPOINT: URL}, True),
        ({ENDPOINT: ""}, False),
        ({ENDPOINT: "", TRACES_ENDPOINT: URL}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": URL}, False),
        ({ENDPOINT: URL, "OTEL_SDK_DISABLED": "true"}, False),
        ({ENDPOINT: URL, "OTEL_SDK_DISABLED": "True"}, False),
        ({ENDPOINT: URL, "OTEL_SDK_DISABLED": "false"}, True),
        ({ENDPOINT: URL, "OTEL_SDK_DISABLED": ""}, True),
        ({ENDPOINT: URL, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({ENDPOINT: URL, "OTEL_TRACES_EXPORTER": "console"}, False),
        ({ENDPOINT: URL, "OTEL_TRACES_EXPORTER": "otlp"}, True),
    ],
    ids=str,
)
def test_spans_are_exported_where_an_endpoint_is_set_and_nothing_turns_them_off(
    environ: dict[str, str],
    is_on: bool,  # noqa: FBT001 - expected
) -> None:
    assert otel_variables.exports_spans(environ) is is_on


@pytest.mark.parametrize(
    ("sampler", "share", "expected"),
    [
        ("", "", (True, 1.0)),
        ("", "0.1", (True, 1.0)),
        ("always_on", "0.1", (False, 1.0)),
        ("always_off", "", (False, 0.0)),
        ("traceidratio", "0.1", (False, 0.1)),
        ("parentbased_always_on", "", (True, 1.0)),
        ("ParentBased_Always_Off", "1", (True, 0.0)),
        ("parentbased_traceidratio", ".25", (True, 0.25)),
        ("parentbased_traceidratio", "", (True, 1.0)),
    ],
)
def test_samplers_sample_what_those_of_the_sdk_do(sampler: str, share: str, expected: tuple[bool, float]) -> None:
    environ = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": share}
    assert otel_variables.sampling(environ) == expected


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("EXPORTER_OTLP_ENDPOINT", [URL, f"{URL}/", "https://otel.example.com", "http://[::1]:4317"]),
        ("EXPORTER_OTLP_TRACES_ENDPOINT", ["https://otel.example.com:4317", ""]),
        ("EXPORTER_OTLP_PROTOCOL", ["grpc", ""]),
        ("EXPORTER_OTLP_TRACES_HEADERS", ["a=b", "x-api-key=abc%20d,Authorization=Basic YTpi,c=", "a = b , c=d=", ""]),
        ("EXPORTER_OTLP_TIMEOUT", ["10", "0.5", ""]),
        ("EXPORTER_OTLP_COMPRESSION", ["gzip", "GZIP", ""]),
        ("EXPORTER_OTLP_TRACES_INSECURE", ["true", "False"]),
        ("EXPORTER_OTLP_CERTIFICATE", [__file__, ""]),
        ("EXPORTER_OTLP_METRICS_PROTOCOL", ["http/protobuf"]),
        ("TRACES_SAMPLER", ["always_on", "parentbased_traceidratio", "ParentBased_Always_Off"]),
        ("TRACES_SAMPLER_ARG", ["0", "1", "0.001", ".5", "1.0"]),
        ("RESOURCE_ATTRIBUTES", ["what=ever,"]),
    ],
)
def test_good_values(name: str, values: list[str]) -> None:
    assert [problems(**{name: value}) for value in values] == [[]] * len(values)


@pytest.mark.parametrize(
    ("name", "values", "problem"),
    [
        (
            "EXPORTER_OTLP_ENDPOINT",
            [
                "127.0.0.1:4317",
                "http://",
                "http://a:4318/v1/traces",
                "http://user:secret@a:4317",
                "grpc://a",
                f"{URL} ",
            ],
            "must be an http or https URL of a host and a port, for instance http://127.0.0.1:4317",
        ),
        ("EXPORTER_OTLP_PROTOCOL", ["http/protobuf", "http/json", "GRPC"], "must be grpc, or unset"),
        (
            "EXPORTER_OTLP_TRACES_HEADERS",
            [SECRET, "=b", "a=b,,c", "a=b\nc=d", 'a="b"', "a=ü"],
            "must be NAME=VALUE, several separated by commas",
        ),
        ("EXPORTER_OTLP_TIMEOUT", ["10s", "-1", "nan", "1e3"], "must be a number of seconds"),
        ("EXPORTER_OTLP_TRACES_COMPRESSION", ["none", "zstd"], "must be gzip, or unset"),
        ("EXPORTER_OTLP_INSECURE", ["yes", "1"], "must be true or false"),
        ("EXPORTER_OTLP_CLIENT_KEY", ["/no/such/file"], "/no/such/file cannot be read"),
        (
            "TRACES_SAMPLER",
            ["on", "jaeger_remote", "parentbased_"],
            "must be always_on, always_off, traceidratio, or one of these after parentbased_",
        ),
        ("TRACES_SAMPLER_ARG", ["2", "-0.1", "10%", "1.01"], "must be a number from 0 to 1"),
    ],
)
def test_bad_values_are_refused_by_name(name: str, values: list[str], problem: str) -> None:
    assert [problems(**{name: value}) for value in values] == [[f"OTEL_{name}: {problem}"]] * len(values)


def test_what_is_not_used_is_not_checked() -> None:
    assert list(otel_variables.problems({ENDPOINT: "", "OTEL_TRACES_SAMPLER": "on"})) == []


def test_problems_are_reported_with_those_of_the_settings_and_only_where_spans_are_exported() -> None:
    with pytest.raises(ConfigError) as caught:
        config.load({ENDPOINT: "no URL", "OTEL_EXPORTER_OTLP_HEADERS": SECRET})
    names = [problem.partition(":")[0] for problem in caught.value.problems]
    assert names[-2:] == [ENDPOINT, "OTEL_EXPORTER_OTLP_HEADERS"]
    assert "AUTHSVC_STORE" in names
    assert SECRET not in str(caught.value)
    assert config.load_store({ENDPOINT: "no URL", "AUTHSVC_STORE": "dynamodb"}).store == "dynamodb"


def test_without_the_extra_the_service_does_not_start(monkeypatch: pytest.MonkeyPatch, signing_keys: Path) -> None:
    def missing(package: str) -> None:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(otel_variables, "distribution", missing)
    settings = {
        "AUTHSVC_STORE": "sqlite:no.db",
        "AUTHSVC_ISSUER": "https://auth.example.com",
        "AUTHSVC_AUDIENCE": "backends",
        "AUTHSVC_SIGNING_KEYS": str(signing_keys),
    }
    result = invoke("serve", **settings, **{TRACES_ENDPOINT: URL})
    assert result.exit_code == 1
    assert (
        f"{TRACES_ENDPOINT}: needs the extra \"otel\": pip install 'authsvc[server,otel]' (not installed:"
        " opentelemetry-exporter-otlp-proto-grpc, opentelemetry-sdk)"
    ) in result.stderr
    assert list(otel_variables.problems({})) == []


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported() -> None:
    code = (
        "import sys, authsvc.server.app, authsvc.cli.doctor; print(*(m for m in sys.modules if 'opentelemetry' in m))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
