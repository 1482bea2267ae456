"""`file-upload/…`: how Scaleout's Python API brings packages and models, chunk by chunk."""

from __future__ import annotations

from rest_framework.request import Request
from rest_framework.response import Response

from federation.dialects.scaleout.http import MessageView, fields_of, text, token_of, whole
from federation.models.services import chunked
from foundation.errors import invalid
from projects.actors import actor_of

LARGEST = 1 << 62


class Begin(MessageView):
    def post(self, request: Request) -> Response:
        token_of(request)
        fields = fields_of(request)
        upload_id = chunked.begin(
            actor=actor_of(request),
            file_name=text(fields, "file_name", most=500),
            size=whole(fields, "file_size", low=0, high=LARGEST),
            chunk_size=whole(fields, "chunk_size", low=0, high=LARGEST, default=900 * 1024),
        )
        return Response({"upload_id": upload_id})


class Chunk(MessageView):
    def post(self, request: Request, upload_id: str) -> Response:
        token_of(request)
        index = request.headers.get("X-Chunk-Index", "")
        if not index.isdecimal() or len(index) > 9:
            raise invalid(
                "X-Chunk-Index", "Send the number of the chunk, from 0, in the header X-Chunk-Index."
            )
        done = chunked.add_chunk(
            actor=actor_of(request), upload_id=upload_id, index=int(index), data=request._request.body
        )
        return Response({"message": "Chunk received", "chunks": done})


class Complete(MessageView):
    def post(self, request: Request, upload_id: str) -> Response:
        token_of(request)
        return Response({"file_token": chunked.complete(actor=actor_of(request), upload_id=upload_id)})


class Abort(MessageView):
    def post(self, request: Request, upload_id: str) -> Response:
        token_of(request)
        chunked.abort(actor=actor_of(request), upload_id=upload_id)
        return Response({"message": "Upload aborted"})
