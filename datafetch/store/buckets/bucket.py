"""Bucket: objects of a store that speaks S3's protocol, by botocore. It blocks, and may be used by several threads.

Rules: this is the only module that knows botocore. Credentials, region and endpoint come from where the store's own
tools take them (environment, ``~/.aws``, roles of the instance), and no message, file or log has them. Each request has
a time limit, and what a store throttles or a network loses is sent again, for a few minutes at most.

Theory of operation: a request whose response is lost may have been carried out, and the client sends it again. For
most that does no harm. A conditional put then fails because of itself: the object is there. So each object that is put
has an upload id of its own among its metadata, and if a condition fails, the object that is there is asked for its
upload id before the put counts as refused. In the same way, completing a multipart upload twice is no failure.

Large files are uploaded in parts, several at a time. If that fails, the upload is aborted; what a killed process leaves
is aborted by ``abort_uploads``.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from datafetch.errors import ConfigurationError, ResourceError, raise_if_exhausted
from datafetch.model.untrusted import one_line

PART_BYTES = 16 << 20
"""The size of a part; larger files than two parts are uploaded in parts."""
_MAX_READ_BYTES = 256 << 20  # into memory: a log entry with all files of 100,000 shards has a tenth of it
_MAX_PARTS = 9_000  # a store takes 10,000
_THREADS = 4  # each holds a part in memory
_PATIENCE_S = 240.0
_FIRST_PATIENCE_S = 20.0  # until the store has answered for the first time: its address may be wrong
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.5, 20.0
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 10, 60
_LEAST_PAUSE = 0.5  # of the full one; at random, so that what was throttled together is not sent again together
_UPLOAD_ID, _CRC32 = "datafetch-upload", "datafetch-crc32"  # among the metadata of objects
_CONDITION_FAILED, _CONFLICT, _NOT_FOUND, _TOO_MANY_REQUESTS, _SERVER_ERROR = 412, 409, 404, 429, 500
_THROTTLED = frozenset({"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"})
_TRANSIENT = _THROTTLED | {"RequestTimeout", "InternalError", "ServiceUnavailable", "BadDigest", "IncompleteBody"}

_Result = TypeVar("_Result")


class StoppedError(Exception):
    """The caller asked to stop."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object that was read.

    Attributes:
        body: Its content.
        etag: Its entity tag, as a condition takes it.
        age_s: How long ago it was written, by the clock of the store.
    """

    body: bytes
    etag: str
    age_s: float


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object in a list: its size and entity tag."""

    key: str
    size_bytes: int
    etag: str


@dataclass(frozen=True, slots=True)
class DescribedObject:
    """An object, without its content.

    Attributes:
        size_bytes: Its size.
        etag: Its entity tag.
        is_ours: Whether datafetch wrote it.
        crc32: The checksum that was stored with it; None if there is none.
    """

    size_bytes: int
    etag: str
    is_ours: bool
    crc32: int | None


@dataclass(frozen=True, slots=True)
class Condition:
    """When a put is carried out: if the object has this entity tag; without one, if there is no such object."""

    etag: str | None = None

    def arguments(self) -> dict[str, str]:
        """The arguments of a request."""
        return {"IfNoneMatch": "*"} if self.etag is None else {"IfMatch": self.etag}


IF_NEW = Condition()


