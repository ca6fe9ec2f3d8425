"""What is recorded of episodes for people to look at, live and afterwards: how it is written, in any process."""
