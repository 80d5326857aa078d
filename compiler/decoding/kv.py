"""Policies of a decoder's cache: `compile_causal_lm(model, kv=infopt.kv.Quest(pages=64))`."""

from infopt.compiler.decoding.merging import D2O as D2O
from infopt.compiler.decoding.page_summaries import PagePolicy as PagePolicy
from infopt.compiler.decoding.page_summaries import Quest as Quest
from infopt.compiler.decoding.policy import LayerCache as LayerCache
from infopt.compiler.decoding.policy import LayerShape as LayerShape
from infopt.compiler.decoding.policy import Policy as Policy
from infopt.compiler.decoding.policy import Store as Store
from infopt.compiler.decoding.slots import Evict as Evict
from infopt.compiler.decoding.slots import Ring as Ring
from infopt.compiler.decoding.slots import RoCo as RoCo
from infopt.compiler.decoding.slots import SlotPolicy as SlotPolicy
