"""Policies of a decoder's cache: `compile_causal_lm(model, kv=infopt.kv.Quest(pages=64))`."""

from infopt.compiler.kv_policy import LayerCache as LayerCache
from infopt.compiler.kv_policy import LayerShape as LayerShape
from infopt.compiler.kv_policy import Policy as Policy
from infopt.compiler.kv_policy import Store as Store
from infopt.compiler.merge_policy import D2O as D2O
from infopt.compiler.page_policy import PagePolicy as PagePolicy
from infopt.compiler.page_policy import Quest as Quest
from infopt.compiler.slot_policy import Evict as Evict
from infopt.compiler.slot_policy import Ring as Ring
from infopt.compiler.slot_policy import RoCo as RoCo
from infopt.compiler.slot_policy import SlotPolicy as SlotPolicy
