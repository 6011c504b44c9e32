"""tinyllama's conformance kit: proves that a backend computes what the ops mean.

pytest --pyargs backends.conformance --backend numpy
tinyllama conformance numpy
"""
