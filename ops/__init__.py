"""tinyllama's operations: what each one means. Formulas, shapes, costs and block formats; nothing is computed fast here."""

from .activation import gelu, silu, swiglu
from .attention import attention, attention_mix, attention_scores, causal_mask
from .blocks import FORMATS, BlockFormat
from .elementwise import add, mul
from .embedding import embedding, get_rows
from .fused import matmul_add, norm_matmul, norm_qkv, norm_swiglu, qkv, rope_kv_write
from .graph import Graph, Node, Value, layer
from .heads import merge_heads, split_heads
from .kv_cache import kv_write
from .matmul import add_bias, matmul
from .norm import layernorm, rmsnorm
from .op import OPS, Cost, Op, Operand, op
from .rope import rope
from .softmax import softmax
from .tensor import Tensor, dense
from .top_k import top_k

__all__ = [
    "FORMATS",
    "OPS",
    "BlockFormat",
    "Cost",
    "Graph",
    "Node",
    "Op",
    "Operand",
    "Tensor",
    "Value",
    "add",
    "add_bias",
    "attention",
    "attention_mix",
    "attention_scores",
    "causal_mask",
    "dense",
    "embedding",
    "gelu",
    "get_rows",
    "kv_write",
    "layer",
    "layernorm",
    "matmul",
    "matmul_add",
    "merge_heads",
    "mul",
    "norm_matmul",
    "norm_qkv",
    "norm_swiglu",
    "op",
    "qkv",
    "rmsnorm",
    "rope",
    "rope_kv_write",
    "silu",
    "softmax",
    "split_heads",
    "swiglu",
    "top_k",
]
