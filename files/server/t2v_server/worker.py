"""gunicorn's threaded worker, with what this server needs of it beside."""

from __future__ import annotations

from gunicorn.workers.gthread import ThreadWorker


class Worker(ThreadWorker):
    """Stops without waiting for connections on which nothing was ever sent.

    gunicorn bounds only kept-alive ones when it stops; browsers and load balancers open others
    ahead of need.
    """

    def _cap_keepalive(self, deadline: float) -> None:
        ThreadWorker._cap_keepalive(self, deadline)
        for connection in self.pending_conns:
            connection.timeout = min(connection.timeout, deadline)
