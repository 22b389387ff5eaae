"""Where users, sessions and login attempts are kept: one interface, two engines."""
