"""The application around d2nas: command line, runner, stages, store. Not an API.

The folder's name is also that of other distributions, so everything inside imports relatively and
``d2nas/__main__.py`` checks that this is the ``pipeline`` that came with it.
"""
