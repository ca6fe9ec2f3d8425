"""Before a long run: small checks of everything that it needs, each with what helps; ``python -m trainers.doctor``."""
