"""Whether a shard folder is as it was written."""

from pathlib import Path

from data_prep.manifest import MANIFEST_FILE, FileRecord, file_checksum, read_manifest, shard_folder


def file_faults(folder: Path, records: tuple[FileRecord, ...]) -> list[str]:
    """What is wrong with the files of `folder`, a line each: missing, of another size, or changed."""
    faults = []
    for record in records:
        file = folder / record.name
        if not file.is_file():
            faults.append(f"{file}: missing")
        elif file.stat().st_size != record.bytes:
            faults.append(f"{file}: {file.stat().st_size} bytes, written were {record.bytes}")
        elif file_checksum(file) != record.blake2b:
            faults.append(f"{file}: its bytes changed since it was written")
    return faults


def shard_faults(path: Path) -> list[str]:
    """What is wrong with a shard folder, a line each; empty where it is whole.

    Raises:
        BadInput: there is no readable manifest, so nothing to check against.
    """
    folder = shard_folder(path)
    manifest = read_manifest(folder)
    faults = file_faults(folder, manifest.files)
    known = {record.name for record in manifest.files} | {MANIFEST_FILE}
    return faults + [f"{file}: not in the manifest" for file in sorted(folder.iterdir()) if file.name not in known]
