"""The files below a local folder, and what of it cannot be read: nothing is left out without a word."""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

NO_FILE = "a pipe, socket or device and no file; write its content to a file and name that"


@dataclass(frozen=True)
class FolderListing:
    """What is below a folder. Hidden files and folders are left out: editors keep theirs so, and so does a build whose
    output is in the folder."""

    files: tuple[str, ...]
    """Sorted. Those below a linked folder are named through the link."""
    unreadable: dict[str, str]
    """What is wrong and the remedy, by path."""
    special: tuple[str, ...]
    """Sorted: pipes, sockets and devices, whose reading may never end."""
    linked_again: tuple[str, ...]
    """Links to a folder that is listed under another name, as the one that a link is in."""


@dataclass
class _Walk:
    files: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    special: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    """Links to folders, not yet followed."""
    seen: set[tuple[int, int]] = field(default_factory=set)
    """Device and inode of every folder listed."""

    def list(self, folder: str) -> None:
        """List `folder` and what is below it but for links to folders."""
        waiting = [folder]
        while waiting:
            place = waiting.pop()
            try:
                status = Path(place).stat()
                self.seen.add((status.st_dev, status.st_ino))
                with os.scandir(place) as entries:
                    waiting += [entry.path for entry in entries if self._is_folder(entry)]
            except OSError as error:
                self.unreadable[place] = cannot_be_read(error)

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        """Sort an entry into its list, and return whether it is a folder to be listed."""
        if entry.name.startswith("."):
            return False
        try:
            if entry.is_dir(follow_symlinks=False):
                return True
            mode = entry.stat().st_mode
        except FileNotFoundError:
            if entry.is_symlink():
                target = Path(entry.path).readlink()
                self.unreadable[entry.path] = f"a link to {target}, which is missing; restore that or delete the link"
            return False
        except OSError as error:
            self.unreadable[entry.path] = cannot_be_read(error)
            return False
        if stat.S_ISDIR(mode):
            self.links.append(entry.path)
        elif stat.S_ISREG(mode):
            self.files.append(entry.path)
        else:
            self.special.append(entry.path)
        return False


def cannot_be_read(error: OSError) -> str:
    """Return what is wrong with a file or folder and the remedy, without its name."""
    return f"cannot be read ({error.strerror or error}); change its permissions, or name what is to be read"


def list_folder(folder: Path) -> FolderListing:
    """Return what is below a folder, through links too, every folder once: under its own name where it has one here,
    else under that of the first link to it."""
    walk = _Walk()
    walk.list(str(folder))
    again = []
    while walk.links:
        walk.links.sort(reverse=True)
        link = walk.links.pop()
        status = Path(link).stat()
        if (status.st_dev, status.st_ino) in walk.seen:
            again.append(link)
        else:
            walk.list(link)
    return FolderListing(tuple(sorted(walk.files)), walk.unreadable, tuple(sorted(walk.special)), tuple(again))
