"""Packages that tests put in the place of others that cannot be installed here."""
