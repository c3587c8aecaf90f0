"""How a container of an image is started on a Linux host."""
