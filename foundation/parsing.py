"""Request bodies, refused by size before they are decoded."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import IO, Any

from django.conf import settings
from rest_framework.parsers import JSONParser

from foundation.errors import StudioError


class BoundedJSONParser(JSONParser):
    """JSON of at most `DATA_UPLOAD_MAX_MEMORY_SIZE` bytes. What is larger is a file, and comes as multipart."""

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        most: int = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        body = stream.read(most + 1)
        if len(body) > most:
            raise StudioError("too_large", f"A JSON body has at most {most} bytes.", 413)
        if b"\\u0000" in body or b"\x00" in body:
            raise StudioError("malformed", "Text must not hold the character U+0000.", 400)
        try:
            return super().parse(BytesIO(body), media_type, parser_context)
        except RecursionError:
            raise StudioError("malformed", "The JSON is nested too deeply.", 400) from None
