"""Who sends a request, and what they may do: API keys and JSON Web Tokens.

Neither a key nor a token is ever part of a message, an exception or a log record.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import re
import secrets
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeGuard

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from t2v_server.api.errors import ApiError
from t2v_server.config import SYMMETRIC, ClientSettings, ConfigError, JwtSettings

log = logging.getLogger(__name__)

READ = "t2v:read"
GENERATE = "t2v:generate"
ADMIN = "t2v:admin"
SCOPES = frozenset((READ, GENERATE, ADMIN))

KEY_PREFIX = "sk-t2v-"
_KEY_BYTES = 32
_LONGEST_NAME = 200

_CREDENTIALS = re.compile(r"bearer +(?P<token>[A-Za-z0-9._~+/-]+=*) *", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}")
_HASH = re.compile(r"sha256:(?P<hex>[0-9A-Fa-f]{64})")
_REALM = 'Bearer realm="t2v"'

_LEEWAY_SECONDS = 30  # between the clocks of the issuer and of this host
_FETCH_SECONDS = 5.0
_FRESH_SECONDS = 300.0  # fetched keys are asked for again after this
_STALE_SECONDS = 3600.0  # and used for no longer, even if the issuer is away
_COOLDOWN_SECONDS = 5.0  # between fetches, whatever keys tokens claim to be signed with
_CURVES = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}
_SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}  # RFC 7518, 3.2


@dataclass(frozen=True)
class Client:
    """Who asks. ``name`` is the owner that their jobs are stored under."""

    name: str
    scopes: frozenset[str]


ANONYMOUS = Client("", SCOPES)  # everybody, where nobody has to say who they are


class Authenticator:
    """Tells from a request's ``Authorization`` who sends it."""

    def __init__(self, clients: ClientSettings) -> None:
        """Read the files; keys behind a URL are fetched when the first token comes.

        Raises:
            ConfigError: when a file of keys cannot be used.
        """
        self._keys = _ApiKeys(clients.api_keys_file) if clients.api_keys_file else None
        self._tokens = _Tokens(clients.jwt) if clients.jwt else None

    def client(self, authorization: str | None) -> Client:
        """Whoever the header names; ``ANONYMOUS`` where authentication is off.

        Raises:
            ApiError: 401 ``missing_token``, ``invalid_token`` or ``expired_token``;
                503 ``token_keys_unavailable`` when the issuer's keys cannot be fetched.
        """
        if self._keys is None and self._tokens is None:
            return ANONYMOUS
        scheme = (authorization or "").strip().partition(" ")[0]
        if scheme.lower() != "bearer":
            raise ApiError(
                HTTPStatus.UNAUTHORIZED,
                "missing_token",
                "send an API key or a token: Authorization: Bearer …",
                headers={"WWW-Authenticate": _REALM},
            )
        match = _CREDENTIALS.fullmatch((authorization or "").strip())
        if match is None:
            raise _invalid("the Authorization header is not of the form Bearer TOKEN")
        token = match["token"]
        if token.startswith(KEY_PREFIX) or self._tokens is None:
            client = self._keys.client(token) if self._keys else None
            if client is None:
                raise _invalid("the API key is not known")
            return client
        return self._tokens.client(token)


def require(client: Client, scope: str) -> None:
    """See that the client may do what ``scope`` names.

    Raises:
        ApiError: 403 ``insufficient_scope``.
    """
    if scope not in client.scopes:
        raise ApiError(
            HTTPStatus.FORBIDDEN,
            "insufficient_scope",
            f"this needs the scope {scope}",
            headers={"WWW-Authenticate": f'{_REALM}, error="insufficient_scope", scope="{scope}"'},
        )


def new_key(name: str, scopes: Iterable[str] = (READ, GENERATE)) -> tuple[str, str]:
    """Make an API key: the key itself, and the line for ``T2V_API_KEYS_FILE``.

    Raises:
        ConfigError: when the name or a scope is unusable.
    """
    scopes = tuple(dict.fromkeys(scopes))
    problem = _problem_of_name(name) or _problem_of_scopes(scopes)
    if problem:
        raise ConfigError(problem)
    key = KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    return key, f"{name} sha256:{_digest(key).hex()} {','.join(scopes)}"


def _invalid(description: str, code: str = "invalid_token") -> ApiError:
    # RFC 6750 has one error for all tokens that are no good, expired ones included.
    return ApiError(
        HTTPStatus.UNAUTHORIZED,
        code,
        description,
        headers={
            "WWW-Authenticate": (
                f'{_REALM}, error="invalid_token", error_description="{description}"'
            )
        },
    )


