"""Episodes on AReaL's executor, ahead of training and within the staleness bound."""
