"""Checks of chapter 3."""

import torch

from ..check import Mistake, compare


def check_gelu_tanh(gelu_tanh):
    x = torch.tensor([[-3.0, -1.0], [0.5, 2.0]])
    # x^3: -27, -1, 1/8, 8; u = 0.7978846 * (x + 0.044715 x^3); tanh(u) from a table
    compare(gelu_tanh(x), [[-0.00363739, -0.15880801], [0.34571401, 1.95459769]], {
        "this is the exact GELU, with the error function: GPT-2's has a tanh": [[-0.00404969, -0.15865525], [0.34573123, 1.95449974]],
        "this is x * sigmoid(1.702 x), a rougher GELU: GPT-2's has a tanh": [[-0.01807131, -0.15420423], [0.35038844, 1.93565862]],
        "the half in front is missing": [[-0.00727478, -0.31761602], [0.69142802, 3.90919538]],
        "the cube is missing: x + 0.044715 x**3 inside the tanh": [[-0.02479792, -0.16857377], [0.34476089, 1.92102920]],
        "sqrt(2 / pi) is missing inside the tanh": [[-0.00066467, -0.11012842], [0.36662538, 1.98224714]],
        "this is a ReLU: it is 0 below 0 and x above, GELU bends": [[0.0, 0.0], [0.5, 2.0]],
        "this is SiLU, x * sigmoid(x)": [[-0.14227762, -0.26894142], [0.31122967, 1.76159416]],
    }, "gelu", tolerance=1e-5,
        formula=lambda *at: "0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))".replace("x", f"({x[at]:g})"))


def check_split_heads(split_heads):
    # B = 1, T = 3, H = 2, D = 2, so C = 4 and 12 numbers a position: number 12 t + 4 (q, k, v) + 2 h + d
    x = torch.arange(36.0).view(1, 3, 12)
    got = split_heads(x, 2)
    if got is None:
        raise Mistake("the result is None: is the return statement missing?")
    if not isinstance(got, (tuple, list)) or len(got) != 3:
        raise Mistake("expected three results, return q, k, v" + (f"; got {len(got)}: is it chunk(3, dim=-1)?" if hasattr(got, "__len__") else ""))
    for i, (name, part) in enumerate(zip(("q", "k", "v"), got)):
        first = torch.tensor([[[[0.0, 1], [12, 13], [24, 25]], [[2, 3], [14, 15], [26, 27]]]])
        compare(part, first + 4 * i, {
            "the heads mix positions: view (B, T, H, D) first, then transpose T and H":
                torch.tensor([[[[0.0, 1], [2, 3], [12, 13]], [[14, 15], [24, 25], [26, 27]]]]) + 4 * i,
            "T and H are not swapped: transpose(1, 2) makes (B, H, T, D)": first.transpose(1, 2) + 4 * i,
            "you gave each head its own q, k, v in a row: first come the queries of all heads, then the keys, then the values":
                torch.tensor([[[[0.0, 1], [12, 13], [24, 25]], [[6, 7], [18, 19], [30, 31]]]]) + 2 * i,
            "inside a part the numbers of head 0 come first, then those of head 1: view (H, D), not (D, H)":
                torch.tensor([[[[0.0, 2], [12, 14], [24, 26]], [[1, 3], [13, 15], [25, 27]]]]) + 4 * i,
        } | {f"q, k, v are in another order, {name} holds {other}: it is query, key, value": first + 4 * j
             for j, other in enumerate("qkv") if j != i}, name, formula=lambda b, h, t, d: f"12 * {t} + 4 * {i} + 2 * {h} + {d}, x holds 0 to 35 in order: 12 numbers a position t, "
                                            "4 for each of q, k, v, 2 for each head h")


def check_causal_attention(causal_attention):
    # D = 4. keys (ln 1, 5, -5, 7), (ln 2, ...), (ln 4, ...); queries (2, 0, 0, 0), the last (4, 0, 0, 0): q.k / 2 = ln 1, 2, 4; the last ln 1, 4, 16
    keys = torch.tensor([[0.0, 5, -5, 7], [0.69314718, 1, 2, 3], [1.38629436, -4, 6, 2]])
    queries = torch.tensor([[2.0, 0, 0, 0], [2, 0, 0, 0], [4, 0, 0, 0]])
    values = torch.tensor([[[21.0, 0, 3, 1], [0, 42, 6, 5], [42, 21, 9, -7]], [[1.0, 2, 3, 4], [10, 20, 30, 40], [-5, 0, 5, 10]]])[None]
    q, k = queries.expand(1, 2, 3, 4), keys.expand(1, 2, 3, 4)

    def mix(*weights):
        rows = torch.tensor([[float(w) for w in row] for row in weights])
        return (rows / rows.sum(-1, keepdim=True)) @ values

    got = causal_attention(q, k, values)
    if isinstance(got, torch.Tensor) and got.isnan().any():
        empty = got.isnan().any(dim=-1).reshape(-1, 3).any(0).tolist()                      # which of the three positions
        if empty == [True, False, False]:
            raise Mistake("nan: position 0 has nothing left to look at. A token may look at itself: hide only later positions")
        if empty == [False, False, True]:
            raise Mistake("nan: the last position has nothing left to look at. The mask is upside down: hide later positions, not earlier")
        raise Mistake("nan: 0 * -inf is nan, and so is the softmax of -inf alone: use masked_fill, and softmax over dim=-1")
    def formula(b, h, t, d):
        weights = ([1], [1, 2], [1, 4, 16])[t]
        products = [f"{weight} * {values[0, h, s, d]:g}" for s, weight in enumerate(weights)]
        return f"({' + '.join(products)}) / {sum(weights)}, exp(q @ k / sqrt(4)) times v over positions 0 to {t}"

    late = torch.tensor([[1 / 7, 0, 0], [1 / 7, 2 / 7, 0], [1 / 21, 4 / 21, 16 / 21]])
    compare(got, mix([1, 0, 0], [1, 2, 0], [1, 4, 16]), {
        "every position sees the future: set q @ k to -inf where the key stands later than the query": mix([1, 2, 4], [1, 2, 4], [1, 4, 16]),
        "the mask is upside down: each position sees itself and what comes LATER": mix([1, 2, 4], [0, 2, 4], [0, 0, 1]),
        "the scale is missing: divide q @ k by sqrt(D)": mix([1, 0, 0], [1, 4, 0], [1, 16, 256]),
        "you divided by D: divide q @ k by sqrt(D)": mix([1, 0, 0], [1, 2**0.5, 0], [1, 2, 4]),
        "you divided by sqrt(T): it is sqrt(D), the size of a head":
            mix([1, 0, 0], [1, 2 ** (2 / 3**0.5), 0], [1, 4 ** (2 / 3**0.5), 16 ** (2 / 3**0.5)]),
        "hidden positions still count, as exp(0) = 1: fill with -inf, not 0": mix([1, 1, 1], [1, 2, 1], [1, 4, 16]),
        "the weights do not sum to 1: mask before the softmax, not after it": late @ values,
        "the softmax ran over the queries: it runs over the keys, dim=-1":
            torch.tensor([[1 / 3, 0, 0], [1 / 3, 1 / 3, 0], [1 / 3, 2 / 3, 1]]) @ values,
        "there is no softmax: the weights must be positive and sum to 1":
            torch.tensor([[0, 0, 0], [0, 0.69314718, 0], [0, 1.38629436, 2.77258872]]) @ values,
    }, "the attention", tolerance=1e-3, formula=formula)
