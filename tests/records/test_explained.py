import enum
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from pydantic import Field, PlainValidator

from bench.records.explained import Explanation, Setting, explained
from bench.records.settings import Count, NotNegative, OpenShare, PartialShare, Positive, Share


class Norm(enum.Enum):
    ONE = "l1"
    TWO = "l2"


@dataclass(frozen=True)
class Explained:
    """Do something.

    A paragraph of no setting.

    * `steps`, `lr` (peak): how many, and
      how fast. `warmup`: how slow at first, but see `lr`: a share.
    * `norm`: of the difference; `exact` has no part in it.
    * `gone`: a setting of an earlier version.
    """

    lr: NotNegative = 1e-3
    steps: Positive = 10
    norm: Norm = Norm.ONE
    warmup: PartialShare = 0.0
    exact: bool = False


def test_settings_are_explained_by_the_docstrings_list_in_the_order_of_the_fields():
    assert explained(Explained) == (
        Explanation(
            (Setting("steps", "10", "1 or more"), Setting("lr", "0.001", "0 or more")),
            "how many, and how fast.",
        ),
        Explanation(
            (Setting("norm", "l1", "or l2"),), "of the difference; `exact` has no part in it."
        ),
        Explanation(
            (Setting("warmup", "0", "0 or more, below 1"),),
            "how slow at first, but see `lr`: a share.",
        ),
        Explanation((Setting("exact", "false", "or true"),), ""),
    )


def test_an_explanation_is_a_line():
    lines = [each.text for each in explained(Explained)]
    assert lines[0] == "`steps` = 10 (1 or more), `lr` = 0.001 (0 or more): how many, and how fast."
    assert lines[-1] == "`exact` = false (or true)"


@pytest.mark.parametrize(
    ("annotation", "default", "words"),
    [
        (int, 3, "3 (a whole number)"),
        (float, 3.0, "3 (a number)"),
        (str, "digits", "digits (text)"),
        (str | None, None, "none (or text)"),
        (Positive | None, None, "none (or 1 or more)"),
        (Count, 0, "0 (0 or more)"),
        (Share, 0.5, "0.5 (0 to 1)"),
        (OpenShare, 0.5, "0.5 (above 0, below 1)"),
        (Annotated[float, Field(ge=-1, le=1)], 0.9, "0.9 (-1 to 1)"),
        (Annotated[int, Field(ge=4, multiple_of=2)], 4, "4 (4 or more, a multiple of 2)"),
        (bool, True, "true (or false)"),
        (int | Literal["auto", "last"], "auto", "auto (or a whole number or last)"),
        (Literal["a", "b", "c"], "b", "b (or a or c)"),
        (Literal["only"], "only", "only"),
        (tuple[int, ...], (1, 2), "[1, 2] (a list)"),
        (Annotated[int, PlainValidator(lambda value: value)], 3, "3"),
    ],
)  # fmt: skip
def test_an_annotation_is_put_in_words(annotation, default, words):
    body = {"__annotations__": {"x": annotation}, "x": default}
    (found,) = explained(dataclass(frozen=True)(type("One", (), body)))
    assert found.text == f"`x` = {words}"


def test_a_setting_that_must_be_given_has_no_default():
    needy = dataclass(frozen=True)(type("Needy", (), {"__annotations__": {"path": str}}))
    assert [each.text for each in explained(needy)] == ["`path` (text)"]
