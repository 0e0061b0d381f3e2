"""Cheap strategies that should fail; to add one, write a class with `fit` and `predict` and list it here."""

from iclm.data.audit.strategies.base import Prediction, Strategy
from iclm.data.audit.strategies.choices import ChoicesAlike, ChoicesLearned, ChoicesShortest
from iclm.data.audit.strategies.constant import Majority, Position
from iclm.data.audit.strategies.items import FirstItem, LastItem, LastToken, OneItem
from iclm.data.audit.strategies.ngrams import PromptNgrams, QueryOnly
from iclm.data.audit.strategies.shallow import ContainmentRule, CountingRule, ShallowRule, needs_exclusion

STRATEGIES: tuple[type[Strategy], ...] = (
    Majority,
    Position,
    ChoicesAlike,
    ChoicesLearned,
    QueryOnly,
    LastToken,
    OneItem,
    FirstItem,
    LastItem,
    PromptNgrams,
)
"""All strategies, in the order that they are reported in; a control stands before what it controls."""

_BESIDE: tuple[type[Strategy], ...] = (*STRATEGIES, ShallowRule, ContainmentRule, CountingRule, ChoicesShortest)
BY_NAME: dict[str, type[Strategy]] = {strategy.name: strategy for strategy in _BESIDE}
"""What a study can set beside its methods: those of the audit, and rules that show what a data set asks for."""

__all__ = [
    "BY_NAME",
    "STRATEGIES",
    "ChoicesAlike",
    "ChoicesLearned",
    "ChoicesShortest",
    "ContainmentRule",
    "CountingRule",
    "FirstItem",
    "LastItem",
    "LastToken",
    "Majority",
    "OneItem",
    "Position",
    "Prediction",
    "PromptNgrams",
    "QueryOnly",
    "ShallowRule",
    "Strategy",
    "needs_exclusion",
]
