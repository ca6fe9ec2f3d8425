"""Groups and episodes: drawn, played, evaluated, recorded."""
