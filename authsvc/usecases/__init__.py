"""What the service does: the only place that orders security steps and checks the fields of requests."""
