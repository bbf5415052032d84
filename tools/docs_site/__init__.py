"""Builds docs/ as one site (`make docs`): Markdown that also reads well in the repository, and what the code says.

`pages` says which page is where, `links` makes the repository's links the site's, `rest`, `grpc`, `python_api` and
`errors` write reference text from the code, and `check` follows every link of the finished HTML.
"""
