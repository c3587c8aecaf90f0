"""A callable becomes a Bundle; a Bundle's imports become distributions; those become a Lock."""
