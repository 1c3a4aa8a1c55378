"""Wrong answers to chapter 5; each docstring is in the message that the check must give."""

import copy

import torch
from torch import nn

from tutorial.solutions import ex05


def zeros(head):
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def new_value_head__default_weights(n_embd):
    """the weight is not 0"""
    return nn.Linear(n_embd, 1)


def new_value_head__default_bias(n_embd):
    """the bias is not 0"""
    head = nn.Linear(n_embd, 1)
    nn.init.zeros_(head.weight)
    return head


def new_value_head__no_bias(n_embd):
    """the head has no bias"""
    head = nn.Linear(n_embd, 1, bias=False)
    nn.init.zeros_(head.weight)
    return head


def new_value_head__frozen(n_embd):
    """the head cannot learn"""
    return zeros(nn.Linear(n_embd, 1)).requires_grad_(False)


def new_value_head__too_wide(n_embd):
    """from C numbers to one"""
    return zeros(nn.Linear(n_embd, n_embd))


def new_value_head__a_tensor(n_embd):
    """expected an nn.Linear"""
    return torch.zeros(1, n_embd)


def new_value_head__no_return(n_embd):
    """is the return statement missing?"""
    zeros(nn.Linear(n_embd, 1))


def response_values__after_the_token(hidden, v_head, query_length, response_length):
    """these are the values after each token"""
    return v_head(hidden[:, query_length:query_length + response_length]).squeeze(-1)


def response_values__not_squeezed(hidden, v_head, query_length, response_length):
    """squeeze the last dimension"""
    return v_head(hidden[:, query_length - 1:query_length - 1 + response_length])


def response_values__from_the_end(hidden, v_head, query_length, response_length):
    """these are the last positions"""
    return v_head(hidden[:, -response_length:]).squeeze(-1)


def response_values__from_the_start(hidden, v_head, query_length, response_length):
    """these are the first positions"""
    return v_head(hidden[:, :response_length]).squeeze(-1)


def response_values__every_position(hidden, v_head, query_length, response_length):
    """this is every position"""
    return v_head(hidden).squeeze(-1)


def response_values__no_bias(hidden, v_head, query_length, response_length):
    """the bias is missing"""
    return hidden[:, query_length - 1:query_length - 1 + response_length] @ v_head.weight[0]


def response_values__no_gradient(hidden, v_head, query_length, response_length):
    """no gradient flows"""
    with torch.no_grad():
        return v_head(hidden[:, query_length - 1:query_length - 1 + response_length]).squeeze(-1)


def create_reference_model__itself(model):
    """this is the model itself"""
    return model


def create_reference_model__shallow(model):
    """copy.copy is shallow"""
    return copy.copy(model).eval()


def create_reference_model__not_frozen(model):
    """still asks for gradients"""
    return copy.deepcopy(model).eval()


def create_reference_model__froze_the_model(model):
    """you froze the model, too"""
    return copy.deepcopy(model.requires_grad_(False)).eval()


def create_reference_model__changed_the_mode(model):
    """you changed the model's mode"""
    return copy.deepcopy(model.eval()).requires_grad_(False)


def create_reference_model__training_mode(model):
    """in training mode"""
    return copy.deepcopy(model).requires_grad_(False)


def create_reference_model__fresh(model):
    """the numbers differ from the model's"""
    fresh = copy.deepcopy(model)
    for layer in fresh:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return fresh.eval().requires_grad_(False)


def create_reference_model__a_dictionary(model):
    """expected a module"""
    return copy.deepcopy(model.state_dict())


def response_values__detached_trunk(hidden, v_head, query_length, response_length):
    """no gradient flows into the hidden states"""
    return ex05.response_values(hidden.detach(), v_head, query_length, response_length)


def response_values__squeezed(hidden, v_head, query_length, response_length):
    """squeeze(-1), not squeeze()"""
    return ex05.response_values(hidden, v_head, query_length, response_length).squeeze()


def create_reference_model__sets_the_mode_back_to_training(model):
    """a model in eval mode"""
    twin = copy.deepcopy(model.eval()).requires_grad_(False)
    model.train()
    return twin


def new_value_head__float64(n_embd):
    """leave dtype out"""
    return zeros(nn.Linear(n_embd, 1, dtype=torch.float64))


def response_values__ends_at_the_length(hidden, v_head, query_length, response_length):
    """it must end R positions after its start"""
    return v_head(hidden[:, query_length - 1:response_length]).squeeze(-1)


def response_values__too_early(hidden, v_head, query_length, response_length):
    """one position too early"""
    return v_head(hidden[:, query_length - 2:query_length - 2 + response_length]).squeeze(-1)


def response_values__one_for_all(hidden, v_head, query_length, response_length):
    """one value stands in every column"""
    return v_head(hidden[:, query_length - 1]).expand(-1, response_length)


def response_values__in_place(hidden, v_head, query_length, response_length):
    """you changed `hidden` in place"""
    hidden[:, :query_length - 1] = 0
    return ex05.response_values(hidden, v_head, query_length, response_length)
