"""The gRPC API: messages, permissions, callers, status codes."""