class Bucket:
    """A bucket, as a context that closes it.

    Args:
        name: Its name.

    Attributes:
        stop: Once it is set, requests that wait for their next attempt raise ``StoppedError``.

    Raises:
        ConfigurationError: botocore is not installed, or finds no usable configuration.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.stop = threading.Event()
        self._has_answered = False
        self._client = _open_client()
        self._parts = ThreadPoolExecutor(_THREADS, thread_name_prefix="upload")

    def close(self) -> None:
        """Close the connections."""
        self._parts.shutdown(cancel_futures=True)
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, key: str) -> StoredObject | None:
        """Read an object; None if there is none."""

        def read() -> StoredObject | None:
            response = self._client.get_object(Bucket=self.name, Key=key)
            if response["ContentLength"] > _MAX_READ_BYTES:
                raise ConfigurationError(
                    f"s3://{self.name}/{key} has more than {_MAX_READ_BYTES:,} bytes, so datafetch has not written it; "
                    "delete it, or put back what was there"
                )
            body: bytes = response["Body"].read()
            headers = response["ResponseMetadata"]["HTTPHeaders"]
            return StoredObject(body, response["ETag"], _age_s(headers.get("date"), response["LastModified"]))

        return self._unless_missing(read, f"read {key}")

    def download(self, key: str, target: Path) -> bool:
        """Copy an object to a file; False if there is none.

        Raises:
            OSError: The file can't be written.
        """

        def copy() -> bool:
            response = self._client.get_object(Bucket=self.name, Key=key)
            with _errors_named(target):
                file = target.open("wb")
            try:
                for piece in response["Body"].iter_chunks(1 << 20):
                    with _errors_named(target):
                        file.write(piece)
            finally:
                with _errors_named(target):
                    file.close()
            return True

        return self._unless_missing(copy, f"read {key}") or False

    def put(self, key: str, body: bytes, condition: Condition | None = None, *, crc32: int | None = None) -> str | None:
        """Put an object.

        Args:
            key: Its key.
            body: Its content.
            condition: When; None is always.
            crc32: Its checksum, to be stored with it; None for none.

        Returns:
            Its entity tag; None if the condition does not hold.
        """
        mark = uuid.uuid4().hex
        arguments = {
            "Bucket": self.name,
            "Key": key,
            "Body": body,
            "Metadata": {_UPLOAD_ID: mark} | ({} if crc32 is None else {_CRC32: str(crc32)}),
            **(condition.arguments() if condition else {}),
        }
        return self._conditionally(lambda: self._client.put_object(**arguments)["ETag"], key, mark)

    def upload(self, path: Path, key: str, crc32: int, condition: Condition | None = None) -> str | None:
        """Put a file, in parts if it is large; its checksum is stored with it. Otherwise like ``put``."""
        size = path.stat().st_size
        if size <= 2 * PART_BYTES:
            return self.put(key, path.read_bytes(), condition, crc32=crc32)
        mark = uuid.uuid4().hex
        metadata = {_UPLOAD_ID: mark, _CRC32: str(crc32)}
        part_bytes = max(PART_BYTES, -(-size // _MAX_PARTS))
        created = self._ask(
            lambda: self._client.create_multipart_upload(Bucket=self.name, Key=key, Metadata=metadata), f"write {key}"
        )
        upload = {"Bucket": self.name, "Key": key, "UploadId": created["UploadId"]}
        try:
            parts = list(
                self._parts.map(
                    lambda start: self._upload_part(upload, path, start, part_bytes), range(0, size, part_bytes)
                )
            )
            arguments = {**upload, "MultipartUpload": {"Parts": parts}, **(condition.arguments() if condition else {})}
            etag = self._conditionally(lambda: self._client.complete_multipart_upload(**arguments)["ETag"], key, mark)
        except BaseException:
            self._abort(upload)
            raise
        if etag is None:
            self._abort(upload)
        return etag

    def list(self, prefix: str) -> Iterator[ListedObject]:
        """The objects whose keys begin like this, in the order of their keys."""
        arguments = {"Bucket": self.name, "Prefix": prefix}
        while True:
            page = self._ask(partial(self._client.list_objects_v2, **arguments), f"list {prefix}")
            for one in page.get("Contents", ()):
                yield ListedObject(one["Key"], one["Size"], one["ETag"])
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def describe(self, key: str) -> DescribedObject | None:
        """What an object is; None if there is none."""
        found = self._head(key)
        if found is None:
            return None
        metadata = found.get("Metadata", {})
        crc32 = metadata.get(_CRC32, "")
        return DescribedObject(
            size_bytes=found["ContentLength"],
            etag=found["ETag"],
            is_ours=_UPLOAD_ID in metadata,
            crc32=int(crc32) if crc32.isascii() and crc32.isdigit() else None,
        )

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are gone already are no error."""

        def delete(key: str) -> None:  # one by one, since of the request for many not all stores have the same idea
            self._ask(partial(self._client.delete_object, Bucket=self.name, Key=key), f"delete {key}")

        for _ in self._parts.map(delete, keys):
            pass

    def abort_uploads(self, prefix: str) -> int:
        """Abort the uploads in parts whose keys begin like this and that nobody has completed; returns how many."""
        aborted = 0
        arguments: dict[str, str] = {"Bucket": self.name, "Prefix": prefix}
        while True:
            page = self._ask(partial(self._client.list_multipart_uploads, **arguments), f"list {prefix}")
            for one in page.get("Uploads", ()):
                self._abort({"Bucket": self.name, "Key": one["Key"], "UploadId": one["UploadId"]})
                aborted += 1
            if not page.get("IsTruncated"):
                return aborted
            arguments |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _upload_part(self, upload: Mapping[str, str], path: Path, start: int, size: int) -> dict[str, object]:
        with path.open("rb") as file:
            file.seek(start)
            body = file.read(size)
        number = start // size + 1
        arguments = {**upload, "PartNumber": number, "Body": body}
        etag = self._ask(lambda: self._client.upload_part(**arguments)["ETag"], f"write {upload['Key']}")
        return {"PartNumber": number, "ETag": etag}

    def _abort(self, upload: Mapping[str, str]) -> None:
        with suppress(ResourceError, ConfigurationError, StoppedError, _NotThereError):
            self._ask(lambda: self._client.abort_multipart_upload(**upload), f"delete {upload['Key']}")

    def _conditionally(self, put: Callable[[], str], key: str, mark: str) -> str | None:
        """Put an object; None if its condition does not hold, unless this put was carried out before."""
        try:
            return self._ask(put, f"write {key}")
        except (_RefusedError, _NotThereError):
            found = self._head(key)
            if found is not None and found.get("Metadata", {}).get(_UPLOAD_ID) == mark:
                return str(found["ETag"])
            return None

    def _head(self, key: str) -> Mapping[str, Any] | None:
        return self._unless_missing(lambda: dict(self._client.head_object(Bucket=self.name, Key=key)), f"read {key}")

    def _unless_missing(self, request: Callable[[], _Result], doing: str) -> _Result | None:
        try:
            return self._ask(request, doing)
        except _NotThereError:
            return None

    def _ask(self, request: Callable[[], _Result], doing: str) -> _Result:
        """Send a request, and again while the store throttles or can't be reached.

        Raises:
            _NotThereError, _RefusedError: The object or upload does not exist; the condition does not hold.
            ConfigurationError: The store refuses the request.
            ResourceError: The store could not be reached, or throttled, for minutes.
            StoppedError: ``stop`` was set meanwhile.
        """
        began_s, pause_s = time.monotonic(), _FIRST_PAUSE_S
        while True:
            try:
                return self._send(request, doing)
            except _TransientError as error:
                patience_s = _PATIENCE_S if self._has_answered else _FIRST_PATIENCE_S
                if time.monotonic() - began_s > patience_s:
                    raise ResourceError(
                        f"could not {doing} in s3://{self.name} for {patience_s:.0f} seconds ({error}); check the "
                        "network, the store and its endpoint (AWS_ENDPOINT_URL), and run the same command again "
                        "(nothing fetched so far is lost)"
                    ) from error
                if self.stop.wait(pause_s * random.uniform(_LEAST_PAUSE, 1)):  # noqa: S311 - no secret
                    raise StoppedError from error
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def _send(self, request: Callable[[], _Result], doing: str) -> _Result:
        """Send a request once.

        Raises:
            _TransientError: It may be carried out later.
        """
        from botocore import exceptions as errors  # noqa: PLC0415 - loaded only where a bucket is used

        try:
            result = request()
        except errors.ClientError as error:
            self._has_answered = True
            raise self._judged(error, doing) from error
        except (errors.NoCredentialsError, errors.PartialCredentialsError, errors.CredentialRetrievalError) as error:
            raise ConfigurationError(
                f"there are no credentials for s3://{self.name}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "AWS_PROFILE, or give this machine a role"
            ) from error
        except errors.EndpointConnectionError as error:
            raise _TransientError(self._no_connection()) from error
        except (errors.HTTPClientError, errors.IncompleteReadError) as error:
            raise _TransientError(type(error).__name__) from error
        except errors.BotoCoreError as error:
            raise ConfigurationError(
                f"s3://{self.name}: {one_line(str(error))[:300]}; check the settings in the environment and in ~/.aws"
            ) from error
        except OSError as error:
            raise_if_exhausted(error)
            if error.filename:  # a file of ours
                raise
            raise _TransientError(type(error).__name__) from error
        else:
            self._has_answered = True
            return result

    def _no_connection(self) -> str:
        """What to say if no connection can be opened: to which host and port, without a login."""
        return f"no connection to {urlsplit(self._client.meta.endpoint_url).netloc.rpartition('@')[2]}"

    def _judged(self, error: Any, doing: str) -> Exception:
        """What it means that the store has not carried out a request."""
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code == "NoSuchBucket":
            return ConfigurationError(f"there is no bucket s3://{self.name}; create it, or check its name and region")
        if status == _CONDITION_FAILED:
            return _RefusedError()
        if status == _NOT_FOUND:
            return _NotThereError()
        if status >= _SERVER_ERROR or status in {_CONFLICT, _TOO_MANY_REQUESTS} or code in _TRANSIENT:
            return _TransientError(code)
        message = one_line(str(error.response.get("Error", {}).get("Message", "")))[:200]
        return ConfigurationError(
            f"s3://{self.name} does not let datafetch {doing}: {code or status} {message}; check your login, its "
            "permissions, the region and the endpoint"
        )


