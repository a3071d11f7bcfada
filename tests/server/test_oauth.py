"""Clients with tokens of a real authorization server ask a real server for videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import jwt
import pytest
from harness import Answer, Server
from oauth_server import AUDIENCE, OTHER_AUDIENCE, OAuthServer, forged

READ = "t2v:read"
READ_AND_GENERATE = "t2v:read t2v:generate"


@pytest.fixture(scope="module")
def oauth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OAuthServer]:
    with OAuthServer.running(tmp_path_factory.mktemp("oauth")) as it:
        yield it


@pytest.fixture(scope="module")
def guarded(oauth: OAuthServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that trusts the tokens of ``oauth``."""
    with Server.start(
        tmp_path_factory.mktemp("videos"),
        T2V_JWT_JWKS_URL=oauth.jwks_url,
        T2V_JWT_ISSUER=oauth.issuer,
        T2V_JWT_AUDIENCE=AUDIENCE,
    ) as it:
        it.wait_until_ready()
        yield it


def bearer(token: str) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {token}"}


def create(server: Server, headers: Mapping[str, str]) -> Answer:
    return server.post_json("/v1/videos", {"prompt": "a dog running"}, headers)


def assert_refused(answer: Answer, status: int, code: str, challenge: str) -> None:
    assert (answer.status, answer.code) == (status, code)
    assert answer.headers["WWW-Authenticate"].startswith('Bearer realm="t2v"')
    assert challenge in answer.headers["WWW-Authenticate"]


def test_a_token_of_the_authorization_server_makes_a_video(
    oauth: OAuthServer, guarded: Server
) -> None:
    headers = bearer(oauth.token("studio", READ_AND_GENERATE))
    answer = create(guarded, headers)
    assert answer.status == 200, answer.text
    job_id = answer.json()["id"]
    assert guarded.job(job_id, headers)["prompt"] == "a dog running"
    listed = guarded.get("/v1/videos", headers)
    assert job_id in [video["id"] for video in listed.json()["data"]]


def test_its_tokens_are_signed_and_for_this_server(oauth: OAuthServer) -> None:
    token = oauth.token("studio", READ)
    assert jwt.get_unverified_header(token)["alg"] == "RS256"
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["iss"], claims["aud"], claims["sub"]) == (oauth.issuer, AUDIENCE, "studio")


def test_a_token_that_may_only_read_makes_no_video(oauth: OAuthServer, guarded: Server) -> None:
    headers = bearer(oauth.token("studio", READ))
    assert guarded.get("/v1/videos", headers).status == 200
    assert_refused(
        create(guarded, headers),
        403,
        "insufficient_scope",
        'error="insufficient_scope", scope="t2v:generate"',
    )


def test_an_expired_token_is_refused(oauth: OAuthServer, guarded: Server) -> None:
    answer = create(guarded, bearer(oauth.expired_token("studio", READ_AND_GENERATE)))
    assert_refused(answer, 401, "expired_token", 'error="invalid_token"')


def test_a_token_signed_by_somebody_else_is_refused(oauth: OAuthServer, guarded: Server) -> None:
    token = oauth.token("studio", READ_AND_GENERATE)
    assert create(guarded, bearer(token)).status == 200
    answer = create(guarded, bearer(forged(token)))
    assert_refused(answer, 401, "invalid_token", 'error="invalid_token"')


def test_a_token_for_another_service_is_refused(oauth: OAuthServer, guarded: Server) -> None:
    token = oauth.token("studio", READ_AND_GENERATE, OTHER_AUDIENCE)
    assert_refused(create(guarded, bearer(token)), 401, "invalid_token", 'error="invalid_token"')


def test_a_request_without_a_token_is_refused(guarded: Server) -> None:
    answer = create(guarded, {})
    assert_refused(answer, 401, "missing_token", "Bearer")
    # Nothing was sent that could be wrong (RFC 6750, 3.1).
    assert "error=" not in answer.headers["WWW-Authenticate"]
    assert guarded.get("/healthz").status == 200


def test_clients_see_their_own_videos_and_an_operator_all(
    oauth: OAuthServer, guarded: Server
) -> None:
    answer = create(guarded, bearer(oauth.token("studio", READ_AND_GENERATE)))
    path = f"/v1/videos/{answer.json()['id']}"

    other = bearer(oauth.token("newsroom", READ_AND_GENERATE))
    for method, suffix in (("GET", ""), ("GET", "/content"), ("POST", "/cancel"), ("DELETE", "")):
        refused = guarded.request(method, path + suffix, headers=other)
        assert (refused.status, refused.code) == (404, "not_found"), (method, suffix)
    assert guarded.get("/v1/videos", other).json()["data"] == []

    operator = bearer(oauth.token("operator", f"{READ} t2v:admin"))
    assert guarded.get(path, operator).status == 200


def test_no_token_is_in_the_log(oauth: OAuthServer, guarded: Server) -> None:
    tokens = [oauth.token("studio", READ), forged(oauth.token("studio", READ))]
    for token in tokens:
        guarded.get("/v1/videos", bearer(token))
    log = guarded.log.read_text()
    assert not [token for token in tokens if token in log or token.rpartition(".")[2] in log]
