"""What the service reports about itself: logs, metrics and audit events."""
