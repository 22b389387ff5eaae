"""Envoy's ext_authz v3: whether a gateway lets an HTTP request pass, by its access token."""
