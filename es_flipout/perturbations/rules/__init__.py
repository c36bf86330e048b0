"""Rules: how torch operations run when their parameters differ between rows.

Importing this package registers them. To support another operation, register a rule:

    @rule(torch.nn.functional.linear)
    def linear(input, weight, bias=None): ...
"""

from es_flipout.perturbations.rules import attention, convolution, elementwise, linear, recurrent

__all__ = ["attention", "convolution", "elementwise", "linear", "recurrent"]
