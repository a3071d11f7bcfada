"""The lab's share on a small volume of its own, which can be filled and stalled."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lab.settings import Paths

MIB = 4096  # sparse: of this machine's disk it takes what is written


@dataclass
class Share:
    """A file system in a file, mounted where the lab keeps the directory of the share.

    In this process' mount namespace alone, which must be its own: the machines that it powers
    on inherit it, and what a killed run leaves is gone when they are powered on by anybody else.
    """

    paths: Paths

    @property
    def directory(self) -> Path:
        """The lab's directory that its machines bind."""
        return self.paths.state / "shared" / "videos"

    @property
    def _place(self) -> Path:
        return self.paths.state / "chaos"

    @property
    def _volume(self) -> Path:
        return self._place / "volume"

    @property
    def _image(self) -> Path:
        return self._place / "share.img"

    def left(self) -> bool:
        """Whether a run that was killed left its volume, with the videos that were made on it."""
        return self._image.exists()

    def attach(self) -> None:
        """Mount it over the directory, with all that was there. The machines must be off."""
        new = not self.left()
        self._volume.mkdir(parents=True, exist_ok=True)
        if new:
            partial = self._image.with_suffix(".part")
            with partial.open("wb") as stream:
                stream.truncate(MIB << 20)
            subprocess.run(["mkfs.ext4", "-q", "-m", "0", partial], check=True)
            partial.replace(self._image)
        subprocess.run(["mount", "-o", "loop", self._image, self._volume], check=True)
        if new:
            (self._volume / "lost+found").rmdir()
            _copy(self.directory, self._volume)
        subprocess.run(["mount", "--bind", self._volume, self.directory], check=True)

    def detach(self) -> None:
        """Take it away; what is on it is kept in the directory. The machines must be off."""
        self.thaw()
        self.empty()
        subprocess.run(["umount", self.directory], check=True)
        _copy(self._volume, self.directory)
        subprocess.run(["umount", self._volume], check=True)
        shutil.rmtree(self._place)

    def fill(self) -> None:
        """Leave not a block: first at once, then what remains."""
        with (self._volume / "filler").open("wb") as stream:
            for size in (1 << 20, 1 << 16, 1 << 12):
                while free := _free(self._volume) // size * size:
                    try:
                        position = stream.seek(0, os.SEEK_END)
                        os.posix_fallocate(stream.fileno(), position, free)
                    except OSError:
                        break

    def empty(self) -> None:
        """Give the room back."""
        (self._volume / "filler").unlink(missing_ok=True)

    def freeze(self) -> None:
        """Let every write wait."""
        subprocess.run(["fsfreeze", "--freeze", self._volume], check=True)

    def thaw(self) -> None:
        """Let them go on; nothing where they do."""
        command = ["fsfreeze", "--unfreeze", str(self._volume)]
        subprocess.run(command, check=False, stderr=subprocess.DEVNULL)


def _free(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", "--", f"{source}/.", f"{target}/"], check=True)
