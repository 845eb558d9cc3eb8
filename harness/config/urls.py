"""URLs in a run file: which stores are allowed, and no credential in any of them, as the run file is copied into the run folder.

A URL may be chained as fsspec writes it, `simplecache::s3://bucket/run`: each layer is looked at.
"""

import re
from collections.abc import Iterator
from urllib.parse import unquote

from harness.config.allowed_names import checked_folder
from harness.config.errors import UserError, redacted

SCHEMES = frozenset(
    {
        "abfs",
        "abfss",
        "adl",
        "az",
        "file",
        "ftp",
        "gcs",
        "gs",
        "hdfs",
        "oci",
        "oss",
        "r2",
        "s3",
        "s3a",
        "sftp",
        "smb",
        "ssh",
        "tos",
        "webhdfs",
    }
)
"""Where fsspec can write files and list them. Others (http, zip, memory, the caching layers) cannot hold a checkpoint."""
NO_NAME = frozenset({"adl", "az", "gcs", "gs", "http", "https", "oci", "oss", "r2", "s3", "s3a", "tos"})
"""Schemes in which text before an @ is a key or a token. In other schemes it is a user or Azure's container."""
OBJECT_STORES = (NO_NAME | {"abfs", "abfss"}) - {"http", "https"}
"""Schemes of stores without folders. To make one there would make a bucket, where its name is not known."""
_ALLOWED = re.compile(r"[\w.~@:/%+=,&()'\-]+")
_NEARLY = re.compile(rf"(?<!\w)({'|'.join(sorted(SCHEMES))})(:/?(?!/)|//)")
"""Matches the start of a URL in which a character of :// is missing."""
_SECRET = re.compile(
    r"(^|[^a-z])sig([^a-z]|$)|signature|secret|token|pass|pwd|credential|(access|api|account|private).?key|^key$|^auth"
)


def check_no_credentials(setting: str, text: str) -> None:
    """Raise UserError where a URL anywhere in `text` holds a password, a key or a signed query. The message shows none of it."""
    for scheme, rest in _urls(text):
        if _has_userinfo(scheme, rest) or _has_signed_query(rest):
            at = f"has a URL with a credential in it ({scheme}://***), which would be written to the run folder"
            raise UserError(
                setting, at, "leave it out, and give credentials through the environment or the store's own config file"
            )


def check_store(setting: str, where: str) -> None:
    """Raise UserError unless the URL `where` is one at which checkpoints can be kept: one layer, of SCHEMES, without a query."""
    check_no_credentials(setting, where)
    shown = redacted(where)
    scheme, _, rest = where.partition("://")
    if "::" in where:
        raise UserError(setting, f"is {shown!r}, a chain of file systems", "give the URL of the store itself")
    if scheme == "memory":
        raise UserError(setting, f"is {shown!r}, which exists within one process only", "give a path, or the URL of a store")
    if scheme not in SCHEMES:
        raise UserError(setting, f"is {shown!r}, and {scheme!r} is not a known store", f"known: {', '.join(sorted(SCHEMES))}")
    if scheme == "file" and not rest.startswith("/"):
        raise UserError(setting, f"is {shown!r}, which names a host", "give a path, or file:/// and a path from the root")
    if rest.startswith("/") and scheme not in ("file", "hdfs"):
        raise UserError(setting, f"is {shown!r}, which names no bucket or host", f"write {scheme}://BUCKET/FOLDER")
    if not _ALLOWED.fullmatch(rest) or ".." in rest.split("/"):
        raise UserError(setting, f"is {shown!r}", "give a URL such as s3://bucket/run, without query, blanks or ..")


def checked_place(setting: str, where: str) -> str:
    """`where`, if it is a folder on this machine or the URL of a store. Raises UserError."""
    if "://" in where:
        check_store(setting, where)
        return where
    if _NEARLY.match(where):
        shown = redacted(_NEARLY.sub(r"\1://", where))
        at = f"is {shown!r} with something other than ://, and would be taken for a folder"
        raise UserError(setting, at, "write SCHEME://, or ./ before the name of a folder")
    return checked_folder(setting, where)


def is_url(text: str) -> bool:
    """Whether a text would be a URL if it was meant as one: also where a sign of :// is missing."""
    return "://" in text or _NEARLY.match(text) is not None


def _urls(text: str) -> Iterator[tuple[str, str]]:
    """(scheme, all that follows ://) of each URL in a text, also of one that lost a sign of ://; of a chain, each layer."""
    for url in re.findall(r"[A-Za-z][\w+.\-]*://[^\s'\"<>]*", _NEARLY.sub(r"\1://", text)):
        for layer in re.split(r"::(?=[A-Za-z][\w+.\-]*://)", url):
            scheme, _, rest = layer.partition("://")
            yield scheme.lower(), unquote(rest)


def _has_userinfo(scheme: str, rest: str) -> bool:
    """Whether a password or a key stands before an @. A password may hold any sign, a slash too; a port is none."""
    before, at, _ = rest.rpartition("@")
    if not at:
        return False
    host, slash, _ = before.partition("/")
    name, colon, password = host.partition(":")
    if colon:
        return not (slash and re.fullmatch(r"[0-9]+", password))
    return scheme in NO_NAME and not slash and bool(name)


def _has_signed_query(rest: str) -> bool:
    """Whether a query, or a fragment, names something that signs or opens a request."""
    _, *parts = re.split(r"[?#]", rest)
    return any(_SECRET.search(pair.partition("=")[0].lower()) for part in parts for pair in re.split(r"[&;]", part))
