"""The `authsvc` command."""
