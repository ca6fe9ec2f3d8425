"""`pocket`: a simulated Android phone, in process, deterministic by seed, drawn with Pillow."""
