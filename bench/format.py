"""The contract of a published checkpoint format: somebody else's state dict becomes the weights of one of our tokenizers."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from bench.errors import BadInput

#: a whole published key as a regular expression, and ours, in which \1 stands for a group
Rule = tuple[str, str | Callable[[re.Match[str]], str]]
MOST_NAMED = 3              # keys that a sentence lists


class Format(ABC):
    """How one public repository names its tensors. Every key is renamed or ignored with a reason; all else is an error."""

    title: ClassVar[str]
    code: ClassVar[str]                             # the repository whose state dicts these are
    pixels: ClassVar[tuple[float, float]]           # black and white as the published network takes them
    files: ClassVar[Mapping[str, str]] = {}         # of a checkpoint in parts: pattern of a file's name -> its keys' prefix
    inside: ClassVar[tuple[str, ...]] = ("state_dict", "model")     # under which key a file holds the tensors; the first counts
    rename: ClassVar[tuple[Rule, ...]]              # the first that matches counts
    ignored: ClassVar[Mapping[str, str]] = {}       # a whole key as a regular expression -> why no tokenizer needs it

    @abstractmethod
    def tokenizer(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Name and keywords of our tokenizer, as a suite writes them, read off names and shapes.

        Raises KeyError for a tensor that is not there."""

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our names for the published tensors. Raises BadInput naming keys that no rule knows, and two that become one."""
        ours: dict[str, Tensor] = {}
        unknown: list[str] = []
        for key, tensor in state.items():
            if any(re.fullmatch(pattern, key) for pattern in self.ignored):
                continue
            name = self._renamed(key)
            if name is None:
                unknown.append(key)
            elif name in ours:
                raise BadInput(f"{key} and another tensor both become {name}; this is not the format of {self.title}")
            else:
                ours[name] = tensor
        if unknown:
            raise BadInput(f"{named(unknown)}: not known in the format of {self.title}, so this is the checkpoint of "
                           f"another network; choose another --format")
        return ours

    def _renamed(self, key: str) -> str | None:
        for pattern, ours in self.rename:
            if match := re.fullmatch(pattern, key):
                return ours(match) if callable(ours) else match.expand(ours)
        return None


def named(keys: list[str]) -> str:
    """'a, b, c and 7 other tensors'."""
    more = len(keys) - MOST_NAMED
    return ", ".join(sorted(keys)[:MOST_NAMED]) + (f" and {more} other tensors" if more > 0 else "")
