"""Keys and tokens, genuine and forged; and how often a client may ask."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from redis_server import RedisServer
from t2v_server.api import auth
from t2v_server.api.auth import (
    ADMIN,
    ANONYMOUS,
    GENERATE,
    READ,
    Authenticator,
    Client,
    new_key,
    require,
)
from t2v_server.api.errors import ApiError
from t2v_server.api.rates import RateLimiter
from t2v_server.config import (
    ClientSettings,
    ConfigError,
    JwtSettings,
    RateLimit,
    RedisSettings,
)

ISSUER = "https://issuer.example"
AUDIENCE = "https://videos.example"
PUBLIC = ("RS256", "ES256", "EdDSA")
REMOVED = object()
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


# Helpers.


@functools.cache
def rsa_key(name: str = "the issuer's") -> rsa.RSAPrivateKey:
    """A key for each name."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def jwk(key: PrivateKey, kid: str | None = None, **more: str) -> dict[str, Any]:
    public = key.public_key()
    data: dict[str, Any]
    if isinstance(public, rsa.RSAPublicKey):
        data = jwt.algorithms.RSAAlgorithm.to_jwk(public, as_dict=True)
    elif isinstance(public, ec.EllipticCurvePublicKey):
        data = jwt.algorithms.ECAlgorithm.to_jwk(public, as_dict=True)
    else:
        data = jwt.algorithms.OKPAlgorithm.to_jwk(public, as_dict=True)
    data.pop("key_ops", None)
    return {**data, **({"kid": kid} if kid else {}), **more}


def clients(keys: Path | None = None, tokens: JwtSettings | None = None) -> ClientSettings:
    return ClientSettings(
        api_keys_file=keys,
        jwt=tokens,
        rate_limit=None,
        max_active=None,
        max_daily=None,
        max_streams=64,
        trusted_proxies=0,
    )


def with_key_file(
    path: Path,
    content: bytes | str,
    algorithms: tuple[str, ...] = PUBLIC,
    issuer: str | None = ISSUER,
) -> Authenticator:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Authenticator(clients(tokens=JwtSettings(None, path, algorithms, issuer, AUDIENCE)))


def with_key_server(url: str) -> Authenticator:
    return Authenticator(clients(tokens=JwtSettings(url, None, PUBLIC, ISSUER, AUDIENCE)))


def claims(**changes: object) -> dict[str, Any]:
    now = int(time.time())
    data = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "studio",
        "iat": now,
        "exp": now + 300,
        "scope": f"{READ} {GENERATE}",
    } | changes
    return {name: value for name, value in data.items() if value is not REMOVED}


def token(
    key: PrivateKey | str | None = None,
    algorithm: str = "RS256",
    headers: dict[str, Any] | None = None,
    **changes: object,
) -> str:
    return jwt.encode(claims(**changes), key or rsa_key(), algorithm=algorithm, headers=headers)


def raw_token(header: object, payload: bytes, sign: Callable[[bytes], bytes]) -> str:
    """A token that PyJWT would refuse to make."""
    parts = [json.dumps(header).encode(), payload]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    return (signed + b"." + base64.urlsafe_b64encode(sign(signed)).rstrip(b"=")).decode()


