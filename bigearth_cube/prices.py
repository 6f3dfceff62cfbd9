"""What a cloud asks for: one table, with its date."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bigearth_cube.errors import InvalidInputError

PRICED_IN: Final = "2025"
"""Year of the list prices below; what is billed is what the provider says today."""
DEFAULT_REGION: Final = "us-east-1"


@dataclass(frozen=True, slots=True)
class Prices:
    """List prices of one AWS region in dollars, before taxes, discounts and free tiers.

    Attributes
    ----------
    region
        Where the bucket is.
    gb_month
        To keep 10^9 bytes in S3 Standard for a month.
    puts_1000, gets_1000
        Of 1,000 requests that write (or list), and that read.
    gb_to_region, gb_to_internet
        To bring 10^9 bytes to another region, and out of AWS; nothing within the region.
    vcpu_hour, gb_hour
        Of a Fargate task.
    balancer_hour, endpoint_hour
        Of a load balancer with one capacity unit, and of an interface endpoint in one zone.
    machine_hour
        Of GPU machines on demand, by type.
    """

    region: str
    gb_month: float
    puts_1000: float
    gets_1000: float
    gb_to_region: float
    gb_to_internet: float
    vcpu_hour: float
    gb_hour: float
    balancer_hour: float
    endpoint_hour: float
    machine_hour: Mapping[str, float]

    @property
    def label(self) -> str:
        """Say whose prices these are."""
        return f"AWS S3 Standard, {self.region}, list prices of {PRICED_IN}"


_TABLE: Final = (
    Prices(
        region="us-east-1",
        gb_month=0.023,
        puts_1000=0.005,
        gets_1000=0.0004,
        gb_to_region=0.02,
        gb_to_internet=0.09,
        vcpu_hour=0.04048,
        gb_hour=0.004445,
        balancer_hour=0.0305,
        endpoint_hour=0.01,
        machine_hour={"g5.2xlarge": 1.212, "g6.4xlarge": 1.323, "g6e.4xlarge": 3.004},
    ),
    Prices(
        region="eu-central-1",
        gb_month=0.0245,
        puts_1000=0.0054,
        gets_1000=0.00043,
        gb_to_region=0.02,
        gb_to_internet=0.09,
        vcpu_hour=0.04656,
        gb_hour=0.00511,
        balancer_hour=0.035,
        endpoint_hour=0.012,
        machine_hour={"g5.2xlarge": 1.516, "g6.4xlarge": 1.654, "g6e.4xlarge": 3.756},
    ),
)


def prices_of(region: str = DEFAULT_REGION) -> Prices:
    """Return the prices of a region.

    Raises
    ------
    InvalidInputError
        If the table does not have it.

    Examples
    --------
    >>> prices_of("eu-central-1").gb_month
    0.0245
    """
    for prices in _TABLE:
        if prices.region == region:
            return prices
    raise InvalidInputError(
        f"no prices of region {region!r}; take the nearest of: {', '.join(p.region for p in _TABLE)}"
    )
