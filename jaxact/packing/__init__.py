"""Writes media files into ArrayRecord shards; used by scripts. `jaxact.data.shards` reads them.

It knows the annotation files of all systems, so that it can take only the media that they name.
"""
