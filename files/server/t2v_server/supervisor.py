"""The parent of the server's processes: gunicorn and the engines, each started anew if it ends.

The listening socket is the supervisor's: while gunicorn is replaced, clients wait in its backlog
instead of being refused.
"""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from t2v_server.config import ConfigError, Settings
from t2v_server.processes import PARENT_VARIABLE

log = logging.getLogger(__name__)

LISTENER_VARIABLE = "T2V_LISTENER_FD"
_GUNICORN_CONFIGURATION = Path(__file__).with_name("gunicorn.conf.py")

_HEALTHY_SECONDS = 60.0  # whoever lived as long starts with a clean slate
_LONGEST_PAUSE = 30.0
_LISTEN_PATIENCE = 5.0  # a killed predecessor's port is free a moment later
_HAND_BACK_SECONDS = 5.0
_BACKLOG = 2048
_FILES = 65_536
_IDLE_SECONDS = 30
_STOP_SIGNALS = {
    signal.SIGTERM: True,
    signal.SIGHUP: True,
    signal.SIGINT: False,
    signal.SIGQUIT: False,
}


@dataclass
class _Child:
    """One process that is to be there; ``starts`` counts those since it was last healthy."""

    name: str
    command: list[str]
    pass_fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    starts: int = 0
    not_before: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        self.starts += 1
        self.started_at = time.monotonic()
        try:
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment},
                pass_fds=self.pass_fds,
                start_new_session=True,  # Ctrl-C on the terminal is for the supervisor alone
            )
        except OSError as error:  # too many processes, no memory: the others go on
            self.not_before = self.started_at + self._pause()
            log.error("%s cannot be started: %s", self.name, error)

    def ended(self) -> str | None:
        """How the process ended, once."""
        if self.process is None or (status := self.process.poll()) is None:
            return None
        self.process = None
        now = time.monotonic()
        if now - self.started_at > _HEALTHY_SECONDS:
            self.starts = 1
        pause = self._pause()
        self.not_before = now + pause
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited {status}"
        return f"{self.name} {how}" + (f", next start in {pause:.1f} s" if pause else "")

    def _pause(self) -> float:
        """Seconds: none the first time, then longer and longer."""
        return 0.0 if self.starts <= 1 else min(0.25 * 2 ** min(self.starts, 8), _LONGEST_PAUSE)

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)


class Supervisor:
    """Runs the server of ``settings`` until it is told to stop."""

    def __init__(
        self, settings: Settings, prepared: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """``prepared`` holds while this server has the state directory for itself."""
        self._settings = settings
        self._prepared = prepared
        self._is_init = os.getpid() == 1
        self._stop_gently: bool | None = None  # None: not told to stop

    def run(self) -> int:
        """Start all processes and keep them running; returns the exit status.

        Raises:
            ConfigError: the state directory or the address is in use, or cannot be used.
        """
        with (
            _only_one(self._settings.state_dir),
            _listener(self._settings.bind) as listener,
            self._prepared(),
        ):
            _allow_many_files()
            children = self._children(listener)
            wake = self._catch_signals()
            for child in children:
                child.start()
            while self._stop_gently is None:
                self._look_after(children)
                _drain(wake, 0.5)
            listener.close()  # from here on clients are refused, and ask another server
            self._stop(children, wake)
            for child in children:
                if child.process is not None:
                    child.process.wait()
        return 0

    def _children(self, listener: socket.socket) -> list[_Child]:
        parent = {PARENT_VARIABLE: str(os.getpid())}
        python = [sys.executable, "-m"]
        descriptor = listener.fileno()
        gunicorn = _Child(
            "gunicorn",
            [*python, "gunicorn", "-c", str(_GUNICORN_CONFIGURATION)],
            pass_fds=(descriptor,),
            environment={**parent, LISTENER_VARIABLE: str(descriptor)},
        )
        engines = [
            _Child(
                f"engine {index}",
                [*python, "t2v_server", "engine", "--index", str(index)],
                environment=parent,
            )
            for index in range(self._settings.engines)
        ]
        return [gunicorn, *engines]

    def _catch_signals(self) -> int:
        """Note each signal to stop; returns a descriptor that is readable after any signal."""
        readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)

        def note(number: int, _frame: FrameType | None) -> None:
            gently = _STOP_SIGNALS[signal.Signals(number)]
            self._stop_gently = gently and self._stop_gently is not False

        for number in _STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, note)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        return readable

    def _look_after(self, children: list[_Child]) -> None:
        for child in children:
            how = child.ended()
            if how is not None:
                log.warning("%s", how)
            if child.process is None and time.monotonic() >= child.not_before:
                child.start()
        if self._is_init:
            _reap({child.process.pid for child in children if child.process is not None})

    def _stop(self, children: list[_Child], wake: int) -> None:
        gunicorn, *engines = children
        gently = self._stop_gently
        log.info("stopping%s", "" if gently else " at once")
        for child in children:
            child.signal(signal.SIGTERM if gently else signal.SIGINT)
        deadline = time.monotonic() + (self._settings.graceful_timeout if gently else 0)
        while any(child.running for child in children) and time.monotonic() < deadline:
            _drain(wake, 0.2)
            if gently and self._stop_gently is False:
                break
        # Whatever an engine still works on goes back to the queue.
        for child in engines:
            child.signal(signal.SIGINT)
        gunicorn.signal(signal.SIGINT)
        deadline = time.monotonic() + _HAND_BACK_SECONDS
        while any(child.running for child in children) and time.monotonic() < deadline:
            _drain(wake, 0.1)
        for child in children:
            if child.running:
                log.warning("%s did not stop and is killed", child.name)
                child.signal(signal.SIGKILL)


def _allow_many_files() -> None:
    """A connection is a file, and so is what many threads have open: 1024 are too few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _reap(own: set[int]) -> None:
    """As process 1 of a container: bury the orphans of killed children."""
    with suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid in own:
                return  # its turn comes, and then the next one's
            os.waitpid(ended.si_pid, 0)


def _drain(wake: int, seconds: float) -> None:
    """Sleep for up to ``seconds``, or until a signal arrives."""
    select.select([wake], [], [], seconds)
    with suppress(BlockingIOError):
        os.read(wake, 4096)


@contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    path = state_dir / "server.lock"
    try:
        stream = path.open("ab")
    except OSError as error:
        raise ConfigError(
            f"T2V_STATE_DIR={str(state_dir)!r} cannot be written ({error.strerror}): "
            "let this account write there or set another directory."
        ) from error
    with stream:
        deadline = time.monotonic() + _LISTEN_PATIENCE
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"T2V_STATE_DIR={str(state_dir)!r} is another running server's: "
                        "stop that one or set another directory."
                    ) from None
                time.sleep(0.1)
        yield


@contextmanager
def _listener(bind: str) -> Iterator[socket.socket]:
    host, _, port = bind.rpartition(":")
    deadline = time.monotonic() + _LISTEN_PATIENCE
    while True:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.socket(family, kind, protocol)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                # Inherited by every connection: whoever sends or reads nothing for as long
                # gives its thread back.
                for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                    patience = struct.pack("ll", _IDLE_SECONDS, 0)
                    listener.setsockopt(socket.SOL_SOCKET, option, patience)
                listener.bind(address)
                # From here on nobody else can have the address, and clients wait.
                listener.listen(_BACKLOG)
            except OSError:
                listener.close()
                raise
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"T2V_BIND={bind!r} cannot be listened on ({error.strerror}): "
                    "set it to a free address of this host."
                ) from error
            time.sleep(0.1)
    with listener:
        yield listener