class _TransientError(Exception):
    """A request that may be carried out later."""


class _NotThereError(Exception):
    """There is no such object or upload."""


class _RefusedError(Exception):
    """The condition of a put does not hold."""


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Name a file of ours in what the system raises about it, by which that is told from an error of the network."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def _open_client() -> Any:
    try:
        from botocore.config import Config  # noqa: PLC0415 - an extra, loaded only where a bucket is used
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415
        from botocore.session import Session  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(
            "an output in an object store needs botocore; install it: pip install 'vlm-datafetch[s3]'"
        ) from error
    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": 1},  # we send it again, with pauses that can be stopped
        max_pool_connections=4 * _THREADS,
        # What TLS, or over HTTP the signature, does not protect; some stores refuse them.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        session = Session()
        region = session.get_config_variable("region") or "us-east-1"
        return session.create_client("s3", region_name=region, config=config)
    except (BotoCoreError, ValueError) as error:
        raise ConfigurationError(
            f"the object store can't be used: {one_line(str(error))[:300]}; check the settings in the environment and "
            "in ~/.aws"
        ) from error


def _age_s(date: str | None, modified: datetime) -> float:
    """How long ago an object was written, by the store's own clock."""
    if date is None:
        return 0.0
    try:
        return (parsedate_to_datetime(date) - modified).total_seconds()
    except (ValueError, TypeError):  # it is no time, or one without a time zone
        return 0.0
