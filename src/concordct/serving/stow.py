"""STOW-RS, the door for DICOMweb (PS3.18 10.5): multipart/related of application/dicom, one object in memory."""

from __future__ import annotations

from email.message import Message
from typing import Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from concordct.serving.inbox import NO_ROOM, SUCCESS, Answer, Inbox


class _Parts:
    """Whole parts as they end; a part beyond the limit ends the request."""

    def __init__(self, boundary: str, limit: int) -> None:
        self.whole: list[bytes] = []
        self.too_large = False
        self._limit, self._part = limit, bytearray()
        self._parser = MultipartParser(
            boundary.encode("latin-1"),
            {"on_part_begin": self._begin, "on_part_data": self._data, "on_part_end": self._end},
        )

    def feed(self, piece: bytes) -> None:
        self._parser.write(piece)

    def _begin(self) -> None:
        self._part = bytearray()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if len(self._part) + end - start > self._limit:
            self.too_large = True
        else:
            self._part += data[start:end]

    def _end(self) -> None:
        self.whole.append(bytes(self._part))
        self._part = bytearray()


async def store(request: Request, inbox: Inbox, *, limit: int, study: str | None) -> Response:
    """Store what a request brings; each object is on disk before the answer names it as stored.

    Parameters
    ----------
    limit : bytes of the greatest object.
    study : the study that the address names; objects are filed by what they say themselves.
    """
    kind = Message()
    kind["content-type"] = request.headers.get("content-type", "")
    boundary, part_type = kind.get_param("boundary"), kind.get_param("type")
    if kind.get_content_type() != "multipart/related" or not boundary or part_type != "application/dicom":
        return PlainTextResponse("expected multipart/related of application/dicom", status_code=415)
    parts = _Parts(str(boundary), limit)
    answers: list[Answer] = []
    try:
        async for piece in request.stream():
            parts.feed(piece)
            while parts.whole:
                answers.append(await run_in_threadpool(inbox.take, parts.whole.pop(0)))
            if parts.too_large:
                break
    except MultipartParseError:
        return PlainTextResponse("expected parts between boundaries", status_code=400)
    if parts.too_large:
        return PlainTextResponse("an object larger than is taken here", status_code=413)
    brought = sorted({answer.series for answer in answers if answer.status == SUCCESS and answer.series is not None})
    await run_in_threadpool(inbox.counted, brought)
    return JSONResponse(_said(answers), status_code=_status(answers), media_type="application/dicom+json")


def _status(answers: list[Answer]) -> int:
    """PS3.18 10.5.3.1: all stored, some, none; nothing stored for want of room is 507."""
    good = sum(answer.status == SUCCESS for answer in answers)
    if not answers:
        return 400
    if good == len(answers):
        return 200
    if good:
        return 202
    return 507 if all(answer.status == NO_ROOM for answer in answers) else 409


def _said(answers: list[Answer]) -> dict[str, Any]:
    """The response module (PS3.18 I.2) as DICOM JSON."""
    stored = [_item(answer) for answer in answers if answer.status == SUCCESS]
    failed = [
        {**_item(answer), "00081197": {"vr": "US", "Value": [answer.status]}}
        for answer in answers
        if answer.status != SUCCESS
    ]
    said: dict[str, Any] = {}
    if failed:
        said["00081198"] = {"vr": "SQ", "Value": failed}
    if stored:
        said["00081199"] = {"vr": "SQ", "Value": stored}
    return said


def _item(answer: Answer) -> dict[str, Any]:
    uids = (("00081150", answer.sop_class_uid), ("00081155", answer.sop_instance_uid))
    return {tag: {"vr": "UI", "Value": [uid]} for tag, uid in uids if uid}
