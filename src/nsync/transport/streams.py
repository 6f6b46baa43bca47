"""A zstd stream from a peer, inflated within bounds: its window, and what it inflates to, whoever made it.

Pure: bytes in, bytes out. Whatever breaks a limit raises ProtocolError, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator

import zstandard

from nsync.errors import ProtocolError

WINDOW_BYTES_LOG = 20
"""zstd looks back 1 MiB: about one segment, and all that a receiver must keep."""

_SLICE_BYTES = 64
"""Compressed bytes inflated at once. A zstd block has at least 4 bytes and inflates to at most 128 KiB, so a slice
inflates to 2 MiB at most, whoever made it. (Measured: 0.1 s per 8 MiB more than without slices.)"""


def compressor(level: int) -> zstandard.ZstdCompressionObj:
    """Makes a stream that `Inflater` takes."""
    parameters = zstandard.ZstdCompressionParameters.from_level(level, window_log=WINDOW_BYTES_LOG)
    return zstandard.ZstdCompressor(compression_params=parameters).compressobj()


class Inflater:
    """One stream."""

    def __init__(self, what: str, bytes_max: int) -> None:
        """`what` it carries, for texts; `bytes_max`: the limit on what it inflates to."""
        self._zstd = zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_BYTES_LOG).decompressobj()
        self._what = what
        self._bytes_max = bytes_max
        self._bytes = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` inflates to, slice by slice: nothing is inflated before the slice before it is taken."""
        for start in range(0, len(data), _SLICE_BYTES):
            yield self._inflate(data[start : start + _SLICE_BYTES])

    def close(self, whole: bool = True) -> None:
        """The sender said that this was all: check that the stream has ended, with something `whole` in it."""
        if not self._zstd.eof or not whole:
            raise ProtocolError(f"{self._what}: the stream is cut short after {self._bytes} bytes")

    def _inflate(self, data: bytes) -> bytes:
        if self._zstd.eof:
            raise ProtocolError(f"{self._what}: bytes after the end of the zstd stream")
        try:
            inflated = self._zstd.decompress(data)
        except zstandard.ZstdError as error:
            window = f"a window of at most {1 << WINDOW_BYTES_LOG} bytes"
            raise ProtocolError(f"{self._what}: not a zstd stream with {window}: {error}") from error
        if self._zstd.unused_data:
            raise ProtocolError(f"{self._what}: bytes after the end of the zstd stream")
        self._bytes += len(inflated)
        if self._bytes > self._bytes_max:
            raise ProtocolError(f"{self._what}: the stream inflates to more than {self._bytes_max} bytes")
        return inflated
