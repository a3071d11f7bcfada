"""From a request to validated parameters."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from flask import Request
from werkzeug.exceptions import BadRequest

MAX_SEED = 2**63 - 1
_RANDOM_SEED_BITS = 32


class InvalidRequest(Exception):
    """The client's mistake: a short code for programs and a sentence for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True)
class GenerationRequest:
    """A non-blank ``prompt`` without outer white space, and a ``seed`` of 0…2**63-1."""

    prompt: str
    seed: int


def parse_generation_request(request: Request, max_prompt_chars: int) -> GenerationRequest:
    """Read prompt and seed from the query (GET), or a form or JSON object (POST).

    Raises:
        InvalidRequest: says what is missing or wrong.
    """
    fields = _fields(request)
    prompt = fields.get("prompt")
    if prompt is None or prompt == "":
        raise InvalidRequest("missing_prompt", "missing prompt")
    if not isinstance(prompt, str):
        raise InvalidRequest("invalid_prompt", "prompt must be a string")
    prompt = prompt.strip()
    if not prompt:
        raise InvalidRequest("missing_prompt", "missing prompt")
    if len(prompt) > max_prompt_chars:
        raise InvalidRequest(
            "prompt_too_long",
            f"prompt too long: {len(prompt)} characters, at most {max_prompt_chars}",
        )
    return GenerationRequest(prompt, _seed(fields.get("seed")))


def _fields(request: Request) -> Mapping[str, object]:
    if not request.is_json:
        return request.values.to_dict()
    try:
        body: object = request.get_json()
    except BadRequest as error:
        raise InvalidRequest("invalid_json", "the body is not valid JSON") from error
    if not isinstance(body, dict):
        raise InvalidRequest("invalid_json", "the body is not a JSON object")
    return body


def _seed(value: object) -> int:
    if value is None or value == "":
        return secrets.randbits(_RANDOM_SEED_BITS)
    digits = str(value)
    if isinstance(value, (int, str)) and digits.isascii() and digits.isdigit() and len(digits) < 20:
        seed = int(digits)
        if seed <= MAX_SEED:
            return seed
    raise InvalidRequest("invalid_seed", f"seed must be a whole number from 0 to {MAX_SEED}")
