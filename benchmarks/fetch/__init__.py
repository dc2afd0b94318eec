"""The fetcher alone: speed, CPU time, descriptors, and what bad hosts do to the images of good ones."""
