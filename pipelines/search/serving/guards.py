"""ASGI middleware in front of the app: a token, a size limit for requests, and security headers."""

from __future__ import annotations

import hmac
from http.cookies import SimpleCookie
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_COOKIE = "isthmus_token"
_COOKIE_LIFE_S = 7 * 86_400
# The API docs have inline scripts; they show nothing that users wrote.
_DOCS = ("/docs", "/redoc")
_POLICY = "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
_DOCS_POLICY = "default-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"


class SafeHeaders:
    """Security headers: no scripts but the page's own, no framing by other sites, no guessing of content types."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                is_docs = scope.get("path", "").startswith(_DOCS)
                headers["Content-Security-Policy"] = _DOCS_POLICY if is_docs else _POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
            await send(message)

        await self._app(scope, receive, add if scope["type"] == "http" else send)


class BodyLimit:
    """Refuses requests with a body of more than `most` bytes, whatever length they declare."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = Headers(scope=scope).get("content-length", "0")
        if not said.isdigit() or int(said) > self._most:
            await self._refusal()(scope, receive, send)
            return
        chunks, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            more = message.get("more_body", False)
            if size > self._most:
                await self._refusal()(scope, receive, send)
                return
        body = b"".join(chunks)
        given = False

        async def whole() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, whole, send)

    def _refusal(self) -> JSONResponse:
        return JSONResponse({"detail": f"the request has more than {self._most:,} bytes; send less"}, status_code=413)


class TokenGate:
    """Admits requests with the token: as a bearer, as a cookie, or once as `?token=`, which sets the cookie."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        cookie = SimpleCookie(headers.get("cookie", "")).get(_COOKIE)
        if self._is_right(bearer) or (cookie is not None and self._is_right(cookie.value)):
            await self._app(scope, receive, send)
            return
        asked = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        shown = asked.pop("token", [""])[0]
        if scope["method"] == "GET" and scope["path"] == "/" and self._is_right(shown):
            rest = urlencode(asked, doseq=True)
            answer = RedirectResponse(f"/?{rest}" if rest else "/", status_code=303)
            answer.set_cookie(_COOKIE, shown, max_age=_COOKIE_LIFE_S, httponly=True, samesite="strict")
            await answer(scope, receive, send)
            return
        refusal = JSONResponse(
            {"detail": "needs the token: Authorization: Bearer …, or open /?token=…"}, status_code=401
        )
        await refusal(scope, receive, send)

    def _is_right(self, shown: str) -> bool:
        return hmac.compare_digest(shown.encode("utf-8", "surrogateescape"), self._token)
