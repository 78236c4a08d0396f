"""The classes of ImageNet-1k, and how to find one by name.

The names are the short forms that torchvision 0.28.0 lists in `torchvision.models._meta` and
attaches to its weights, in the order of the logits. They are facts about the data set, and are
themselves shortened from the WordNet synsets of ILSVRC 2012.
"""

import difflib
import operator
import re
from collections.abc import Sequence
from importlib import resources
from typing import SupportsIndex

from jax_excite.errors import TargetError

CLASS_NAMES: tuple[str, ...] = tuple(
    resources.files("jax_excite.data")
    .joinpath("imagenet_classes.txt")
    .read_text("utf-8")
    .splitlines()
)

# Words that name two ImageNet classes each; torchvision lengthens the name of one of the two.
_HOMONYMS = {"crane": "crane bird", "maillot": "maillot tank suit"}


def class_index(
    name_or_index: str | SupportsIndex, class_names: Sequence[str] = CLASS_NAMES
) -> int:
    """Find the index of a class.

    Args:
        name_or_index: a class name or an index. Case is ignored in a name, and blanks, hyphens and
            underscores between words are equivalent. An index is an integer or a string of digits.
        class_names: the name of each class, in the order of the logits.

    Returns:
        The index, from 0 to `len(class_names) - 1`.

    Raises:
        TargetError: no class has this name or index, or several have this name.
    """
    if not isinstance(name_or_index, str):
        return _checked(_integer(name_or_index), class_names)
    if re.fullmatch(r"\s*-?[0-9]{1,9}\s*", name_or_index):
        return _checked(int(name_or_index), class_names)
    key = _folded(name_or_index)
    folded = [_folded(name) for name in class_names]
    wanted = {key, _HOMONYMS.get(key, key)}
    found = [index for index, name in enumerate(folded) if name in wanted]
    if len(found) == 1:
        return found[0]
    if found:
        choices = ", ".join(f"{index} ({class_names[index]})" for index in found)
        raise TargetError(f"{name_or_index!r} names several classes, {choices}: give the index")
    near = [name for name, fold in zip(class_names, folded, strict=True) if key and key in fold]
    near.sort(key=lambda name: key not in _folded(name).split())  # whole words first
    if not near:
        close = difflib.get_close_matches(key, folded, n=5)
        near = [class_names[folded.index(fold)] for fold in close]
    hint = f"did you mean {', '.join(near[:5])}?" if near else "give a class name or an index"
    raise TargetError(f"there is no class {name_or_index!r}: {hint}")


def _folded(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.casefold())).strip()


def _integer(value: SupportsIndex) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TargetError(
            f"a class is given by a name or an integer, not by {value!r} of type "
            f"{type(value).__name__}"
        ) from None


def _checked(index: int, class_names: Sequence[str]) -> int:
    if not 0 <= index < len(class_names):
        raise TargetError(f"class index {index} is out of range: give 0 to {len(class_names) - 1}")
    return index
