"""`fxhlo::` ops: one rule per kernel in the catalog."""

from ..emit.composite import composite_rules
from ..registry import rule

for _overload, _rule in composite_rules().items():
    rule(_overload)(_rule)
