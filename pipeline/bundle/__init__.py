"""The bundle under ``exported/``: written, read as a stranger's, and asked for answers."""
