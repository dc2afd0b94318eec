"""Places where datasets are published, other than folders and web servers."""

from datafetch.datasets.sources.gitlab import MAX_PAGES, GitLabPlace, is_blob, is_gitlab, read_page
from datafetch.datasets.sources.hub import HubPlace, download, hub_endpoint, is_hub, list_names
from datafetch.datasets.sources.object_store import StoredFile, copy_stored, is_object_store, list_stored

__all__ = [
    "MAX_PAGES",
    "GitLabPlace",
    "HubPlace",
    "StoredFile",
    "copy_stored",
    "download",
    "hub_endpoint",
    "is_blob",
    "is_gitlab",
    "is_hub",
    "is_object_store",
    "list_names",
    "list_stored",
    "read_page",
]
