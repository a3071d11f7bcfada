"""The password of the site's Redis, for whoever connects to it."""

from __future__ import annotations

from pathlib import Path

import redis


class PasswordFile(redis.CredentialProvider):
    """Reads the password at every connection, so that it can be rotated."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get_credentials(self) -> tuple[str]:
        """As redis-py asks for it.

        Raises:
            AuthenticationError: when the file cannot be read.
        """
        try:
            return (self._path.read_text().strip(),)
        except OSError as error:
            raise redis.AuthenticationError(
                f"the password in {self._path} cannot be read: {error.strerror}"
            ) from error
