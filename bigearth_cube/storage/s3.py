"""A bucket as its user names it: options, endpoint and credentials, for obstore.

Option names are fsspec's; they are translated here and nowhere else.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
from botocore.configprovider import ConfiguredEndpointProvider
from botocore.exceptions import ProfileNotFound
from botocore.session import Session as BotocoreSession
from obstore.store import S3Store

from bigearth_cube.errors import InvalidInputError, StorageError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Credential

S3_OPTIONS = {
    "key": "access_key_id",
    "secret": "secret_access_key",
    "token": "session_token",
    "anon": "skip_signature",
    "endpoint_url": "endpoint",
    "region": "region",
    "requester_pays": "request_payer",
    "profile": None,  # resolved by botocore, which obstore does not have
}
_SIGNED_FOR = timedelta(minutes=15)
_KNOWN_URLS = 4096
"""Kept of a bucket whose URLs are not signed; about a megabyte."""
_ENDPOINT = re.compile(r"https?://[\w.:\[\]-]+(/[\w./~-]*)?", re.ASCII)
# obstore asks again when five minutes are left, so once a minute. That costs nothing until botocore
# has to renew them; keys of a role may have no more than those five minutes when new ones appear.
_CREDENTIALS_LIVE = timedelta(minutes=6)


def open_bucket(
    url: str, options: dict[str, Any], client: ClientConfig
) -> tuple[Callable[[RetryConfig], Any], Callable[[str], str]]:
    """Return what opens the bucket, and what addresses its objects; options are checked at once.

    ``client`` is how obstore's clients are to be, whatever the bucket.
    """
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not re.fullmatch(r"[\w.-]+", bucket, re.ASCII):  # obstore would panic
        raise InvalidInputError(f"{url!r} names no bucket; expected s3://bucket/prefix")
    config = {ours: options[name] for name, ours in S3_OPTIONS.items() if ours and name in options}
    session = BotocoreSession(profile=options.get("profile"))
    try:
        config.setdefault("region", session.get_config_variable("region") or "us-east-1")
    except ProfileNotFound as error:
        raise InvalidInputError(f"{error}; name one of your AWS profiles") from None
    endpoint = config.pop("endpoint", None) or _configured_endpoint(session)
    if endpoint:
        config["endpoint"] = _checked_endpoint(str(endpoint))
    elif "AWS_ENDPOINT_URL" in os.environ:  # empty is unset, but S3Store would take it for a URL
        config["endpoint"] = f"https://s3.{config['region']}.amazonaws.com"
    provider = None
    if "access_key_id" not in config and not config.get("skip_signature"):
        provider = _Credentials(options.get("profile"))
    arguments = {
        "prefix": prefix or None,
        "credential_provider": provider,
        "client_options": {**client, "allow_http": str(endpoint or "").startswith("http://")},
        **config,
    }

    def new_store(retry: RetryConfig | None, **others: Any) -> Any:
        return S3Store(bucket, retry_config=retry, **arguments | others)

    is_signed = not config.get("skip_signature")
    # Where an object is does not depend on the keys that its URL is signed with.
    anybody: dict[str, Any] = {
        "skip_signature": False,
        "access_key_id": "any",
        "secret_access_key": "any",
    }
    signing = functools.cache(lambda: new_store(None, **({} if is_signed else anybody)))

    def address(key: str) -> str:
        signed: str = obstore.sign(signing(), "GET", key, _SIGNED_FOR)  # 10 us: each has its own
        return signed if is_signed else signed.partition("?")[0]

    return new_store, address if is_signed else functools.lru_cache(_KNOWN_URLS)(address)


def _configured_endpoint(session: BotocoreSession) -> str | None:
    """Endpoint from AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or the profile, as botocore has it."""
    provider = ConfiguredEndpointProvider(
        full_config=session.full_config,
        scoped_config=session.get_scoped_config(),
        client_name="s3",
    )
    endpoint: str | None = provider.provide()
    return endpoint


def _checked_endpoint(endpoint: str) -> str:
    """Return the endpoint if it is a URL; obstore would panic where it is none."""
    try:
        parts = urlsplit(endpoint)
        is_url = _ENDPOINT.fullmatch(endpoint) and parts.hostname and parts.port != 0
    except ValueError:  # no number, or above 65535
        is_url = False
    if not is_url:
        shown = re.sub(r"//[^/]*@", "//", endpoint)
        raise InvalidInputError(f"endpoint_url {shown!r} is no URL; expected http://host:port")
    return endpoint


@dataclass(frozen=True)
class _Credentials:
    """Credentials from botocore's chain, asked again before they expire.

    Pickles as the profile's name, never with the keys: a store that travels to a worker asks the
    chain there.
    """

    profile: str | None

    def __post_init__(self) -> None:
        if self._found is None:
            raise StorageError(
                "no AWS credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or pass storage_options with key and secret, profile, or anon=True"
            )

    def __reduce__(self) -> tuple[type[_Credentials], tuple[str | None]]:
        return _Credentials, (self.profile,)

    @functools.cached_property
    def _found(self) -> Any:
        return BotocoreSession(profile=self.profile).get_credentials()

    def __call__(self) -> S3Credential:
        frozen = self._found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_LIVE,
        }
