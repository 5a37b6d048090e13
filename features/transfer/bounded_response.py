"""aiohttp's answer of a server, of which no more than there can be is kept."""

from __future__ import annotations

import aiohttp

from features.recipe import FeatureError
from features.transfer.body_limits import CHUNK, MOST_BODY


class BoundedResponse(aiohttp.ClientResponse):
    """An answer of which no more than `MOST_BODY` are kept."""

    async def read(self) -> bytes:
        if self._body is None:
            body = bytearray()
            async for chunk in self.content.iter_chunked(CHUNK):
                body += chunk
                if len(body) > MOST_BODY:
                    self.close()
                    raise FeatureError(f"the server's answer is longer than {MOST_BODY} bytes")
            self._body = bytes(body)
        return self._body
