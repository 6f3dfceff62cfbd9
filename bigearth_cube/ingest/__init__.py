"""From an archive to a cube: survey, plan (rows), shard or stream, columns, publish."""

from bigearth_cube.ingest.forecast import Forecast, forecast
from bigearth_cube.ingest.give_up import GivenUp, give_up
from bigearth_cube.ingest.run import Account, IngestReport, ingest

__all__ = [
    "Account",
    "Forecast",
    "GivenUp",
    "IngestReport",
    "forecast",
    "give_up",
    "ingest",
]
