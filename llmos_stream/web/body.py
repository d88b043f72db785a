"""A limit on a request's body, kept before anything of it is parsed."""

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware: reads the body, at most `most` bytes, and answers 413 for a larger one."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"")
        size = int(said) if said.isdigit() else 0
        body = bytearray()
        more = size <= self._most
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # gone before it had said everything
            body += message.get("body", b"")
            size = max(size, len(body))
            more = message.get("more_body", False) and size <= self._most
        if size > self._most:
            refusal = JSONResponse({"detail": f"the body has more than {self._most} bytes, the limit"}, 413)
            refusal.headers["connection"] = "close"  # what is still on its way is not read
            await refusal(scope, receive, send)
            return
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, replay, send)
