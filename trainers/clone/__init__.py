"""The command `python -m trainers.clone`: a supervised start, from demonstrations or recorded episodes."""
