"""What happened when in a run: rows that its processes write, and what can be made of them."""
