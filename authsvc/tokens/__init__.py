"""Signing keys, access tokens and refresh tokens."""
