"""Our keys in AReaL's terms."""
