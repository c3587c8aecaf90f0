"""Starting programs and talking to other machines."""
