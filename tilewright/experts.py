"""Experts of mixture-of-experts models: their memory, adapters, and what chooses them.

All names load when first used, so that one of them needs no other's packages.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilewright.frontend.experts.bank import ExpertBank
    from tilewright.frontend.experts.esft import expert_scores, record_choices, select_experts
    from tilewright.frontend.experts.huggingface import register_experts
    from tilewright.frontend.experts.routing import reroute
    from tilewright.runtime.expert_memory.figures import fragmentation, sparsity
    from tilewright.runtime.expert_memory.memory import ExpertMemory
    from tilewright.runtime.expert_memory.page_table import mapped_bytes
    from tilewright.runtime.experts import ExpertsForm, Gate, Product, Rerouting, experts_forward

_LAZY = {
    "ExpertBank": "tilewright.frontend.experts.bank",
    "ExpertMemory": "tilewright.runtime.expert_memory.memory",
    "ExpertsForm": "tilewright.runtime.experts",
    "Gate": "tilewright.runtime.experts",
    "Product": "tilewright.runtime.experts",
    "Rerouting": "tilewright.runtime.experts",
    "experts_forward": "tilewright.runtime.experts",
    "expert_scores": "tilewright.frontend.experts.esft",
    "fragmentation": "tilewright.runtime.expert_memory.figures",
    "mapped_bytes": "tilewright.runtime.expert_memory.page_table",
    "record_choices": "tilewright.frontend.experts.esft",
    "register_experts": "tilewright.frontend.experts.huggingface",
    "reroute": "tilewright.frontend.experts.routing",
    "select_experts": "tilewright.frontend.experts.esft",
    "sparsity": "tilewright.runtime.expert_memory.figures",
}

__all__ = [
    "ExpertBank",
    "ExpertMemory",
    "ExpertsForm",
    "Gate",
    "Product",
    "Rerouting",
    "expert_scores",
    "experts_forward",
    "fragmentation",
    "mapped_bytes",
    "record_choices",
    "register_experts",
    "reroute",
    "select_experts",
    "sparsity",
]

if not TYPE_CHECKING:  # type checkers take the imports above

    def __getattr__(name: str) -> object:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
