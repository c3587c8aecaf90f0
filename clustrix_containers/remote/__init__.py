"""Starting programs, and retrying what may succeed later."""
