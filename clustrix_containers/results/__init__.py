"""How elements ended: their marks and results, and the stores that results go to."""
