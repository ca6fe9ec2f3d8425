"""Weight updates on AReaL's FSDP engine: the learner of phase 2, the trainer of phase 3."""
