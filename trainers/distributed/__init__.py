"""What the processes of one run agree on."""
