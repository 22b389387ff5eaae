"""`authsvc descriptor`: the API as a descriptor set, for tools that cannot ask reflection."""

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.rpc import error_details_pb2

from authsvc.v1 import auth_service_pb2, errors_pb2, resources_pb2, user_service_pb2

# The details of errors are in no message of the API, but what decodes them needs their types.
_MODULES = (auth_service_pb2, user_service_pb2, resources_pb2, errors_pb2, error_details_pb2)


def descriptor_set() -> bytes:
    """Return a FileDescriptorSet of `authsvc.v1`, of the error details, and of all that they import."""
    files: dict[str, FileDescriptorProto] = {}
    for module in _MODULES:
        _add(module.DESCRIPTOR, files)
    return FileDescriptorSet(file=files.values()).SerializeToString(deterministic=True)


def _add(file: FileDescriptor, files: dict[str, FileDescriptorProto]) -> None:
    """Add a file after those that it imports: readers load them in order."""
    for imported in file.dependencies:
        _add(imported, files)
    files.setdefault(file.name, FileDescriptorProto.FromString(file.serialized_pb))
