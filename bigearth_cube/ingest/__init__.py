"""From an archive to a cube: plan (rows), shard (the task), columns, lock, and the run itself."""

from bigearth_cube.ingest.run import Account, IngestReport, ingest

__all__ = ["Account", "IngestReport", "ingest"]
