"""Addresses below /api/v1/ that only Scaleout's clients and Python API know; none redirects."""

from __future__ import annotations

from django.urls import re_path

from federation.dialects.scaleout import enrolment, uploads

UPLOAD = r"^file-upload/(?P<upload_id>[0-9a-f]{1,64})"

urlpatterns = [
    re_path(r"^clients/enroll/?$", enrolment.Enrol.as_view(), name="scaleout-enrol"),
    re_path(r"^clients/token/?$", enrolment.Refresh.as_view(), name="scaleout-token"),
    re_path(
        r"^auth/enrollment-tokens/?$", enrolment.EnrolmentTokens.as_view(), name="scaleout-enrolment-tokens"
    ),
    re_path(r"^file-upload/init/?$", uploads.Begin.as_view(), name="scaleout-upload"),
    re_path(rf"{UPLOAD}/chunk/?$", uploads.Chunk.as_view(), name="scaleout-upload-chunk"),
    re_path(rf"{UPLOAD}/complete/?$", uploads.Complete.as_view(), name="scaleout-upload-complete"),
    re_path(rf"{UPLOAD}/abort/?$", uploads.Abort.as_view(), name="scaleout-upload-abort"),
]
