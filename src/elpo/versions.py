"""Whether an optional package is here, in a version that our code has been read against."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version


def require(package: str, at_least: str, below: str, extra: str, builds: Sequence[str] = ()) -> str:
    """The installed version of `package`, which must be in [`at_least`, `below`).

    `builds` are other names under which the same package is published.

    Raises:
        ImportError: it is missing or another version; the message names what to install.
    """
    remedy = f"pip install 'elpo[{extra}]'"
    for name in (package, *builds):
        try:
            found = version(name)
            break
        except PackageNotFoundError:
            continue
    else:
        raise ImportError(f"{package} is not installed; {remedy}")
    if not within(found, at_least, below):
        raise ImportError(f"{package} is {found}; this works with {at_least} to below {below}: {remedy}")
    return found


def within(found: str, at_least: str, below: str) -> bool:
    """Whether the version `found`, pre-releases and local builds included, is in [`at_least`, `below`)."""
    from packaging.version import Version

    return Version(at_least) <= Version(Version(found).base_version) < Version(below)
