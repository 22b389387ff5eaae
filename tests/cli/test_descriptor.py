"""`authsvc descriptor`. tests/e2e/test_serve.py gives its output to grpcurl and buf."""

from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from authsvc.v1 import auth_service_pb2 as auth_pb2
from tests.e2e.process import AUTHSVC, Terminal, environment, invoke, run

PROTOS = Path(__file__).parents[2] / "protos"


def described() -> FileDescriptorSet:
    result = invoke("descriptor")
    assert (result.exit_code, result.stderr) == (0, "")
    return FileDescriptorSet.FromString(result.stdout_bytes)


def test_has_each_file_once_after_those_that_it_imports() -> None:
    names: list[str] = []
    for file in described().file:
        assert set(file.dependency) <= set(names)
        names.append(file.name)
    assert len(names) == len(set(names))
    own = {str(path.relative_to(PROTOS)) for path in PROTOS.glob("authsvc/v1/*.proto")}
    assert {name for name in names if name.startswith("authsvc/")} == own
    assert {name for name in names if not name.startswith(("authsvc/", "google/protobuf/"))} == {
        "google/rpc/error_details.proto"
    }


def test_is_enough_to_read_messages_and_error_details() -> None:
    pool = DescriptorPool()
    for file in described().file:
        pool.Add(file)
    request = auth_pb2.ValidateTokenRequest(token="x").SerializeToString()
    read = GetMessageClass(pool.FindMessageTypeByName("authsvc.v1.ValidateTokenRequest")).FromString(request)
    assert str(read) == 'token: "x"\n'
    assert all(pool.FindMessageTypeByName(f"google.rpc.{name}") for name in ("ErrorInfo", "BadRequest", "RetryInfo"))
    services = [pool.FindServiceByName(f"authsvc.v1.{name}") for name in ("AuthService", "UserService")]
    assert all(service.methods for service in services)


def test_is_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    file = tmp_path / "authsvc.binpb"
    command = f"exec {AUTHSVC} descriptor > {file}"
    assert run("/bin/bash", "-c", command, environ=environment()).returncode == 0
    assert file.read_bytes() == invoke("descriptor").stdout_bytes


def test_a_terminal_gets_no_binary(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path / "shown", "descriptor", environ=environment())
    assert terminal.wait() == 2
    reported = "Error: the output is binary: write it to a file, authsvc descriptor > authsvc.binpb"
    assert terminal.shown.splitlines()[-1] == reported


def test_a_closed_output_gets_none_either() -> None:
    done = run("/bin/bash", "-c", f"exec {AUTHSVC} descriptor >&-", environ=environment())
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