def refusal(authenticator: Authenticator, authorization: str | None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        authenticator.client(authorization)
    return caught.value


def assert_invalid(
    authenticator: Authenticator, credentials: str, code: str = "invalid_token", says: str = ""
) -> None:
    error = refusal(authenticator, f"Bearer {credentials}")
    assert (error.status, error.code) == (401, code)
    challenge = error.headers["WWW-Authenticate"]
    assert challenge.startswith('Bearer realm="t2v", error="invalid_token", error_description="')
    challenge.encode("ascii")
    assert says in error.message
    if credentials:
        assert credentials not in repr(error) + error.message + challenge
        assert error.__cause__ is None


@pytest.fixture
def trusting(tmp_path: Path) -> Authenticator:
    """Trusts the issuer's RSA key."""
    return with_key_file(tmp_path / "key.pem", pem(rsa_key()))


# Without authentication, and without credentials.


def test_where_nobody_has_to_say_who_they_are_everybody_is_anonymous() -> None:
    authenticator = Authenticator(clients())
    assert authenticator.client(None) == authenticator.client("Bearer x") == ANONYMOUS
    assert ANONYMOUS.name == ""
    assert {READ, GENERATE, ADMIN} <= ANONYMOUS.scopes


@pytest.mark.parametrize("header", [None, "", "Basic dTpw", "Bearerx y"])
def test_a_request_without_a_token_is_told_how_to_send_one(
    trusting: Authenticator, header: str | None
) -> None:
    error = refusal(trusting, header)
    assert (error.status, error.code) == (401, "missing_token")
    assert error.headers == {"WWW-Authenticate": 'Bearer realm="t2v"'}


@pytest.mark.parametrize("header", ["Bearer", "Bearer ", "Bearer a b", "Bearer ä", "Bearer a,b"])
def test_a_header_of_another_form_is_invalid(trusting: Authenticator, header: str) -> None:
    error = refusal(trusting, header)
    assert (error.status, error.code) == (401, "invalid_token")


def test_the_scheme_is_written_in_any_case(trusting: Authenticator) -> None:
    assert trusting.client(f"bEARER  {token()}").name == "jwt:studio"


def test_a_scope_is_required() -> None:
    client = Client("key:studio", frozenset({READ}))
    require(client, READ)
    with pytest.raises(ApiError) as caught:
        require(client, GENERATE)
    error = caught.value
    assert (error.status, error.code) == (403, "insufficient_scope")
    assert error.headers == {
        "WWW-Authenticate": ('Bearer realm="t2v", error="insufficient_scope", scope="t2v:generate"')
    }


# API keys.


def write(path: Path, *lines: str) -> None:
    """Replace the file, as whoever rotates keys should."""
    new = path.with_suffix(".new")
    new.write_text("".join(f"{line}\n" for line in lines))
    new.replace(path)


def test_keys_are_random_and_their_lines_hold_hashes() -> None:
    key, line = new_key("studio", [READ, GENERATE])
    assert key.startswith("sk-t2v-")
    assert len(base64.urlsafe_b64decode(key.removeprefix("sk-t2v-") + "=")) == 32
    assert line == f"studio sha256:{hashlib.sha256(key.encode()).hexdigest()} {READ},{GENERATE}"
    assert new_key("studio", [READ])[0] != key


@pytest.mark.parametrize(
    ("name", "scopes"),
    [("", [READ]), ("a b", [READ]), ("#", [READ]), ("a" * 101, [READ]), ("a", ["x"]), ("a", [])],
)
def test_no_key_is_made_that_the_file_could_not_hold(name: str, scopes: list[str]) -> None:
    with pytest.raises(ConfigError):
        new_key(name, scopes)


def test_a_key_names_its_client(tmp_path: Path) -> None:
    studio, studio_line = new_key("studio", [READ, GENERATE])
    admin, admin_line = new_key("ops@example", [READ, ADMIN])
    plain, plain_line = new_key("plain", [READ])
    path = tmp_path / "keys"
    write(
        path,
        "# Clients",
        "",
        f"  {studio_line}   # until May",
        admin_line,
        " ".join(plain_line.split()[:2]),
    )
    authenticator = Authenticator(clients(path))
    assert authenticator.client(f"Bearer {studio}") == Client(
        "key:studio", frozenset({READ, GENERATE})
    )
    assert authenticator.client(f"Bearer {admin}").scopes == {READ, ADMIN}
    assert authenticator.client(f"Bearer {plain}").scopes == {READ, GENERATE}
    assert_invalid(authenticator, new_key("studio", [READ])[0], says="not known")
    assert_invalid(authenticator, token(), says="not known")


def test_neither_a_hash_nor_a_part_of_a_key_is_a_key(tmp_path: Path) -> None:
    key, line = new_key("studio", [READ])
    path = tmp_path / "keys"
    write(path, line)
    authenticator = Authenticator(clients(path))
    for wrong in (line.split()[1].removeprefix("sha256:"), key[:-1], key + "a", key.lower()):
        assert_invalid(authenticator, wrong)


def test_every_digest_is_compared_in_constant_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [new_key(f"client-{index}", [READ]) for index in range(3)]
    path = tmp_path / "keys"
    write(path, *[line for _, line in made])
    authenticator = Authenticator(clients(path))
    compared: list[tuple[bytes, bytes]] = []
    genuine = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return genuine(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    first = made[0][0]
    assert authenticator.client(f"Bearer {first}").name == "key:client-0"
    # The first one matched, and the others were compared all the same.
    assert compared == [
        (hashlib.sha256(key.encode()).digest(), hashlib.sha256(first.encode()).digest())
        for key, _ in made
    ]


def test_keys_are_rotated_without_a_restart(tmp_path: Path) -> None:
    old, old_line = new_key("studio", [READ])
    new, new_line = new_key("studio", [READ])
    path = tmp_path / "keys"
    write(path, old_line)
    authenticator = Authenticator(clients(path))
    assert_invalid(authenticator, new)

    write(path, old_line, new_line)  # both, while the client changes over
    assert authenticator.client(f"Bearer {old}") == authenticator.client(f"Bearer {new}")

    write(path, new_line)
    assert_invalid(authenticator, old)
    assert authenticator.client(f"Bearer {new}").name == "key:studio"

    write(path)
    assert_invalid(authenticator, new)


def test_a_file_that_is_written_in_place_is_read_again(tmp_path: Path) -> None:
    old, old_line = new_key("studio", [READ])
    new, new_line = new_key("studio", [READ])
    path = tmp_path / "keys"
    path.write_text(old_line)
    authenticator = Authenticator(clients(path))
    before = path.stat()
    path.write_text(new_line)  # as long as before
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert authenticator.client(f"Bearer {new}").name == "key:studio"
    assert_invalid(authenticator, old)


@pytest.mark.parametrize("gone", [False, True], ids=["broken", "removed"])
def test_a_broken_new_file_keeps_the_old_keys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, gone: bool
) -> None:
    key, line = new_key("studio", [READ])
    secret, _ = new_key("careless", [READ])
    path = tmp_path / "keys"
    write(path, line)
    authenticator = Authenticator(clients(path))
    if gone:
        path.unlink()
    else:
        write(path, line, f"careless {secret}")
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert authenticator.client(f"Bearer {key}").name == "key:studio"
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "T2V_API_KEYS_FILE" in errors[0].getMessage()
    assert "remain valid" in errors[0].getMessage()
    assert secret not in caplog.text
    assert line.split()[1] not in caplog.text

    write(path, line)
    assert authenticator.client(f"Bearer {key}").name == "key:studio"


@pytest.mark.parametrize(
    ("bad", "remedy"),
    [
        ("studio", "as `t2v-server key new` prints it"),
        ("studio {hash} t2v:read t2v:generate", "as `t2v-server key new` prints it"),
        ("studio {key}", "make a line with `t2v-server key new`"),
        ("studio {hash}0", "make a line with `t2v-server key new`"),
        ("studio md5:{hash}", "make a line with `t2v-server key new`"),
        ("stu/dio {hash}", "use at most 100 letters"),
        ("{key} {hash}", "the name is not usable"),
        ("studio {hash} read", "use t2v:admin, t2v:generate, t2v:read"),
        ("studio {hash} t2v:read,", "with commas"),
    ],
)
def test_a_malformed_file_stops_the_start(tmp_path: Path, bad: str, remedy: str) -> None:
    key, line = new_key("studio", [READ])
    digest = line.split()[1]
    path = tmp_path / "keys"
    write(path, "# first", line, bad.format(hash=digest, key=key))
    with pytest.raises(ConfigError) as caught:
        Authenticator(clients(path))
    message = str(caught.value)
    assert message.startswith(f"T2V_API_KEYS_FILE: line 3 of {path}: ")
    assert remedy in message
    assert key not in message
    assert digest.removeprefix("sha256:") not in message


def test_a_file_of_keys_that_is_not_there_or_no_text_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"T2V_API_KEYS_FILE: .* cannot be read"):
        Authenticator(clients(tmp_path / "none"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"T2V_API_KEYS_FILE: .* is not text"):
        Authenticator(clients(tmp_path / "binary"))


# Tokens: what is right.


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (rsa_key(), "RS256"),
        (rsa_key(), "PS256"),
        (ec.generate_private_key(ec.SECP256R1()), "ES256"),
        (ed25519.Ed25519PrivateKey.generate(), "EdDSA"),
    ],
    ids=["RS256", "PS256", "ES256", "EdDSA"],
)
@pytest.mark.parametrize("form", ["pem", "jwk", "jwks"])
def test_a_token_names_its_client(
    tmp_path: Path, key: PrivateKey, algorithm: str, form: str
) -> None:
    contents: dict[str, bytes | str] = {
        "pem": pem(key),
        "jwk": json.dumps(jwk(key)),
        "jwks": json.dumps({"keys": [jwk(rsa_key("spare"), "other"), jwk(key, "this")]}),
    }
    authenticator = with_key_file(tmp_path / "key", contents[form], (*PUBLIC, "PS256"))
    for headers in (None, {"kid": "this"}):
        client = authenticator.client(f"Bearer {token(key, algorithm, headers)}")
        assert client == Client("jwt:studio", frozenset({READ, GENERATE}))


