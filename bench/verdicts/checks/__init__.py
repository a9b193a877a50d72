"""Check on innocents that what a verdict rests on is so."""
