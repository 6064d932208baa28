"""A trained classifier as the teacher of a training: found, opened, and held against the data.

Input, preparation and classes are checked or mapped, each told in the facts; nothing is guessed.
"""
