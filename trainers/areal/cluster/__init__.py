"""Phase 3 in AReaL's single-controller mode: one process directs workers that AReaL's scheduler starts."""
