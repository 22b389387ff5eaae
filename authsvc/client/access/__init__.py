"""Decides whether a request of a backend may pass: its token, its path, and the answer to what may not."""
