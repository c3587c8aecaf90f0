"""From call to handle: submit, attach, watch, record."""
