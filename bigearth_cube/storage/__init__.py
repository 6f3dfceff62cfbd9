"""Object storage: a URL and its options become keys and bytes.

The only part of the package that knows object storage. S3, HTTP(S) and local paths go through
obstore, whose requests cost a tenth of s3fs's CPU time, but for ranges: those are read from a plain
socket (``ranges.py``), or the file. ``memory://`` and every other scheme go through fsspec.
"""

from bigearth_cube.storage.store import Storage, StorageOptions, normalized_url, refuse_fork

__all__ = ["Storage", "StorageOptions", "normalized_url", "refuse_fork"]
