"""What puts the operands of products of activations on their grids."""
from typing import Any, Dict, Iterator, List, Set

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .output import quantize_activation
from .read import is_read_weight

# The child of a module with such products.
PRODUCT_QUANTIZERS = 'product_quantizers'


class Sites(Dict[int, tuple]):
    """Where the code of a module multiplies, by product.

    A copy goes on with them; a pickle may be read where the code is another,
    so that it begins anew.
    """

    def __deepcopy__(self, memo: dict) -> 'Sites':
        return Sites(self)

    def __reduce__(self) -> tuple:
        return Sites, ()


class ProductOperands(nn.Module):
    """What puts the operands of a module's products on their grids.

    Products are told apart by their order in one forward; those in a loop
    begin again with the first.

    Attributes:
        name (str): The module, '' for the model.
        sites (Sites): Where each product was seen first.
    """
    name: str
    sites: Sites

    @property
    def number(self) -> int:
        """Products that have grids of their own."""
        raise NotImplementedError

    def product_at(self, count: int, site: tuple) -> int:
        """Which of those with grids of their own a product is.

        Args:
            count (int): Which of the forward it is, from 0 on.
            site (tuple): Where the code multiplies.

        Raises:
            RuntimeError: At another place than before: what the order of a
                forward says of a product does not hold.
        """
        product = count % self.number
        if self.sites.setdefault(product, site) != site:
            raise RuntimeError(
                f'{self.name or "the model"} multiplies activations in an '
                'order that changes (its loops repeat only some of its '
                'products, or training and evaluation differ), so that '
                'different products would share thresholds: leave them float '
                f'with dict(match={self.name or "*"!r}, '
                'products=dict(bits=None)) in the rules, or say with '
                'gdrq_mm.layers.register_products(CLASS, number) how many '
                'every forward has, before the model is converted')
        return product

    def leaves(self, product: int, *operands: Tensor) -> bool:
        """Whether a product stays as it is: one with a weight.

        Args:
            product (int): Which of those with grids of their own it is.
            *operands (Tensor): What is multiplied.
        """
        raise NotImplementedError

    def forward(self, place: int, x: Tensor) -> Tensor:
        """An operand on its grid.

        Args:
            place (int): Among the operands: 0 and 1 are those of the first
                product.
            x (Tensor): The operand.
        """
        raise NotImplementedError

    def kept_in_graph(self, result: Any, reached: Set[int]) -> Any:
        """What a forward returns, with a gradient for all that is learned.

        Args:
            result (Any): What the module returned.
            reached (set[int]): Products that it rounded the operands of.
        """
        return result


class ProductQuantizers(ProductOperands, nn.ModuleList):
    """Activation quantizers of the products of a module.

    Args:
        state (QuantizationState): State of the model.
        quantizers (list[nn.Module]): Two a product.

    Attributes:
        called (bool): Whether a product was seen.
        most (int): How many a forward had at most.
        seen (set[int]): Those with grids of their own that were rounded.
        of_weights (set[int]): Those that were seen with a weight as an
            operand, and left to its quantizer.
    """

    def __init__(self, state: nn.Module, quantizers: List[nn.Module]) -> None:
        nn.ModuleList.__init__(self, quantizers)
        self._shared = (state, )  # in a tuple: it is no submodule
        self.called = False
        self.most = 0
        self.seen: Set[int] = set()
        self.of_weights: Set[int] = set()
        self.sites = Sites()

    @property
    def state(self) -> nn.Module:
        """The :class:`QuantizationState` of the model."""
        return self._shared[0]

    @property
    def name(self) -> str:
        """The module, '' for the model."""
        return self.state.name_of(self).rpartition('.')[0]

    @property
    def number(self) -> int:
        return len(self) // 2

    def quantizers(self) -> Iterator[tuple]:
        """All quantizers in it, by their name."""
        return self.activation_quantizers()

    def activation_quantizers(self) -> Iterator[tuple]:
        return self.named_children()

    def quantizer_state(self) -> dict:
        """State-dict entries that the float model does not have."""
        return dict(self.state_dict())

    def forget(self) -> None:
        """Buffers were written from outside: look at them again."""
        for quantizer in self:
            quantizer.forget()

    def product_at(self, count: int, site: tuple) -> int:
        self.called, self.most = True, max(self.most, count + 1)
        return super().product_at(count, site)

    def leaves(self, product: int, *operands: Tensor) -> bool:
        if self._has_weight(operands):
            self.of_weights.add(product)
            return True
        if not all(each.is_floating_point() for each in operands):
            return True
        self.seen.add(product)
        return False

    def _has_weight(self, operands: tuple) -> bool:
        """Whether one is a weight or a view of one: by storage, since
        inference mode does not know what a view is of."""
        if any(isinstance(each, nn.Parameter) or is_read_weight(each)
               for each in operands):
            return True
        storages = {_storage_of(each) for each in self.state.parameters_}
        return any(_storage_of(each) in storages for each in operands)

    def forward(self, place: int, x: Tensor) -> Tensor:
        return quantize_activation(self.state, self[place], x)

    def kept_in_graph(self, result: Any, reached: Set[int]) -> Any:
        if not (self.state.training and torch.is_grad_enabled()):
            return result
        # DistributedDataParallel waits for a gradient of every parameter,
        # also in forwards that pass by some products.
        idle = [0 * parameter.sum() for place, quantizer in enumerate(self)
                if place // 2 not in reached
                for parameter in quantizer.learned_parameters()]
        if not idle:
            return result
        return tree_map(
            lambda value: value + sum(idle) if isinstance(value, Tensor)
            and value.requires_grad else value, result)


def _storage_of(x: Tensor) -> int:
    return x.untyped_storage()._cdata
