"""A Lock becomes layers; layers and a base become an Image."""