# API keys.


@dataclass(frozen=True)
class _ApiKey:
    digest: bytes
    client: Client


class _ApiKeys:
    """The keys in a file, which is read again when it changes."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            ConfigError: when it cannot be read or a line is malformed.
        """
        self._path = path
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._keys = _read_api_keys(path)
        if not self._keys:
            log.warning("T2V_API_KEYS_FILE: %s holds no key", path)

    def client(self, key: str) -> Client | None:
        """Whose key it is. Takes as long for any key that is not known."""
        self._read_again_if_changed()
        digest = _digest(key)
        found = None
        for known in self._keys:
            if hmac.compare_digest(known.digest, digest):
                found = known.client
        return found

    def _read_again_if_changed(self) -> None:
        stamp = self._look()
        if stamp == self._stamp:
            return
        with self._lock:
            if stamp == self._stamp:
                return
            # Before the reading: what is written meanwhile is read by the next request.
            self._stamp = stamp
            try:
                self._keys = _read_api_keys(self._path)
            except ConfigError as error:
                log.error("%s The keys read before remain valid.", error)
            else:
                log.info("T2V_API_KEYS_FILE: read %d keys again", len(self._keys))

    def _look(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino, stat.st_size


def _read_api_keys(path: Path) -> tuple[_ApiKey, ...]:
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ConfigError(
            f"T2V_API_KEYS_FILE: {path} cannot be read ({error.strerror}): "
            "let this account read it."
        ) from error
    except UnicodeDecodeError:
        raise ConfigError(
            f"T2V_API_KEYS_FILE: {path} is not text: set it to a file of lines that "
            "`t2v-server key new` prints."
        ) from None
    keys = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        problem = _problem_of_words(words)
        if problem:
            # Says nothing of what the line holds: a key may have been put where its hash belongs.
            raise ConfigError(f"T2V_API_KEYS_FILE: line {number} of {path}: {problem}")
        match = _HASH.fullmatch(words[1])
        assert match
        scopes = words[2].split(",") if len(words) > 2 else (READ, GENERATE)
        client = Client(f"key:{words[0]}", frozenset(scopes))
        keys.append(_ApiKey(bytes.fromhex(match["hex"]), client))
    return tuple(keys)


def _problem_of_words(words: Sequence[str]) -> str | None:
    if not 2 <= len(words) <= 3:
        return "write NAME sha256:HASH SCOPE,SCOPE, as `t2v-server key new` prints it."
    if not _HASH.fullmatch(words[1]):
        return (
            "the second word is not sha256: with 64 hexadecimal digits: "
            "make a line with `t2v-server key new`."
        )
    scopes = words[2].split(",") if len(words) > 2 else (READ,)
    return _problem_of_name(words[0]) or _problem_of_scopes(scopes)


def _problem_of_name(name: str) -> str | None:
    if _NAME.fullmatch(name) and not name.startswith(KEY_PREFIX):
        return None
    return (
        "the name is not usable: use at most 100 letters, digits, dots, dashes, underscores "
        "and @, beginning with a letter or digit."
    )


def _problem_of_scopes(scopes: Sequence[str]) -> str | None:
    if scopes and SCOPES.issuperset(scopes):
        return None
    return f"a scope is not known: use {', '.join(sorted(SCOPES))}, with commas and no spaces."


def _digest(key: str) -> bytes:
    # Of 256 random bits: there is nothing to guess that a slow hash would protect.
    return hashlib.sha256(key.encode()).digest()


# Tokens.


@dataclass(frozen=True)
class _TokenKey:
    """``algorithm`` None: any that the kind of key allows."""

    value: RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey | bytes
    kid: str | None = None
    algorithm: str | None = None

    def fits(self, algorithm: str) -> bool:
        """Whether it checks such signatures; a public key is never a secret for HS…."""
        if self.algorithm not in (None, algorithm):
            return False
        match algorithm[:2]:
            case "HS":
                return isinstance(self.value, bytes)
            case "RS" | "PS":
                return isinstance(self.value, RSAPublicKey)
            case "ES":
                return (
                    isinstance(self.value, EllipticCurvePublicKey)
                    and self.value.curve.name == _CURVES[algorithm]
                )
            case _:
                return isinstance(self.value, (Ed25519PublicKey, Ed448PublicKey))


class _Tokens:
    """Checks tokens of one issuer for this service."""

    def __init__(self, settings: JwtSettings) -> None:
        self._settings = settings
        self._keys: _KeyFile | _KeyServer
        if settings.jwks_url is not None:
            self._keys = _KeyServer(settings.jwks_url)
        else:
            assert settings.key_file is not None
            self._keys = _KeyFile(settings.key_file, settings.algorithms)

    def client(self, token: str) -> Client:
        """Whoever the token is about, with the scopes it grants.

        Raises:
            ApiError: 401, or 503 when there are no keys to check it with.
        """
        try:
            claims = self._verified(token)
        except jwt.ExpiredSignatureError:
            raise _invalid("the token has expired", "expired_token") from None
        except jwt.PyJWTError as error:
            raise _invalid(_description_of(error)) from None
        return Client(_name_in(claims), SCOPES & _scopes_in(claims))

    def _verified(self, token: str) -> Mapping[str, Any]:
        header = jwt.get_unverified_header(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        # Chosen by the settings alone; the token only says which of them it used.
        if not isinstance(algorithm, str) or algorithm not in self._settings.algorithms:
            raise jwt.InvalidAlgorithmError
        for key in self._keys.find(kid):
            if not key.fits(algorithm):
                continue
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key.value,
                    algorithms=[algorithm],
                    audience=self._settings.audience,
                    issuer=self._settings.issuer,
                    leeway=_LEEWAY_SECONDS,
                    options={"require": ["exp", "aud"]},
                )
            except jwt.InvalidSignatureError:
                continue
            return claims
        raise jwt.InvalidSignatureError


def _description_of(error: jwt.PyJWTError) -> str:
    match error:
        case jwt.InvalidAlgorithmError():
            return "the token is not signed with an algorithm that is allowed here"
        case jwt.InvalidSignatureError():
            return "the token is not signed with a key that is trusted here"
        case jwt.InvalidAudienceError():
            return "the token is for another service"
        case jwt.InvalidIssuerError():
            return "the token is from another issuer"
        case jwt.ImmatureSignatureError():
            return "the token is not valid yet"
        case jwt.MissingRequiredClaimError():
            return f"the token has no claim {error.claim}"
    return "the token is malformed"


def _name_in(claims: Mapping[str, Any]) -> str:
    who = next((claims[name] for name in ("sub", "client_id", "azp") if claims.get(name)), None)
    if not isinstance(who, str):
        raise _invalid("the token does not say who it is about")
    name = f"jwt:{who}"
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise _invalid("the token's subject is not usable as a name")
    return name


def _scopes_in(claims: Mapping[str, Any]) -> frozenset[str]:
    """What ``scope`` (RFC 9068) and ``scp`` (Entra ID, Okta) grant."""
    found = set[str]()
    for claim in (claims.get("scope"), claims.get("scp")):
        if isinstance(claim, str):
            found.update(claim.split())
        elif isinstance(claim, list):
            found.update(word for word in claim if isinstance(word, str))
    return frozenset(found)


class _KeyFile:
    """The keys in a file: PEM, JWK or JWKS, or a bare secret for HS…."""

    def __init__(self, path: Path, algorithms: Sequence[str]) -> None:
        """Read the file.

        Raises:
            ConfigError: when no key in it fits the algorithms.
        """
        try:
            content = path.read_bytes().strip()
        except OSError as error:
            raise ConfigError(
                f"T2V_JWT_KEY_FILE: {path} cannot be read ({error.strerror}): "
                "let this account read it."
            ) from error
        try:
            keys = _keys_in(content, symmetric=algorithms[0] in SYMMETRIC)
        except ConfigError as error:
            raise ConfigError(f"T2V_JWT_KEY_FILE: {path} {error}") from None
        self._keys = [key for key in keys if any(key.fits(name) for name in algorithms)]
        if not self._keys:
            raise ConfigError(
                f"T2V_JWT_KEY_FILE: {path} holds no public key or secret for "
                f"{', '.join(algorithms)}: "
                "put the issuer's key there, or set T2V_JWT_ALGORITHMS to what it signs with."
            )
        for key in self._keys:
            # What fits is bytes for all of HS… and for nothing else.
            needed = max((_SECRET_BYTES.get(name, 0) for name in algorithms), default=0)
            if isinstance(key.value, bytes) and len(key.value) < needed:
                raise ConfigError(
                    f"T2V_JWT_KEY_FILE: {path} holds a secret of {len(key.value)} bytes: "
                    f"use one of at least {needed} random bytes."
                )

    def find(self, kid: str | None) -> Sequence[_TokenKey]:
        """The keys that may have signed a token; those without a name may have signed any."""
        return [key for key in self._keys if kid is None or key.kid in (None, kid)]


class _KeyServer:
    """The keys behind a URL, fetched when they are needed and kept for a while."""

    def __init__(self, url: str) -> None:
        self._client = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=_FETCH_SECONDS)
        self._fetching = threading.Lock()
        self._keys: tuple[_TokenKey, ...] = ()
        self._fetched_at = -math.inf
        self._tried_at = -math.inf
        self._away = False

    def find(self, kid: str | None) -> Sequence[_TokenKey]:
        """The keys that may have signed a token, after a fetch if there is none or they are old.

        Raises:
            ApiError: 503, when there is none and the server with the keys is away.
        """
        found = self._among_fetched(kid)
        if found and time.monotonic() - self._fetched_at < _FRESH_SECONDS:
            return found
        if found and self._fetching.locked():
            return found  # somebody else waits for newer ones
        with self._fetching:
            if time.monotonic() - self._tried_at >= _COOLDOWN_SECONDS:
                self._fetch()
            away = self._away
        found = self._among_fetched(kid)
        if not found and away:
            raise ApiError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "token_keys_unavailable",
                "the keys to check the token with cannot be fetched",
                retry_after=math.ceil(_COOLDOWN_SECONDS),
            )
        return found

    def _among_fetched(self, kid: str | None) -> Sequence[_TokenKey]:
        if time.monotonic() - self._fetched_at > _STALE_SECONDS:
            return ()
        return [key for key in self._keys if kid is None or key.kid == kid]

    def _fetch(self) -> None:
        try:
            keys = _keys_in_jwks(self._client.fetch_data())
            if not keys:
                raise ValueError("it holds no public key")
        except (jwt.PyJWTError, OSError, ValueError) as error:
            if not self._away:
                log.error("T2V_JWT_JWKS_URL cannot be used: %s", error)
            self._away = True
        else:
            if self._away:
                log.info("T2V_JWT_JWKS_URL can be used again")
            self._keys, self._fetched_at, self._away = keys, time.monotonic(), False
        # After the fetch, so that those who waited for one that failed do not each try again.
        self._tried_at = time.monotonic()


