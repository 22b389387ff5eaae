"""How the service is reached: channels, retries, TLS, deadlines, credentials and the errors of gRPC."""
