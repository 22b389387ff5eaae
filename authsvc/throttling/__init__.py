"""How many failed logins are allowed, and what happens beyond."""
