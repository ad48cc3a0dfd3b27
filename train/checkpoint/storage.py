"""Where checkpoints are stored: each of them complete or absent, on a local disk or any fsspec file system."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from malmoi.atomic_io import fsync_path
from malmoi.disk_space import readable_bytes
from malmoi.errors import UserError
from malmoi.registry import Registry

WRITING, REPLACED, DELETED = "writing", "replaced", "deleted"
LAST_FILE = "state.json"
"""The file of a checkpoint that is written last: where it is, all others are."""


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint of a step."""
    return f"step-{step:06d}"


def checkpoint_step(name: str) -> int | None:
    """Return the step of the checkpoint called `name`; None: it is no checkpoint's name."""
    step = name.removeprefix("step-")
    return int(step) if name.startswith("step-") and step.isascii() and step.isdigit() else None


class Storage(Protocol):
    """Folders by name, each of which appears and disappears as a whole."""

    def place(self, name: str) -> str:
        """Return where a folder is, for messages."""
        ...

    def names(self) -> list[str]:
        """Return the names of all folders, in no order."""
        ...

    def write(self, name: str, num_bytes: int, fill: Callable[[Path], None]) -> None:
        """Have `fill` write files into an empty local folder, then make it appear as `name`, replacing an older one.

        Args:
            num_bytes: about what the files will take.

        Raises:
            OSError: it could not be written; what was there before is untouched.
        """
        ...

    def open(self, name: str) -> Path:
        """Return a local folder with the content of `name`, which may be missing or damaged."""
        ...

    def read_file(self, name: str, file: str) -> bytes:
        """Return the content of one file of `name`, without the others.

        Raises:
            OSError: it is missing.
        """
        ...

    def delete(self, name: str) -> None:
        """Delete a folder.

        Raises:
            OSError: it could not be deleted.
        """
        ...

    def clean_up(self) -> None:
        """Remove what a killed process left unfinished."""
        ...


class LocalStorage:
    """Folders on a local or network disk: written beside, synced, renamed into place, renamed before deletion."""

    def __init__(self, url: str) -> None:
        self.root = Path(url.removeprefix("file://"))

    def place(self, name: str) -> str:
        return str(self.root / name)

    def names(self) -> list[str]:
        if not self.root.is_dir():
            return []
        return [entry.name for entry in self.root.iterdir() if not entry.name.startswith(".")]

    def write(self, name: str, num_bytes: int, fill: Callable[[Path], None]) -> None:
        final, temporary = self.root / name, self._beside(name, WRITING)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            free = shutil.disk_usage(temporary).free
            if num_bytes > free:
                raise OSError(f"it needs {readable_bytes(num_bytes)}, {readable_bytes(free)} are free")
            fill(temporary)
            for file in (*temporary.iterdir(), temporary):
                fsync_path(file)
            if final.exists():
                final.rename(self._beside(name, REPLACED))
            temporary.rename(final)
            fsync_path(self.root)
            shutil.rmtree(self._beside(name, REPLACED), ignore_errors=True)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def open(self, name: str) -> Path:
        return self.root / name

    def read_file(self, name: str, file: str) -> bytes:
        return (self.root / name / file).read_bytes()

    def delete(self, name: str) -> None:
        doomed = self._beside(name, DELETED)
        (self.root / name).rename(doomed)
        shutil.rmtree(doomed)

    def clean_up(self) -> None:
        """Delete unfinished folders, and put a replaced one back whose replacement did not appear."""
        for folder in self.root.glob(f".*.{REPLACED}"):
            final = folder.with_name(folder.name.removeprefix(".").removesuffix(f".{REPLACED}"))
            if final.exists():
                shutil.rmtree(folder)
            else:
                folder.rename(final)
        for state in (WRITING, DELETED):
            for folder in self.root.glob(f".*.{state}"):
                shutil.rmtree(folder)

    def _beside(self, name: str, state: str) -> Path:
        return self.root / f".{name}.{state}"


class FsspecStorage:
    """Folders on any fsspec file system, such as S3. Its `LAST_FILE` makes a folder complete: it is uploaded last, and
    deleted first."""

    def __init__(self, url: str) -> None:
        import fsspec

        filesystem, root = fsspec.core.url_to_fs(url)
        self._filesystem: Any = filesystem
        self._root, self._url = str(root).rstrip("/"), url.rstrip("/")
        self._downloads = tempfile.TemporaryDirectory(prefix="malmoi-checkpoint-")

    def place(self, name: str) -> str:
        return f"{self._url}/{name}"

    def names(self) -> list[str]:
        self._filesystem.invalidate_cache()
        found = self._filesystem.glob(f"{self._root}/*/{LAST_FILE}")
        return [str(file).split("/")[-2] for file in found]

    def write(self, name: str, num_bytes: int, fill: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory(prefix="malmoi-checkpoint-") as folder:
            fill(Path(folder))
            self._forget(name)
            files = sorted(Path(folder).iterdir(), key=lambda file: (file.name == LAST_FILE, file.name))
            self._filesystem.makedirs(f"{self._root}/{name}", exist_ok=True)
            for file in files:
                self._filesystem.put_file(str(file), f"{self._root}/{name}/{file.name}")

    def open(self, name: str) -> Path:
        """Download `name` to a temporary folder, which is deleted at the end of the process."""
        folder = Path(self._downloads.name) / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._filesystem.invalidate_cache()
        for file in self._filesystem.ls(f"{self._root}/{name}", detail=False):
            self._filesystem.get_file(str(file), str(folder / str(file).rsplit("/", 1)[-1]))
        return folder

    def read_file(self, name: str, file: str) -> bytes:
        content: bytes = self._filesystem.cat_file(f"{self._root}/{name}/{file}")
        return content

    def delete(self, name: str) -> None:
        self._forget(name)

    def clean_up(self) -> None:
        """Delete checkpoints without their `LAST_FILE`; whatever else is there stays."""
        self._filesystem.invalidate_cache()
        if not self._filesystem.exists(self._root):
            return
        complete = set(self.names())
        for folder in self._filesystem.ls(self._root, detail=False):
            name = str(folder).rstrip("/").rsplit("/", 1)[-1]
            if checkpoint_step(name) is not None and name not in complete:
                self._filesystem.rm(str(folder), recursive=True)

    def _forget(self, name: str) -> None:
        folder = f"{self._root}/{name}"
        self._filesystem.invalidate_cache()
        if not self._filesystem.exists(folder):
            return
        if self._filesystem.exists(f"{folder}/{LAST_FILE}"):
            self._filesystem.rm_file(f"{folder}/{LAST_FILE}")
        self._filesystem.rm(folder, recursive=True)


STORAGES: Registry[Callable[[str], Storage]] = Registry(
    {
        "file": LocalStorage,
        "s3": FsspecStorage,
        "gs": FsspecStorage,
        "memory": FsspecStorage,
    }
)
"""By the scheme of a URL; a path without one is `file`. Other schemes that fsspec knows work without an entry."""


def open_storage(url: str) -> Storage:
    """Return the storage of a path or URL.

    Raises:
        UserError: neither `STORAGES` nor fsspec knows the scheme, or its package is not installed.
    """
    scheme = url.split("://", 1)[0] if "://" in url else "file"
    try:
        return STORAGES.get(scheme, FsspecStorage)(url)
    except (ValueError, ImportError) as error:
        known = ", ".join(STORAGES)
        raise UserError(f"checkpoint.dir {url}: {error}; known schemes: {known}, and those of fsspec") from error
