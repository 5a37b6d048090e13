"""A sealed shard goes to a server, and resumes what an earlier try has left there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from features.recipe import FeatureError
from features.store_files import open_regular
from features.transfer.body_limits import CHUNK
from features.transfer.connection import LOCAL, SSH, Connection
from features.transfer.parallel import Meter
from features.transfer.stall_timeout import Moved, StalledError, in_a_thread, result_of

PARTIAL = ".partial-"  # before a shard's name, while it is transferred
BLOCK = 8 * 2**20  # bytes transferred at once; what an interruption can lose
APPENDABLE = {*LOCAL, *SSH}  # file systems that can append, and rename


def upload(connection: Connection, file: Path, meter: Meter) -> None:
    """Send a file, under its own name once it is whole.

    Args:
        connection: where to.
        file: a sealed shard.
        meter: counts its bytes.

    Raises:
        FeatureError: what arrived is damaged.
    """
    if APPENDABLE & connection.protocols:
        moved, ours = Moved(), (connection.fs, connection.root)

        def append() -> None:
            connection.use(*ours)
            _append(connection, file, meter, moved)

        result_of(in_a_thread(append), moved)
    elif "s3" in connection.protocols:
        _upload_parts(connection, file, meter)
    else:
        fs, path, size = connection.fs, f"{connection.root}/{file.name}", file.stat().st_size
        result_of(in_a_thread(lambda: fs.put_file(str(file), path)), nbytes=size)
        meter.add(size)


def delete_unfinished(connection: Connection) -> None:
    """Delete what uploads that were cut off have left."""
    for name, _ in connection.listed():
        if name.startswith(PARTIAL):
            connection.delete(name)
    if "s3" in connection.protocols:
        bucket, key, _ = connection.fs.split_path(f"{connection.root}/")
        for begun in unfinished_uploads(connection, bucket, key):
            target = {"Bucket": bucket, "Key": begun["Key"], "UploadId": begun["UploadId"]}
            connection.call_s3("abort_multipart_upload", **target)


def unfinished_uploads(connection: Connection, bucket: str, prefix: str) -> list[Any]:
    """Return the multipart uploads to S3 that were begun and not completed.

    Args:
        connection: to S3.
        bucket: where they are.
        prefix: of their keys.
    """
    try:
        found = connection.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix)
    except StalledError:
        raise
    except Exception as error:
        if "NoSuchUpload" not in str(error):  # how some servers report none
            raise
        return []
    return list(found.get("Uploads", []))


def _append(connection: Connection, file: Path, meter: Meter, moved: Moved) -> None:
    """Send to a file system: to a partial file, which is read back and renamed."""
    fs, root, size = connection.fs, connection.root, file.stat().st_size
    name = f"{PARTIAL}{file.name}"
    partial = f"{root}/{name}"
    if LOCAL & connection.protocols:
        os.close(open_regular(Path(partial), os.O_WRONLY | os.O_CREAT))
    done = fs.size(partial) if fs.exists(partial) else 0
    if done > size:
        fs.rm_file(partial)
        done = 0
    meter.skip(done)
    fs.open(partial, "ab").close()
    # of two pushes at once, each writes the same bytes in the same place, also when the other
    # one has renamed the file: to append would damage what is sealed
    with open(file, "rb") as source, fs.open(partial, "r+b") as target:
        source.seek(done)
        target.seek(done)
        while block := source.read(CHUNK):
            target.write(block)
            target.flush()
            moved.add(len(block))
            meter.add(len(block))
    with open(file, "rb") as source, suppress(FileNotFoundError):  # the other was faster

        def compare(block: bytes) -> None:
            moved.add(len(block))
            if source.read(len(block)) != block:
                fs.rm_file(partial)
                raise FeatureError(
                    f"{connection.name}/{file.name}: what arrived there is damaged; push again"
                )

        for at in range(0, size, BLOCK):
            connection.fetch(name, at, min(at + BLOCK, size), compare)
        fs.mv(partial, f"{root}/{file.name}")


def _upload_parts(connection: Connection, file: Path, meter: Meter) -> None:
    """Send to S3 as a multipart upload, keeping the parts of an earlier one cut off."""
    fs = connection.fs
    bucket, key, _ = fs.split_path(f"{connection.root}/{file.name}")
    target = {"Bucket": bucket, "Key": key}
    begun = [
        up["UploadId"] for up in unfinished_uploads(connection, bucket, key) if up["Key"] == key
    ]
    if begun:
        target["UploadId"] = begun[0]
        listed = connection.call_s3("list_parts", **target).get("Parts", [])
    else:
        target["UploadId"] = connection.call_s3("create_multipart_upload", **target)["UploadId"]
        listed = []
    uploaded = {part["PartNumber"]: part for part in listed}
    parts = []
    with open(file, "rb") as source:
        number = 0
        while block := source.read(BLOCK):
            number += 1
            part = uploaded.get(number)
            if part and part["Size"] == len(block):
                meter.skip(len(block))
            else:
                part = connection.call_s3("upload_part", block, **target, PartNumber=number)
                meter.add(len(block))
            parts.append({"PartNumber": number, "ETag": part["ETag"]})
    connection.call_s3("complete_multipart_upload", **target, MultipartUpload={"Parts": parts})
    fs.invalidate_cache(connection.root)
