"""Checks of chapter 5."""

import torch
from torch import nn

from ..check import Mistake, compare


def check_new_value_head(new_value_head):
    head = new_value_head(6)
    if head is None:
        raise Mistake("the head is None: is the return statement missing?")
    if not isinstance(head, nn.Linear):
        raise Mistake(f"expected an nn.Linear, got {type(head).__name__}")
    if head.weight.dtype != torch.float32:
        raise Mistake(f"the head is {head.weight.dtype}, the model float32: v_head(hidden) would be an error; leave dtype out")
    if tuple(head.weight.shape) != (1, 6):
        raise Mistake(f"the weight has shape {tuple(head.weight.shape)}, expected (1, 6): from C numbers to one")
    if head.bias is None:
        raise Mistake("the head has no bias: the mean score is what it learns first, and a bias learns it at once")
    if head.weight.detach().abs().sum() > 0:
        raise Mistake("the weight is not 0: set it with nn.init.zeros_, else the first values are noise")
    if head.bias.detach().abs().sum() > 0:
        raise Mistake("the bias is not 0: nn.Linear draws it, too; set it with nn.init.zeros_")
    if not (head.weight.requires_grad and head.bias.requires_grad):
        raise Mistake("the head cannot learn: its parameters need gradients; only the twin is frozen")


def check_response_values(response_values):
    # C = 2, weight (1, -2), bias 1/2: value = h0 - 2 h1 + 1/2 of each position
    head = nn.Linear(2, 1)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, -2.0]]))
        head.bias.fill_(0.5)
    hidden = torch.tensor([[[1.0, 0.0], [2.0, 0.5], [0.0, 1.0], [4.0, 1.0], [8.0, 0.0], [1.0, 3.0]],
                           [[0.0, 2.0], [1.0, 1.0], [3.0, 0.0], [0.0, 0.0], [2.0, 2.0], [6.0, 1.0]]])
    # the values of all positions: 1.5, 1.5, -1.5, 2.5, 8.5, -4.5 and -3.5, -.5, 3.5, .5, -1.5, 4.5; with Q = 3, R = 2: 2 and 3
    got = response_values(hidden, head, 3, 2)
    if isinstance(got, torch.Tensor) and got.shape == (2, 2, 1):
        raise Mistake("one number a token, in shape (B, R): the head gives (B, R, 1), squeeze the last dimension")
    wanted = torch.tensor([[-1.5, 2.5], [3.5, 0.5]])
    compare(got, wanted, {
        "these are the values after each token: column t is read at position query_length - 1 + t, before the token is known":
            [[2.5, 8.5], [0.5, -1.5]],
        "these are the last positions: T may be larger than Q + R, so count from the query's end": [[8.5, -4.5], [-1.5, 4.5]],
        "these are the first positions, in the query: the response's first token is predicted at query_length - 1":
            [[1.5, 1.5], [-3.5, -0.5]],
        "this is every position: cut out the R that predict the response's tokens":
            [[1.5, 1.5, -1.5, 2.5, 8.5, -4.5], [-3.5, -0.5, 3.5, 0.5, -1.5, 4.5]],
        "the bias is missing: call the head, v_head(hidden)": wanted - 0.5,
        "you went on to the end: T may be larger than Q + R, so end at query_length - 1 + R": [[-1.5, 2.5, 8.5], [3.5, 0.5, -1.5]],
        "nothing is left: a slice [query_length - 1:R] ends at position R; it must end R positions after its start, at "
        "query_length - 1 + R": torch.zeros(2, 0),
        "one position too early: the response's first token is predicted at query_length - 1": [[1.5, -1.5], [-0.5, 3.5]],
        "one value stands in every column: each token has the value of its own position, query_length - 1 + t":
            [[-1.5, -1.5], [3.5, 3.5]],
    }, "the values", formula=lambda i, t: "{:g} - 2 * {:g} + 0.5".format(*hidden[i, 2 + t]) + f", v_head of position 3 - 1 + {t}")
    one = response_values(hidden[:1], head, 3, 1)
    if tuple(torch.as_tensor(one).shape) != (1, 1):
        raise Mistake(f"a batch of one response of one token gave shape {tuple(one.shape)}, expected (1, 1): squeeze(-1), not squeeze()")
    if not got.requires_grad:
        raise Mistake("no gradient flows to the head: the values are trained, so no detach and no torch.no_grad here")
    trunk = hidden.clone().requires_grad_()
    response_values(trunk, head, 3, 2).sum().backward()
    if trunk.grad is None:
        raise Mistake("no gradient flows into the hidden states: the trunk learns from the values, too, so no detach here")


def check_create_reference_model(create_reference_model):
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.Linear(3, 1)).train()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    twin = create_reference_model(model)
    if twin is None:
        raise Mistake("the copy is None: is the return statement missing?")
    if not isinstance(twin, nn.Module):
        raise Mistake(f"expected a module, got {type(twin).__name__}")
    if twin is model:
        raise Mistake("this is the model itself: whatever is trained, both would move, and the KL stay 0")
    theirs, own = list(twin.parameters()), list(model.parameters())
    if any(a.data_ptr() == b.data_ptr() for a in theirs for b in own):
        raise Mistake("the copy shares the model's memory (copy.copy is shallow): use copy.deepcopy")
    if len(theirs) != len(own) or any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(theirs, before)):
        raise Mistake("the numbers differ from the model's: copy them, a fresh model has other ones")
    if not all(parameter.requires_grad for parameter in own):
        raise Mistake("you froze the model, too: it could not be trained any more; copy first, then freeze the copy")
    if any(parameter.requires_grad for parameter in theirs):
        raise Mistake("the copy still asks for gradients: requires_grad_(False)")
    if not model.training:
        raise Mistake("you changed the model's mode: copy first, then call eval() on the copy")
    if twin.training:
        raise Mistake("the copy is in training mode: with dropout it would give other numbers each time; call eval()")
    model.eval()
    own[0].requires_grad_(False)
    create_reference_model(model)
    if model.training or own[0].requires_grad or not own[1].requires_grad:
        raise Mistake("a model in eval mode, with its first parameter frozen, came back changed: work on the copy alone")
