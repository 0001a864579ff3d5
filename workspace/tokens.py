"""Signed, expiring tokens: what a page hands to the browser so that a route knows who was asked to do what."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer

from probes.errors import ProbeError


class TokenError(ProbeError):
    """A token is forged, made for something else, or too old."""


class Tokens:
    """Issue and check tokens with the workspace's own secret, which only its owner may read."""

    def __init__(self, root: Path) -> None:
        self.secret = _secret(root / "secret")

    def issue(self, purpose: str, subject: str) -> str:
        """Return a token that lets this subject do one kind of thing."""
        return str(self._signer(purpose).dumps(subject))

    def subject_of(self, token: str, purpose: str, seconds: float) -> str:
        """Return whom a token was issued to, at most so long ago; raise TokenError otherwise."""
        try:
            return str(self._signer(purpose).loads(token, max_age=int(seconds)))
        except SignatureExpired:
            raise TokenError("This page was open for too long: reload it, then try again.") from None
        except BadSignature:
            raise TokenError("This was not asked for by a page of this app.") from None

    def _signer(self, purpose: str) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(self.secret, salt=f"theodolite-{purpose}")


def _secret(path: Path) -> bytes:
    if not path.exists():
        temporary = path.with_name(f".secret.{os.getpid()}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)  # of two processes that start together the first wins
        temporary.unlink()
    return path.read_bytes()