def test_a_shared_secret_signs_tokens(tmp_path: Path) -> None:
    secret = "s" * 32
    encoded = base64.urlsafe_b64encode(secret.encode()).rstrip(b"=").decode()
    for content in (f"{secret}\n", json.dumps({"kty": "oct", "k": encoded})):
        authenticator = with_key_file(tmp_path / "key", content, ("HS256",))
        assert authenticator.client(f"Bearer {token(secret, 'HS256')}").name == "jwt:studio"
        assert_invalid(authenticator, token("t" * 32, "HS256"))
        assert_invalid(authenticator, token())


@pytest.mark.parametrize(
    ("changes", "scopes"),
    [
        ({"scope": f"openid {READ}"}, {READ}),
        ({"scope": REMOVED, "scp": [READ, ADMIN, 7]}, {READ, ADMIN}),
        ({"scope": REMOVED, "scp": f"{READ} {GENERATE}"}, {READ, GENERATE}),
        ({"scope": [READ]}, {READ}),
        ({"scope": REMOVED}, set()),
        ({"scope": {"a": 1}}, set()),
        ({"scope": "t2v:readx T2V:READ"}, set()),
    ],
)
def test_scopes_come_from_scope_or_scp(
    trusting: Authenticator, changes: dict[str, Any], scopes: set[str]
) -> None:
    client = trusting.client(f"Bearer {token(**changes)}")
    assert client.scopes == scopes
    if GENERATE not in scopes:
        with pytest.raises(ApiError, match=GENERATE):
            require(client, GENERATE)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"sub": "ü 1|x@y", "client_id": "app"}, "jwt:ü 1|x@y"),
        ({"sub": REMOVED, "client_id": "app", "azp": "z"}, "jwt:app"),
        ({"sub": REMOVED, "azp": "z"}, "jwt:z"),
        ({"sub": "a" * 196}, "jwt:" + "a" * 196),
    ],
)
def test_the_owner_is_the_subject_or_the_client(
    trusting: Authenticator, changes: dict[str, Any], name: str
) -> None:
    assert trusting.client(f"Bearer {token(**changes)}").name == name


