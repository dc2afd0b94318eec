"""Places where datasets are published, other than folders and web servers."""
