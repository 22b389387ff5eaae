"""The TLS files of a client: read and checked, and read again when they change."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files.

    Args:
        ca: Authorities that the service's certificate is checked by; None: those that gRPC brings along.
        cert: The client's certificate, with its chain; None: it shows none.
        key: Its private key.
    """

    ca: Path | None
    cert: Path | None
    key: Path | None

    def version(self) -> tuple[tuple[int, ...], ...]:
        """Return numbers of which at least one differs after any change of a file."""
        return tuple(_version(path) for path in (self.ca, self.cert, self.key) if path is not None)

    def load(self) -> grpc.ChannelCredentials:
        """Return credentials of the files as they are now.

        Raises:
            ValueError: A file cannot be read or used, or certificate and key do not belong together.
        """
        self._check()
        contents = (None if path is None else path.read_bytes() for path in (self.ca, self.key, self.cert))
        return grpc.ssl_channel_credentials(*contents)

    def _check(self) -> None:
        """Check what gRPC would find out only when it connects, and not say."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
        except OSError as error:
            raise ValueError(f"ca: {self.ca}: {_reason(error)}") from None
        try:
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key, password=self._refuse_passphrase)
        except OSError as error:
            raise ValueError(f"cert, key: {self.cert}, {self.key}: {_reason(error)}") from None

    def _refuse_passphrase(self) -> bytes:
        """Refuse an encrypted key: OpenSSL asks for the passphrase of no other."""
        raise ValueError(f"key: {self.key}: is encrypted: store it without a passphrase, readable by the backend alone")


def _version(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:
        return ()
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return "not PEM files that can be used together"
    return error.strerror or "cannot be read"
