"""One file, one pass; `pipelines` holds the ordered lists."""
