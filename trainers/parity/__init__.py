"""Proof that every phase of the migration computes what the legacy backend computes."""
