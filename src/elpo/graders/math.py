r"""Judging mathematical answers: is what the policy boxed equal to the gold answer?

Text and plain numbers are compared in this process, exactly (`elpo.graders.comparison`). Everything else is a
question for math-verify, in workers that can be killed (`elpo.graders.latex`). What is accepted, and why, is
in docs/GRADERS.md.
"""

from __future__ import annotations

import importlib.metadata
import threading
import warnings
from collections import OrderedDict
from functools import cache, lru_cache
from typing import Self

from elpo.graders.boxed import stated_answer
from elpo.graders.comparison import Judgement, Question, compare, is_plain
from elpo.graders.grade import Grade, Verdict
from elpo.graders.workers import WorkerDied, Workers, WorkersUnavailable

TESTED_VERSIONS = {
    "math-verify": "0.9.0",
    "latex2sympy2_extended": "1.11.0",
    "antlr4-python3-runtime": "4.13.2",
}
"""The three belong together: other versions parse or compare differently, or do not import at all."""

_CACHED = 1 << 16


class MathGrader:
    r"""Grades answers to mathematical problems. Thread-safe; workers start when first needed.

    `strict` asks for the notation of the gold answer too: percent and degree signs, units, the braces of a
    set, `x=`, the base of a numeral, repeated elements of a list; and exact values, not rounded decimals.
    `timeout` is in seconds, for each answer; `memory_mb` bounds what a worker may add to its memory (Linux).

    >>> with MathGrader() as grader:
    ...     grader.grade(r"So it is \boxed{\frac{1}{2}}.", "0.5").verdict.value
    'correct'
    """

    def __init__(
        self, strict: bool = False, timeout: float = 5.0, num_workers: int = 1, memory_mb: int = 2048
    ) -> None:
        self.strict = strict
        self._workers = Workers(
            "elpo.graders.latex", num_workers=num_workers, timeout=timeout, memory_mb=memory_mb
        )
        self._cache: OrderedDict[tuple[str, str], Judgement] = OrderedDict()
        self._lock = threading.Lock()

    def grade(self, text: str, gold: str) -> Grade:
        r"""Judge the answer that `text`, the policy's last turn, states (`elpo.graders.boxed.stated_answer`).

        Raises:
            ValueError: `gold` is empty, or needs math-verify, which is not there. Never because of `text`.
        """
        check_gold(gold)
        answer = stated_answer(text)
        if answer is None:
            return Grade(Verdict.NO_ANSWER, detail="no closed \\boxed{} and no answer line")
        judgement = self._judge(answer, gold)
        score = float(judgement.verdict is Verdict.CORRECT)
        return Grade(judgement.verdict, answer, score, judgement.detail)

    def equivalent(self, a: str, b: str) -> bool:
        """True where two answers, as the policy wrote them, say the same. Symmetric; for votes.

        Raises:
            RuntimeError: the grader itself failed.
        """
        for gold, answer in ((a, b), (b, a)):
            judgement = self._judge(answer, gold)
            if judgement.verdict is Verdict.FAULT:
                raise RuntimeError(f"the math grader failed: {judgement.detail}")
            if judgement.verdict is Verdict.CORRECT:
                return True
        return False

    def _judge(self, answer: str, gold: str) -> Judgement:
        key = (answer, gold)
        with self._lock:
            if (known := self._cache.get(key)) is not None:
                self._cache.move_to_end(key)
                return known
        found = compare(answer, gold, self.strict)
        judgement = self._ask(found) if isinstance(found, Question) else found
        if judgement.verdict is not Verdict.FAULT:
            with self._lock:
                self._cache[key] = judgement
                if len(self._cache) > _CACHED:
                    self._cache.popitem(last=False)
        return judgement

    def _ask(self, question: Question) -> Judgement:
        if not _math_verify_installed():
            return Judgement(Verdict.WRONG, "not a plain number, and math-verify is not installed")
        request = {"gold": question.gold, "answer": question.answer, "strict": self.strict}
        try:
            reply = self._workers.ask(request)
        except TimeoutError as error:
            return Judgement(Verdict.TIMEOUT, str(error))
        except WorkerDied as error:
            return Judgement(Verdict.RESOURCE_LIMIT, str(error))
        except WorkersUnavailable as error:
            return Judgement(Verdict.FAULT, str(error))
        return Judgement(Verdict(reply["verdict"]), str(reply["detail"]))

    def close(self) -> None:
        """End the workers. Safe to call twice."""
        self._workers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@lru_cache(1 << 14)
def check_gold(gold: str) -> None:
    r"""Say early that an answer cannot be graded here; only the gold answer decides it, never the policy's.

    Numbers and `\text{words}` need no parser; any other gold answer needs math-verify.

    Raises:
        ValueError: `gold` is empty, or needs math-verify, which is not installed.
    """
    if not gold.strip():
        raise ValueError("the gold answer is empty; leave such problems out")
    if not is_plain(gold) and not _math_verify_installed():
        raise ValueError(
            f"the gold answer {gold!r} is not a plain number: comparing it needs math-verify; "
            "install it with: pip install 'elpo[math]'"
        )


@cache
def _math_verify_installed() -> bool:
    """Whether it is there; warns once if the versions are not those that the known errors were found with."""
    found = {}
    for name in TESTED_VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return False
    if found != TESTED_VERSIONS:
        wanted = " ".join(f"{name}=={version}" for name, version in TESTED_VERSIONS.items())
        have = ", ".join(f"{name} {version}" for name, version in found.items())
        warnings.warn(
            f"math answers are graded with {have}; the grader is tested with other versions, and its "
            f"verdicts may differ. To have the tested ones: pip install {wanted}",
            stacklevel=2,
        )
    return True
