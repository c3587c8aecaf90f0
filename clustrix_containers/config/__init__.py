"""Where our files lie, and what clustrix.yml and the environment say."""
