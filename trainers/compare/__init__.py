"""Runs side by side: figures, verdict, report."""
