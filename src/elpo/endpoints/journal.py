"""Everything that was drawn from an endpoint, in a file that only grows.

A line for every completion: the digest of its request, the completion, and the tokens it was charged with.
Equal requests have equal answers, so a second call replays what the first one paid for, turn by turn and
whatever stopped it, and asks only for what is missing. A line that was cut off by a kill is dropped.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from elpo.chat import ChatPolicy, ChatRequest, Completion, RawCall
from elpo.endpoints.account import Account, charge_for


class Journal:
    """The file; thread-safe.

    Raises:
        ValueError: a line before the last is damaged.
        OSError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._known: dict[str, Completion] = {}
        self.charged = [0, 0, 0]  # by earlier sessions: completions, prompt tokens, completion tokens
        whole = path.read_bytes() if path.exists() else b""
        complete = whole[: whole.rfind(b"\n") + 1]
        for number, line in enumerate(complete.splitlines(), 1):
            try:
                record = json.loads(line)
                self._known[record["key"]] = _completion(record["completion"])
                for i, count in enumerate((1, *record["charged"])):
                    self.charged[i] += count
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number} is damaged ({error}); remove that line") from error
        self._file = path.open("ab")
        if len(complete) < len(whole):
            os.truncate(path, len(complete))

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Completion | None:
        """The answer to the request with this digest, if it was drawn."""
        return self._known.get(key)

    def add(self, key: str, completion: Completion, charged: tuple[int, int]) -> None:
        """Keep an answer; it is in the file when this returns."""
        line = json.dumps({"key": key, "charged": charged, "completion": asdict(completion)}) + "\n"
        with self._lock:
            self._known[key] = completion
            self._file.write(line.encode())
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _completion(record: Mapping[str, Any]) -> Completion:
    return Completion(**{**record, "calls": tuple(RawCall(**call) for call in record["calls"])})


class KeptPolicy:
    """A `ChatPolicy` that keeps every answer of another one, and pays for it from an account.

    What the journal holds from earlier sessions is charged too: a limit is one for all of them together.
    """

    def __init__(self, policy: ChatPolicy, journal: Journal, account: Account) -> None:
        self._policy = policy
        self._journal = journal
        self.account = account
        self.num_replayed = 0
        account.charge(*journal.charged)

    def complete(self, request: ChatRequest) -> Completion:
        """See `ChatPolicy.complete`.

        Raises:
            LimitReached: the request might pass a limit of the account.
        """
        key = request.key
        if (known := self._journal.get(key)) is not None:
            self.num_replayed += 1
            return known
        reserved = self.account.reserve(request)
        try:
            completion = self._policy.complete(request)
            charged = charge_for(reserved, completion)
            self._journal.add(key, completion, charged)
        except BaseException:
            self.account.settle(reserved)
            raise
        self.account.settle(reserved, charged)
        return completion

    def give_up(self) -> None:
        """Wait for no further attempt. What is being answered now is still kept."""
        self._policy.close()

    def close(self) -> None:
        """Close the journal and the policy, once nothing is asked any more."""
        self._policy.close()
        self._journal.close()
