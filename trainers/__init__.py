"""Training: backends behind one `Trainer` protocol (`trainers.protocol`), and what they share."""
