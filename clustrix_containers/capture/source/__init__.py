"""What a function reaches, read from source: its program, its imports, its data files."""
