"""Stands in for the service in tests of a backend: fake clients, and the real service as a process."""

from authsvc.client.testing.dev_service import DevService, DevUser, run_dev_service
from authsvc.client.testing.fake_client import FakeClient, SyncFakeClient, make_identity

__all__ = ["DevService", "DevUser", "FakeClient", "SyncFakeClient", "make_identity", "run_dev_service"]
