"""Ansible's linear strategy, by way of Mitogen where the controller has it.

Mitogen keeps one Python on each host for a whole run, where Ansible starts one for every
task. Without Mitogen this is `linear` itself.
"""

from __future__ import annotations

from ansible.plugins.strategy.linear import StrategyModule as Linear

bases: tuple[type, ...] = (Linear,)
try:
    from ansible_mitogen.strategy import StrategyMixin
except ImportError:
    pass
else:
    bases = (StrategyMixin, Linear)

StrategyModule = type("StrategyModule", bases, {})
