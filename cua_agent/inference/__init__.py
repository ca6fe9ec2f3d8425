"""Engines that sample the policy."""
