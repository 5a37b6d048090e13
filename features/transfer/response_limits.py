"""What servers send, in no more bytes than were asked for, whatever they say of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from features.recipe import FeatureError
from features.transfer.body_limits import CHUNK
from features.transfer.stall_timeout import SILENCE, Moved

ENCODINGS = ("", "identity")

Write = Callable[[bytes], object]


def http_options(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what fsspec's HTTP is made with.

    Args:
        settings: the user's own, from fsspec's configuration.
    """
    import aiohttp  # takes a while

    from features.transfer.bounded_response import BoundedResponse

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
    own = {"response_class": BoundedResponse, "auto_decompress": False, "timeout": timeout}
    return {"client_kwargs": {**settings.get("client_kwargs", {}), **own}}


def s3_options() -> dict[str, Any]:
    """Return what s3fs is made with."""
    from aiobotocore.httpsession import AIOHTTPSession  # takes a while

    from features.transfer.bounded_response import BoundedResponse

    class BoundedSession(AIOHTTPSession):  # type: ignore[misc]
        async def _get_session(self, proxy_url: str | None) -> Any:
            session = await super()._get_session(proxy_url)
            session._response_class = BoundedResponse
            return session

    return {
        "config_kwargs": {
            # s3fs and the library below it try 25 times, for minutes; `Remote` tries again itself
            "retries": {"total_max_attempts": 1},
            "connect_timeout": SILENCE,
            "read_timeout": SILENCE,
            "http_session_cls": BoundedSession,
        },
        "use_listings_cache": False,
    }


async def http_part(
    fs: Any, url: str, start: int, end: int, write: Write, moved: Moved, ranged: bool = True
) -> None:
    """Hand on some bytes of a file; some simple servers send whole files only.

    Args:
        fs: fsspec's file system.
        url: of the file.
        start: the first byte.
        end: the byte after the last; fewer come where the file ends before.
        write: takes the bytes.
        moved: counts them.
        ranged: whether the server is asked for these bytes alone.

    Raises:
        FeatureError: the server sends something else than it was asked for.
    """
    settings = dict(fs.kwargs)
    headers = {**settings.pop("headers", {}), "Accept-Encoding": "identity"}
    if ranged:
        headers["Range"] = f"bytes={start}-{end - 1}"
    session = await fs.set_session()
    async with session.get(fs.encode_url(url), headers=headers, **settings) as answer:
        fs._raise_not_found_for_status(answer, url)
        if answer.headers.get("Content-Encoding", "").lower() not in ENCODINGS:
            raise FeatureError("the server sends it compressed, which it was asked not to")
        whole = answer.status != 206
        skip, left = start if whole else 0, end - start
        async for chunk in answer.content.iter_chunked(CHUNK):
            moved.add(len(chunk))
            skipped = min(skip, len(chunk))
            skip -= skipped
            wanted = chunk[skipped : skipped + left]
            write(wanted)
            left -= len(wanted)
            if skipped + len(wanted) < len(chunk):
                if not whole:
                    raise FeatureError("the server sends more bytes than it was asked for")
                return
            if whole and not left:
                return


async def s3_part(fs: Any, path: str, start: int, end: int, write: Write, moved: Moved) -> None:
    """Hand on some bytes of an object; see `http_part`."""
    bucket, key, _ = fs.split_path(path)
    where = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{end - 1}"}
    body = (await fs._call_s3("get_object", **where))["Body"]
    left = end - start
    try:
        while chunk := await body.read(CHUNK):
            moved.add(len(chunk))
            if len(chunk) > left:
                raise FeatureError("the server sends more bytes than it was asked for")
            write(chunk)
            left -= len(chunk)
    finally:
        body.close()


def sftp_part(fs: Any, path: str, start: int, end: int, write: Write, moved: Moved) -> None:
    """Hand on some bytes of a file, all asked for at once; see `http_part`."""
    parts = [(at, min(CHUNK, end - at)) for at in range(start, end, CHUNK)]
    with fs.open(path, "rb") as file:
        for (_, nbytes), chunk in zip(parts, file.readv(parts), strict=True):
            if len(chunk) > nbytes:
                raise FeatureError("the server sends more bytes than it was asked for")
            moved.add(len(chunk))
            write(chunk)