def _keys_in(content: bytes, *, symmetric: bool) -> Sequence[_TokenKey]:
    """The keys of a file.

    Raises:
        ConfigError: with the end of a sentence that begins with the file's name.
    """
    if b"PRIVATE KEY-----" in content:
        raise ConfigError("holds a private key: put the public key there instead.")
    if content.startswith(b"{"):
        try:
            return _keys_in_jwks(json.loads(content))
        except ValueError:
            if not symmetric:
                raise ConfigError("is not JSON: put a JWK, a JWKS or PEM there.") from None
    pem = b"-----BEGIN " in content
    if symmetric:
        if pem:
            # Everybody knows a public key, and could sign with it.
            raise ConfigError("holds a public key, and T2V_JWT_ALGORITHMS names HS…: change one.")
        return [_TokenKey(content)]
    value: object
    try:
        if b"-----BEGIN CERTIFICATE-----" in content:
            value = x509.load_pem_x509_certificate(content).public_key()
        else:
            value = load_pem_public_key(content)
    except ValueError:
        raise ConfigError("is neither PEM nor JSON: put a public key there.") from None
    return [_TokenKey(value)] if _is_public_key(value) else []


def _keys_in_jwks(data: object) -> tuple[_TokenKey, ...]:
    """The usable keys of a JWKS, or of a JWK that stands alone.

    Raises:
        ValueError: when it is neither.
    """
    if not isinstance(data, dict):
        raise ValueError("it is not a JSON object")
    items = data.get("keys", [data])
    if not isinstance(items, list):
        raise ValueError("its keys are no list")
    keys = []
    for item in items:
        if not isinstance(item, dict) or item.get("use", "sig") != "sig":
            continue
        try:
            value = jwt.PyJWK(item).key
        except jwt.PyJWTError:
            continue  # of a kind that is not known here
        if isinstance(value, bytes) or _is_public_key(value):
            keys.append(_TokenKey(value, item.get("kid"), item.get("alg")))
    return tuple(keys)


def _is_public_key(
    value: object,
) -> TypeGuard[RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey]:
    return isinstance(
        value, (RSAPublicKey, EllipticCurvePublicKey, Ed25519PublicKey, Ed448PublicKey)
    )
