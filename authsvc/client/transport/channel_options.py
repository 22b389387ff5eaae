"""gRPC's options for a channel: the retry policy, load balancing, reconnecting, DNS and keepalive."""

import json
from itertools import chain

from authsvc.client.transport.methods import AUTH_METHODS, RETRYABLE, USER_METHODS

RETRY_POLICY = {
    "maxAttempts": 5,  # gRPC allows no more
    "initialBackoff": "0.05s",
    "maxBackoff": "0.5s",
    "backoffMultiplier": 2,
    # A server that is killed or stops resets its calls with either.
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}
RETRY_THROTTLING = {"maxTokens": 1000, "tokenRatio": 0.1}
"""Ends retries in a long outage: below half of its tokens nothing is retried. The largest number that gRPC allows."""
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [
                {"service": method.service, "method": method.name}
                for method in chain(AUTH_METHODS.values(), USER_METHODS.values())
                if method.name in RETRYABLE
            ],
            "retryPolicy": RETRY_POLICY,
        }
    ],
    "retryThrottling": RETRY_THROTTLING,
}
CHANNEL_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    # DNS could bring another one, in a TXT record.
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Despite its name, how long an attempt to connect may take: 20 s for an address that is gone is too long.
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Each channel has connections of its own: the kernel spreads connections over workers, not calls.
    ("grpc.use_local_subchannel_pool", 1),
)