def test_an_audience_may_be_one_of_several_and_the_issuer_any(tmp_path: Path) -> None:
    authenticator = with_key_file(tmp_path / "key", pem(rsa_key()), issuer=None)
    several = token(aud=["https://other.example", AUDIENCE], iss="https://anybody.example")
    assert authenticator.client(f"Bearer {several}").name == "jwt:studio"


def test_clocks_may_differ_by_half_a_minute(trusting: Authenticator) -> None:
    now = int(time.time())
    for valid in (token(exp=now - 25), token(nbf=now + 25), token(iat=now + 25)):
        assert trusting.client(f"Bearer {valid}").name == "jwt:studio"
    assert_invalid(trusting, token(exp=now - 31), "expired_token", "has expired")
    assert_invalid(trusting, token(nbf=now + 35), says="not valid yet")
    assert_invalid(trusting, token(iat=now + 35), says="not valid yet")


# Tokens: what is wrong.


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"aud": "https://other.example"}, "for another service"),
        ({"aud": [f"{AUDIENCE}/"]}, "for another service"),
        ({"aud": REMOVED}, "no claim aud"),
        ({"iss": "https://other.example"}, "from another issuer"),
        ({"iss": REMOVED}, "no claim iss"),
        ({"exp": REMOVED}, "no claim exp"),
        ({"exp": "soon"}, "malformed"),
        ({"exp": float("inf")}, "malformed"),
        ({"nbf": float("nan")}, "malformed"),
        ({"nbf": 1e300}, "not valid yet"),
        ({"sub": REMOVED}, "who it is about"),
        ({"sub": ""}, "who it is about"),
        ({"sub": REMOVED, "client_id": 7}, "who it is about"),
        ({"sub": "a" * 197}, "not usable as a name"),
        ({"sub": "a\nb"}, "not usable as a name"),
        ({"sub": "a\x00"}, "not usable as a name"),
        ({"sub": "\ud800"}, "not usable as a name"),
    ],
)
def test_a_token_with_other_claims_is_invalid(
    trusting: Authenticator, changes: dict[str, Any], says: str
) -> None:
    assert_invalid(trusting, token(**changes), says=says)


