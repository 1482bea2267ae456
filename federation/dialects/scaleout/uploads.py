"""`file-upload/…`: how Scaleout's Python API brings packages and models, chunk by chunk."""

from __future__ import annotations

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from federation.dialects.controller.asked import as_number, fields_of
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.view import ControllerView, answer
from federation.dialects.scaleout.fields import text, whole
from federation.models.services import chunked
from foundation.errors import forbidden, invalid
from projects.choices import Action

LARGEST = 1 << 62


class Begin(ControllerView):
    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        if not caller.may(Action.RUN):
            raise forbidden("You may see this project, but your role does not allow you to upload to it.")
        fields = fields_of(request)
        upload_id = chunked.begin(
            actor=caller.actor,
            file_name=text(fields, "file_name", most=500),
            size=whole(fields, "file_size", low=0, high=LARGEST),
            chunk_size=whole(fields, "chunk_size", low=0, high=LARGEST, default=900 * 1024),
        )
        return answer({"upload_id": upload_id})


class Chunk(ControllerView):
    def post(self, request: HttpRequest, caller: Caller, upload_id: str) -> HttpResponseBase:
        index = as_number(request.headers.get("X-Chunk-Index", ""))
        if index is None:
            raise invalid(
                "X-Chunk-Index", "Send the number of the chunk, from 0, in the header X-Chunk-Index."
            )
        done = chunked.add_chunk(actor=caller.actor, upload_id=upload_id, index=index, data=request.body)
        return answer({"message": "Chunk received", "chunks": done})


class Complete(ControllerView):
    def post(self, request: HttpRequest, caller: Caller, upload_id: str) -> HttpResponseBase:
        return answer({"file_token": chunked.complete(actor=caller.actor, upload_id=upload_id)})


class Abort(ControllerView):
    def post(self, request: HttpRequest, caller: Caller, upload_id: str) -> HttpResponseBase:
        chunked.abort(actor=caller.actor, upload_id=upload_id)
        return answer({"message": "Upload aborted"})
