"""Products, norms and caches in fewer steps. A device loses time between two launches, and one token's row is too little work
to make up for it; a value that is made and read inside of one kernel need not go to memory and come back."""

from .activation import swiglu
from .elementwise import add
from .kv_cache import kv_write
from .matmul import matmul
from .norm import rmsnorm
from .op import Array, op
from .rope import rope


@op(
    "x[T, n], q_weight:weight[a, n], k_weight:weight[b, n], v_weight:weight[c, n] -> q[T, a], k[T, b], v[T, c]",
    flops="2*T*n*(a+b+c)",
    fused=True,
)
def qkv(x: Array, q_weight: Array, k_weight: Array, v_weight: Array) -> tuple[Array, Array, Array]:
    """Three products of the same x: two launches are saved, and x is read once."""
    return matmul(x, q_weight), matmul(x, k_weight), matmul(x, v_weight)


@op(
    "x[T, n], norm[n], q_weight:weight[a, n], k_weight:weight[b, n], v_weight:weight[c, n] -> q[T, a], k[T, b], v[T, c]",
    flops="4*T*n + 2*T*n*(a+b+c)",
    fused=True,
)
def norm_qkv(
    x: Array, norm: Array, q_weight: Array, k_weight: Array, v_weight: Array, *, eps: float
) -> tuple[Array, Array, Array]:
    """qkv of rmsnorm(x, norm): three launches are saved, and the normed x stays out of memory."""
    q, k, v = qkv(rmsnorm(x, norm, eps=eps), q_weight, k_weight, v_weight)
    return q, k, v


@op(
    "q[T, h, d], key[T, k, d], value[T, k, e], positions:int[T], freqs[r], k_cache![C, k, d], v_cache![C, k, e] "
    "-> turned[T, h, d], keys[S, k, d], values[S, k, e]",
    flops="6*T*(h+k)*r",
    where="2 * r <= d",
    touches={"k_cache": "T/C", "v_cache": "T/C", "keys": "0", "values": "0"},
    view_of={"keys": "k_cache", "values": "v_cache"},
    fused=True,
)
def rope_kv_write(
    q: Array, key: Array, value: Array, positions: Array, freqs: Array, k_cache: Array, v_cache: Array, *, neox: bool = False
) -> tuple[Array, Array, Array]:
    """rope of q and key, kv_write of key and value: three launches are saved, and the turned key goes straight to its cache."""
    turned, key = rope(q, positions, freqs, neox=neox), rope(key, positions, freqs, neox=neox)
    return turned, kv_write(k_cache, key, positions), kv_write(v_cache, value, positions)


@op("x[T, n], weight:weight[m, n], residual[T, m] -> y[T, m]", flops="2*T*m*n + T*m", fused=True)
def matmul_add(x: Array, weight: Array, residual: Array) -> Array:
    """y = residual + x @ weight.T: a launch is saved, and the product stays out of memory."""
    return add(residual, matmul(x, weight))


@op("x[T, n], norm[n], weight:weight[m, n] -> y[T, m]", flops="4*T*n + 2*T*m*n", fused=True)
def norm_matmul(x: Array, norm: Array, weight: Array, *, eps: float) -> Array:
    """y = rmsnorm(x, norm) @ weight.T: a launch is saved, and the normed x stays out of memory."""
    return matmul(rmsnorm(x, norm, eps=eps), weight)


@op("x[T, n], norm[n], gate:weight[m, n], up:weight[m, n] -> y[T, m]", flops="4*T*n + 4*T*m*n + 5*T*m", fused=True)
def norm_swiglu(x: Array, norm: Array, gate: Array, up: Array, *, eps: float) -> Array:
    """y = swiglu(h @ gate.T, h @ up.T), h = rmsnorm(x, norm): launches are saved; no h, no product goes to memory."""
    h = rmsnorm(x, norm, eps=eps)
    return swiglu(matmul(h, gate), matmul(h, up))
