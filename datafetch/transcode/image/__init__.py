"""What is done to one image."""
