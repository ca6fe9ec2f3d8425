"""`python -m trainers.watch outputs/RUN`: pages on what the agents of runs do, live and afterwards."""
