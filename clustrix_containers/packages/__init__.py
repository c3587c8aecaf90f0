"""Imports become pinned distributions: installed, requirements, resolution, lock, index, wheels."""
