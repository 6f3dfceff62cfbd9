"""A Zarr store of which one document is known; a module of its own, as zarr takes long to import."""

from __future__ import annotations

from typing import Any

import zarr.storage


class OpenedStore(zarr.storage.WrapperStore[Any]):
    """A store whose root document was read already: not asked for again, nor of a later release.

    Parameters
    ----------
    store
        The store.
    key
        Key of the document.
    document
        Its bytes.
    """

    def __init__(self, store: Any, key: str = "", document: bytes = b"") -> None:
        super().__init__(store)
        self._key, self._document = key, document

    def _with_store(self, store: Any) -> OpenedStore:
        return type(self)(store, self._key, self._document)

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        """Return the bytes at a key, or None."""
        if key == self._key and byte_range is None:
            return prototype.buffer.from_bytes(self._document)
        return await super().get(key, prototype, byte_range)
