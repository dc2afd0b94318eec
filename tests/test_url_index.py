"""Numbers by URL: all of those that were added, in order, and no others."""

from datafetch.output.stored.url_index import UrlIndex


def test_every_number_of_a_url_is_found_in_order() -> None:
    """A URL may have been added several times; one that was not has no number."""
    index = UrlIndex()
    for number in range(3000):
        index.add(f"http://e.org/{number % 1000}.jpg", number)
    index.add("", 2**64 - 1)
    assert len(index) == 3001
    index.sort()
    assert len(index) == 3001
    for number in range(1000):
        assert list(index.find(f"http://e.org/{number}.jpg")) == [number, number + 1000, number + 2000]
    assert list(index.find("")) == [2**64 - 1]
    assert list(index.find("http://e.org/1000.jpg")) == []


def test_an_index_may_be_empty() -> None:
    """As that of an output of which nothing was published."""
    index = UrlIndex()
    index.sort()
    assert not len(index)
    assert list(index.find("http://e.org/")) == []
