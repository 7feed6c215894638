"""Serves the page: on this machine to whoever is on it, beyond it to those who have the token."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from data_specs.text import say

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "dnd-view"
NOTHING_FROM_ELSEWHERE = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"


def serve(root: str, host: str, port: int) -> None:
    """Serve the page of a root until interrupted; print its address, with the token where one is needed.

    Args:
        port: 0 takes any that is free.

    Raises:
        ValueError: there is no run here, or the port is taken.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    from infra.view.page import FOLDER, page

    blocks = page(root).queue()
    listening = listen(host, port)
    plain = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    plain.set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300")
    app = gr.mount_gradio_app(
        FastAPI(), blocks, path="/", ssr_mode=False, footer_links=[], theme=plain, css_paths=FOLDER / "page.css"
    )
    token = None if is_local(host) else secrets.token_urlsafe(24)
    say(f"view: {address(host, listening.getsockname()[1])}/{f'?token={token}' if token else ''} (Ctrl-C ends it)")
    config = uvicorn.Config(guarded(app, token), log_level="warning", lifespan="on")
    uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the address.

    Raises:
        ValueError: the address cannot be had.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(f"{host}:{port}: {error.strerror}; --port N takes another one, --port 0 any") from None


def address(host: str, port: int) -> str:
    """Return the address for a browser: this machine's name where the server listens on all addresses."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host  # noqa: S104 (it is only compared)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def is_local(host: str) -> bool:
    """Return whether an address reaches this machine alone."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def guarded(app: ASGIApp, token: str | None) -> ASGIApp:
    """Return an application that answers only those who may ask.

    Without a token only requests to this machine under its own names are answered, so that no page of another site
    reaches it through the browser; with one, those that bring it: at first in the address, then as a cookie.
    """
    from starlette.requests import HTTPConnection
    from starlette.responses import PlainTextResponse, RedirectResponse

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await app(scope, receive, send)
        asked = HTTPConnection(scope)
        if token and _same(asked.query_params.get("token", ""), token):
            answer = RedirectResponse("/", status_code=303)
            answer.set_cookie(COOKIE, token, httponly=True, samesite="strict")
            return await answer(scope, receive, send)
        if refusal := refused(asked.headers, asked.cookies, token):
            return await PlainTextResponse(refusal, status_code=403)(scope, receive, send)
        return await app(scope, receive, _with_policy(send))

    return call


def refused(headers: Mapping[str, str], cookies: Mapping[str, str], token: str | None) -> str:
    """Return why a request is not answered; "" where it is."""
    host = headers.get("host", "")
    origin = headers.get("origin")
    if token and not _same(cookies.get(COOKIE, ""), token):
        return "open the address that `dnd view` printed: it bears the token"
    if not token and not is_local(_split(f"//{host}").hostname or ""):
        return "this page is served to this machine alone"
    if origin and _split(origin).netloc != host:
        return "this page answers no other"
    return ""


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())


def _split(address: str) -> SplitResult:
    """Split an address that a request names; one that is none, such as http://[, has no parts."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _with_policy(send: Send) -> Send:
    """Answers that tell the browser to load nothing from elsewhere."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            policy = (b"content-security-policy", NOTHING_FROM_ELSEWHERE.encode())
            message = {**message, "headers": [*message["headers"], policy]}
        await send(message)

    return sending
