"""What can be wrong with what a user gives us, and with a combination of parts. Torch-free."""

from __future__ import annotations


class BadInput(ValueError):
    """Something the user can mend. The message is one sentence: what, where, its value, and what to do."""


class Incompatible(ValueError):
    """This combination makes no sense; the suite lists the run as skipped with this sentence as the reason."""


class NonFinite(ArithmeticError):
    """A loss term became NaN or infinite; the run ends as failed with the step and the term's name."""

    def __init__(self, step: int, term: str) -> None:
        super().__init__(f"loss term {term!r} was not finite at step {step}")
        self.step, self.term = step, term
