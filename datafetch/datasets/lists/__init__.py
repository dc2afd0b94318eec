"""Lists of URLs that anybody has: files of many kinds → shards of samples.

Rules: memory is bounded whatever a file claims: it holds a block of a file, and one bit for each of its rows where a
filter selects some. A row that can't be read is counted, and stops nothing. What is wrong with a whole file is a
``ManifestError`` that names it, and is found before anything is fetched.
"""
