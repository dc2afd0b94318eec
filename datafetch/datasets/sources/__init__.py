"""Places where datasets are published, other than folders and web servers."""

from datafetch.datasets.sources.hub import HubPlace, download, is_hub, list_names

__all__ = ["HubPlace", "download", "is_hub", "list_names"]