def test_a_subject_that_is_no_string_is_invalid(trusting: Authenticator) -> None:
    def sign(data: bytes) -> bytes:
        return jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256).sign(data, rsa_key())

    for subject in (7, ["studio"], {"a": "b"}):
        payload = json.dumps(claims(sub=subject)).encode()
        assert_invalid(trusting, raw_token({"alg": "RS256"}, payload, sign))
    for payload in (b"[]", b"7", b"{", b"\xff", b"[" * 5000):
        assert_invalid(trusting, raw_token({"alg": "RS256"}, payload, sign))
    valid = json.dumps(claims()).encode()
    assert trusting.client(f"Bearer {raw_token({'alg': 'RS256'}, valid, sign)}")


def test_a_forged_token_is_invalid(trusting: Authenticator) -> None:
    trusted = "is not signed with a key that is trusted"
    assert_invalid(trusting, token(rsa_key("a forger's")), says=trusted)
    # Expired as well: what nobody trustworthy says is not repeated.
    assert_invalid(trusting, token(rsa_key("a forger's"), exp=1), says=trusted)
    header, payload, signature = token().split(".")
    other = token(scope=ADMIN).split(".")[1]
    assert_invalid(trusting, f"{header}.{other}.{signature}", says=trusted)
    assert_invalid(trusting, f"{header}.{payload}.", says=trusted)


def test_a_token_that_brings_its_own_key_is_invalid(trusting: Authenticator) -> None:
    key = rsa_key("a forger's")
    headers = {"jwk": jwk(key), "jku": "http://127.0.0.1:9/jwks", "x5u": "http://127.0.0.1:9/"}
    assert_invalid(trusting, token(key, headers=headers))


def test_a_token_without_a_signature_is_invalid(trusting: Authenticator) -> None:
    assert_invalid(trusting, jwt.encode(claims(), "", algorithm="none"), says="algorithm")
    for algorithm in ("none", "None", "NONE", "", None, ["RS256"], {"RS256": 1}):
        payload = json.dumps(claims()).encode()
        assert_invalid(trusting, raw_token({"alg": algorithm}, payload, lambda _: b""))


@pytest.mark.parametrize("allowed", [PUBLIC, (*PUBLIC, "HS256")])
def test_a_public_key_is_no_shared_secret(tmp_path: Path, allowed: tuple[str, ...]) -> None:
    # The settings allow no such mixture; should that ever change, it must still not pass.
    authenticator = with_key_file(tmp_path / "key.pem", pem(rsa_key()), allowed)
    for secret in (pem(rsa_key()), pem(rsa_key()).strip()):
        forged = raw_token(
            {"alg": "HS256"},
            json.dumps(claims()).encode(),
            functools.partial(hmac.digest, secret, digest="sha256"),
        )
        assert_invalid(authenticator, forged)


def test_an_algorithm_that_is_not_named_is_invalid(trusting: Authenticator) -> None:
    for algorithm in ("RS512", "PS256"):
        assert_invalid(trusting, token(algorithm=algorithm), says="algorithm")


def test_the_algorithm_of_a_key_is_kept_to(tmp_path: Path) -> None:
    content = json.dumps({"keys": [jwk(rsa_key(), alg="RS256")]})
    authenticator = with_key_file(tmp_path / "key", content, ("RS256", "PS256"))
    assert authenticator.client(f"Bearer {token()}")
    assert_invalid(authenticator, token(algorithm="PS256"))


@pytest.mark.parametrize(
    "garbage",
    [
        "Aa0",
        "a.b",
        "a.b.c",
        "...",
        "eyJhbGciOiJSUzI1NiJ9..",
        "eyJhbGciOiJSUzI1NiJ9.e30.!",
        "W10.e30.c2ln",
        base64.urlsafe_b64encode(b"[" * 5000).decode().rstrip("=") + ".e30.c2ln",
        "eyJhbGciOiJSUzI1NiIsImtpZCI6N30.e30.c2ln",  # kid: 7
        "sk-t2v-" + "a" * 43,
        "A" * 8000,
    ],
)
def test_garbage_is_invalid(trusting: Authenticator, garbage: str) -> None:
    assert_invalid(trusting, garbage)


