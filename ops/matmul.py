"""The matrix product: nearly all of the arithmetic of a transformer."""
from .op import op
from .tensor import dense


@op("x[T, n], weight:weight[m, n] -> y[T, m]", flops="2*T*m*n")
def matmul(x, weight):
    """y = x @ weight.T. A row of the weight is one output; its blocks run along n."""
    return x @ dense(weight, x.dtype).T


@op("x[T, n], bias[n] -> y[T, n]", flops="T*n")
def add_bias(x, bias):
    """y[t] = x[t] + bias"""
    return x + bias