def test_no_token_is_logged(trusting: Authenticator, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for credentials in (token(), token(rsa_key("a forger's")), token(exp=1)):
            with suppress(ApiError):
                trusting.client(f"Bearer {credentials}")
            assert credentials.rpartition(".")[2] not in caplog.text


# Files with keys.


@pytest.mark.parametrize(
    ("content", "algorithms", "says"),
    [
        (b"", PUBLIC, "is neither PEM nor JSON"),
        (b"not a key", PUBLIC, "is neither PEM nor JSON"),
        (b"{", PUBLIC, "is not JSON"),
        (b"{}", PUBLIC, "holds no public key"),
        (b'{"keys": 7}', PUBLIC, "is not JSON"),
        (b'{"keys": [7, {"kty": "XYZ"}]}', PUBLIC, "holds no public key"),
        (pem(rsa_key()), ("ES256",), "set T2V_JWT_ALGORITHMS to what it signs with"),
        (pem(ec.generate_private_key(ec.SECP384R1())), ("ES256",), "holds no public key"),
        (pem(rsa_key()), ("HS256",), "holds a public key"),
        (json.dumps(jwk(rsa_key())).encode(), ("HS256",), "holds no public key or secret"),
        (b"short", ("HS256",), "holds a secret of 5 bytes: use one of at least 32"),
        (b"s" * 32, ("HS256", "HS512"), "at least 64"),
        (
            rsa_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            PUBLIC,
            "holds a private key",
        ),
        (json.dumps(jwt.algorithms.RSAAlgorithm.to_jwk(rsa_key(), as_dict=True)).encode(),
         PUBLIC, "holds no public key"),
    ],
)  # fmt: skip
def test_an_unusable_file_of_keys_stops_the_start(
    tmp_path: Path, content: bytes, algorithms: tuple[str, ...], says: str
) -> None:
    path = tmp_path / "key"
    with pytest.raises(ConfigError) as caught:
        with_key_file(path, content, algorithms)
    message = str(caught.value)
    assert message.startswith(f"T2V_JWT_KEY_FILE: {path} ")
    assert says in message
    assert "short" not in message


def test_a_file_of_keys_that_went_away_stops_the_start(tmp_path: Path) -> None:
    settings = JwtSettings(None, tmp_path / "none", PUBLIC, None, AUDIENCE)
    with pytest.raises(ConfigError, match=r"T2V_JWT_KEY_FILE: .* cannot be read"):
        Authenticator(clients(tokens=settings))


# Keys behind a URL.


class KeyServer:
    """Answers with ``content`` and counts how often; ``None``: with an error."""

    def __init__(self) -> None:
        self.content: bytes | None = None
        self.fetches = 0
        self.delay = 0.0
        self.url = ""

    def publish(self, *keys: dict[str, Any]) -> None:
        self.content = json.dumps({"keys": keys}).encode()

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[KeyServer]:
        served = cls()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                served.fetches += 1
                content = served.content
                time.sleep(served.delay)
                self.send_response(200 if content is not None else 500)
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *_arguments: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            served.url = f"http://127.0.0.1:{server.server_port}/jwks"
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield served
            finally:
                server.shutdown()
                thread.join()


@pytest.fixture
def key_server() -> Iterator[KeyServer]:
    with KeyServer.running() as served:
        served.publish(jwk(rsa_key(), "one", use="sig"))
        yield served


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are fetched as often as they are missed."""
    monkeypatch.setattr(auth, "_COOLDOWN_SECONDS", 0.0)


def signed(kid: str | None = "one", key: PrivateKey | None = None) -> str:
    return "Bearer " + token(key, headers={"kid": kid} if kid else None)


def test_keys_are_fetched_once_for_many_tokens(key_server: KeyServer) -> None:
    authenticator = with_key_server(key_server.url)
    assert key_server.fetches == 0
    for _ in range(5):
        assert authenticator.client(signed()).name == "jwt:studio"
    assert authenticator.client(signed(None)).name == "jwt:studio"  # any of the keys may fit
    assert key_server.fetches == 1


def test_forged_names_of_keys_do_not_reach_the_key_server(key_server: KeyServer) -> None:
    authenticator = with_key_server(key_server.url)
    forger = rsa_key("a forger's")
    for number in range(20):
        assert refusal(authenticator, signed(f"unknown-{number}", forger)).code == "invalid_token"
    assert refusal(authenticator, signed("one", forger)).code == "invalid_token"
    assert authenticator.client(signed()).name == "jwt:studio"
    assert key_server.fetches == 1


def test_the_issuer_rotates_its_keys(
    key_server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    authenticator = with_key_server(key_server.url)
    authenticator.client(signed())
    key_server.publish(jwk(rsa_key("the next"), "two"))
    # Too soon after the last fetch; a moment later the new key is there and the old one gone.
    assert refusal(authenticator, signed("two", rsa_key("the next"))).code == "invalid_token"
    monkeypatch.setattr(auth, "_COOLDOWN_SECONDS", 0.0)
    assert authenticator.client(signed("two", rsa_key("the next"))).name == "jwt:studio"
    assert refusal(authenticator, signed("one")).code == "invalid_token"


@pytest.mark.usefixtures("eager")
def test_a_withdrawn_key_is_forgotten_after_a_while(
    key_server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    authenticator = with_key_server(key_server.url)
    authenticator.client(signed())
    key_server.publish(jwk(rsa_key("the next"), "two"))
    assert authenticator.client(signed()).name == "jwt:studio"
    monkeypatch.setattr(auth, "_FRESH_SECONDS", 0.0)
    assert refusal(authenticator, signed()).code == "invalid_token"


@pytest.mark.usefixtures("eager")
def test_known_keys_outlive_a_key_server_that_is_away_for_a_while(
    key_server: KeyServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    authenticator = with_key_server(key_server.url)
    authenticator.client(signed())
    key_server.content = None
    monkeypatch.setattr(auth, "_FRESH_SECONDS", 0.0)
    for _ in range(3):
        assert authenticator.client(signed()).name == "jwt:studio"
    assert key_server.fetches == 4
    # A key that it may have made meanwhile.
    assert refusal(authenticator, signed("two")).code == "token_keys_unavailable"
    monkeypatch.setattr(auth, "_STALE_SECONDS", 0.0)
    assert refusal(authenticator, signed()).code == "token_keys_unavailable"
    assert caplog.text.count("T2V_JWT_JWKS_URL") == 1

    monkeypatch.undo()
    monkeypatch.setattr(auth, "_COOLDOWN_SECONDS", 0.0)
    key_server.publish(jwk(rsa_key(), "one"))
    assert authenticator.client(signed("one")).name == "jwt:studio"


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b"{}", b'{"keys": []}', b'{"keys": [{"kty": "RSA"}]}']
)
def test_a_key_server_that_is_away_at_first_is_asked_later(
    key_server: KeyServer, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    key_server.content = content
    authenticator = with_key_server(key_server.url)
    for _ in range(5):
        error = refusal(authenticator, signed())
        assert (error.status, error.code) == (503, "token_keys_unavailable")
        assert error.retry_after == 5
    assert key_server.fetches == 1
    key_server.publish(jwk(rsa_key(), "one"))
    monkeypatch.setattr(auth, "_COOLDOWN_SECONDS", 0.0)
    assert authenticator.client(signed()).name == "jwt:studio"


def test_a_key_server_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    with KeyServer.running() as gone:
        pass
    credentials = signed()
    authenticator = with_key_server(gone.url)
    assert refusal(authenticator, credentials).code == "token_keys_unavailable"
    assert refusal(authenticator, "Bearer a.b.c").code == "invalid_token"
    assert credentials not in caplog.text


def test_requests_share_a_fetch_and_none_waits_longer_than_its_timeout(
    key_server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "_FETCH_SECONDS", 0.5)
    authenticator = with_key_server(key_server.url)
    key_server.delay = 4.0
    codes: list[str] = []

    def ask() -> None:
        codes.append(refusal(authenticator, signed()).code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 3.5
    assert codes == ["token_keys_unavailable"] * 8
    assert key_server.fetches == 1


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("fresh_seconds", [300.0, 0.0], ids=["fresh", "stale"])
def test_known_keys_do_not_wait_for_a_slow_fetch(
    key_server: KeyServer, monkeypatch: pytest.MonkeyPatch, fresh_seconds: float
) -> None:
    authenticator = with_key_server(key_server.url)
    authenticator.client(signed())
    monkeypatch.setattr(auth, "_FRESH_SECONDS", fresh_seconds)
    key_server.delay = 4.0
    thread = threading.Thread(target=lambda: refusal(authenticator, signed("two")))
    thread.start()
    while key_server.fetches < 2:
        time.sleep(0.01)
    began = time.monotonic()
    assert authenticator.client(signed()).name == "jwt:studio"
    assert time.monotonic() - began < 3.0
    thread.join()


def test_keys_for_other_uses_are_left_out(key_server: KeyServer) -> None:
    key_server.publish(
        jwk(rsa_key(), "one", use="enc"),
        jwk(rsa_key("another"), "two", alg="RSA-OAEP"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "three"},
        {**jwt.algorithms.RSAAlgorithm.to_jwk(rsa_key("third"), as_dict=True), "kid": "private"},
        jwk(rsa_key("fourth"), "four"),
    )
    authenticator = with_key_server(key_server.url)
    assert authenticator.client(signed("four", rsa_key("fourth"))).name == "jwt:studio"
    assert refusal(authenticator, signed("one")).code == "invalid_token"
    assert refusal(authenticator, signed("private", rsa_key("third"))).code == "invalid_token"


def test_api_keys_and_tokens_go_together(tmp_path: Path) -> None:
    key, line = new_key("studio", [READ])
    (tmp_path / "keys").write_text(line)
    (tmp_path / "key.pem").write_bytes(pem(rsa_key()))
    settings = JwtSettings(None, tmp_path / "key.pem", PUBLIC, ISSUER, AUDIENCE)
    authenticator = Authenticator(clients(tmp_path / "keys", settings))
    assert authenticator.client(f"Bearer {key}").name == "key:studio"
    assert authenticator.client(f"Bearer {token()}").name == "jwt:studio"
    assert_invalid(authenticator, new_key("studio", [READ])[0])
    assert_invalid(authenticator, token(rsa_key("a forger's")))


# Rates.


def wait_after(limiter: RateLimiter, client: str) -> int | None:
    """How long the client is to wait; ``None``: let through."""
    try:
        limiter.check(client)
    except ApiError as error:
        refused = error
    else:
        return None
    assert (refused.status, refused.code) == (429, "rate_limited")
    assert refused.retry_after is not None
    return refused.retry_after


def test_without_a_limit_everything_passes() -> None:
    limiter = RateLimiter(None, None)
    assert [wait_after(limiter, "a") for _ in range(50)] == [None] * 50


def test_a_client_that_asks_too_often_waits() -> None:
    limiter = RateLimiter(RateLimit(3, "minute"), None)
    assert [wait_after(limiter, "a") for _ in range(3)] == [None] * 3
    wait = wait_after(limiter, "a")
    assert wait is not None
    assert 55 <= wait <= 60
    assert wait_after(limiter, "b") is None


def test_the_window_moves_and_refused_requests_do_not_count() -> None:
    limiter = RateLimiter(RateLimit(2, "second"), None)
    assert [wait_after(limiter, "a") for _ in range(3)] == [None, None, 1]
    deadline = time.monotonic() + 5
    while wait_after(limiter, "a") is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("password", [None, "p@ss:wo/rd"])
def test_servers_count_together_in_redis(tmp_path: Path, password: str | None) -> None:
    file = None
    if password:
        file = tmp_path / "password"
        file.write_text(f"{password}\n")
    with RedisServer.running(tmp_path, password) as redis:
        settings = RedisSettings(redis.url, file)
        one, other = (RateLimiter(RateLimit(2, "hour"), settings) for _ in range(2))
        assert wait_after(one, "jwt:ü/1") is None
        assert wait_after(other, "jwt:ü/1") is None
        for limiter in (one, other):
            wait = wait_after(limiter, "jwt:ü/1")
            assert wait is not None
            assert 3590 <= wait <= 3600
        assert wait_after(one, "key:b") is None
        with redis.client() as client:
            keys = list(client.scan_iter("*"))
            assert keys
            assert all(key.startswith("t2v-rates:") for key in keys)
            assert all(0 < client.ttl(key) <= 3600 for key in keys)


def test_requests_pass_while_redis_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    password = tmp_path / "password"
    password.write_text("a-password")
    with RedisServer.running(tmp_path, "a-password") as redis:
        limiter = RateLimiter(RateLimit(2, "hour"), RedisSettings(redis.url, password))
        assert wait_after(limiter, "a") is None
        redis.kill()
        began = time.monotonic()
        assert [wait_after(limiter, "a") for _ in range(5)] == [None] * 5
        assert time.monotonic() - began < 2
        assert caplog.text.count("Redis is away") == 1

        redis.start()
        assert wait_after(limiter, "a") is None
        assert wait_after(limiter, "a") is not None

        password.write_text("wrong")
        redis.kill()
        redis.start()
        assert wait_after(limiter, "a") is None
        assert caplog.text.count("Redis is away") == 2
    assert "a-password" not in caplog.text


def test_a_redis_that_was_never_there(tmp_path: Path) -> None:
    settings = RedisSettings("redis://127.0.0.1:9/0", tmp_path / "missing")
    limiter = RateLimiter(RateLimit(1, "hour"), settings)
    assert [wait_after(limiter, "a") for _ in range(3)] == [None] * 3
