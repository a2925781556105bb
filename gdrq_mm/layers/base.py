"""What quantized convolutions and linear layers share."""
from typing import TYPE_CHECKING, Any, Iterator, List, Optional, Set, Tuple

from torch import Tensor, nn

from . import fused
from .read import MOVED, LatentWeight
from .relu import is_on_grid

# A mixin of modules: what they have is there.
Mixin: Any = nn.Module if TYPE_CHECKING else object


class InputFirst(Mixin):
    """Mixin of layers that take the place of a float one, and whose input may
    be given by the keyword that the float one has for it.

    Hooks, and whatever else looks at calls, find it in the first place.

    Attributes:
        input_keywords (tuple[str]): Names of the input.
    """
    input_keywords: Tuple[str, ...] = ()

    def __call__(self, *args, **kwargs):
        named = [] if args else [
            name for name in self.input_keywords if name in kwargs]
        return super().__call__(*map(kwargs.pop, named), *args, **kwargs)


class QuantLayer(InputFirst):
    """Mixin of quantized layers that have a weight.

    A float layer turns into a quantized one by changing its class: Parameter
    objects, state-dict keys, hooks and every reference to the layer stay.
    ``weight`` is the Parameter, and inside a forward its quantized values,
    see :mod:`.read`.

    A copy or a pickle of one layer, or of a part of a model, takes the state
    with all layers along: it computes and trains as in the model, and whether
    it trains is what the model was told (``layer.state.train()``). What is
    small is its ``state_dict()``.

    Attributes:
        weight_name (str): Name of the Parameter that is quantized.
        input_names (tuple[str]): Names of the quantizers of its inputs.
        past_reads (set[str]): How code used the weight without the layer:
            'operation' with a quantized input, 'value' otherwise; 'dtype'
            where it asked for no more.
    """
    weight_name = 'weight'
    input_names: Tuple[str, ...] = ('input_quantizer', )
    weight: Any = LatentWeight('weight')
    in_own_forward = False  # kept where torch.compile traces it
    # What conversion sets; see :func:`.registry.added_names`.
    called: bool
    reads_grid: bool
    same_input: List[str]
    past_reads: Set[str]
    weight_quantizer: Optional[nn.Module]
    _shared: Tuple[nn.Module]

    @classmethod
    def why_not(cls, layer: nn.Module) -> str:
        """Why a float layer cannot become this one; '' where it can."""
        if layer._parameters.get(cls.weight_name) is None:
            return ('its weight is computed (weight or spectral norm), '
                    'not a Parameter')
        dtype = layer._parameters[cls.weight_name].dtype
        return '' if dtype.is_floating_point else f'its weight is {dtype}'

    def start_quantizing(self, state: nn.Module,
                         weight_quantizer: Optional[nn.Module],
                         *input_quantizers: Optional[nn.Module]) -> None:
        """Take the quantizers of a freshly converted layer."""
        self.called = False  # nothing may use it
        self.reads_grid = False  # its first input came from a QuantReLU
        self.same_input = []  # names of layers that read the same tensor
        self.past_reads = set()
        self.weight_quantizer = weight_quantizer
        for name, quantizer in zip(self.input_names, input_quantizers):
            setattr(self, name, quantizer)
        # In a tuple, so that it is no submodule: all layers share it.
        self._shared = (state, )

    @property
    def state(self) -> nn.Module:
        """The :class:`QuantizationState` of the model."""
        return self._shared[0]

    @property
    def latent_weight(self) -> nn.Parameter:
        """The Parameter that training changes, whoever asks."""
        return self._parameters[self.weight_name]

    def note_read(self, kind: str) -> None:
        """Code uses the weight without calling the layer.

        Args:
            kind (str): See ``past_reads``.
        """
        if kind == 'value':  # an operation calls the layer's quantizer
            self.called = True
        self.past_reads.add(kind)

    def quantizers(self) -> Iterator[Tuple[str, nn.Module]]:
        """All quantizers of the layer, by their name in it."""
        if self.weight_quantizer is not None:
            yield 'weight_quantizer', self.weight_quantizer
        yield from self.activation_quantizers()

    def activation_quantizers(self) -> Iterator[Tuple[str, nn.Module]]:
        for name in self.input_names:
            if getattr(self, name) is not None:
                yield name, getattr(self, name)

    def quantizer_state(self) -> dict:
        """State-dict entries that the float layer does not have."""
        return {f'{name}.{key}': value
                for name, quantizer in self.quantizers()
                for key, value in quantizer.state_dict().items()}

    def forget(self) -> None:
        """Buffers were written from outside: look at them again."""
        for _, quantizer in self.quantizers():
            quantizer.forget()

    def is_plain(self) -> bool:
        """See :attr:`QuantizationState.is_plain`."""
        return self.state.is_plain

    def run_fused(self, operation, x: Tensor) -> Tensor:
        """``operation`` on quantized operands, see :mod:`.fused`."""
        input_grid, weight, weight_grid = None, self.latent_weight, None
        if self._quantizes_input(x):
            x, input_grid = self.state.activation_and_grid(
                self.input_quantizer, x)
        if self.weight_quantizer is not None:
            weight, weight_grid = self.state.weight_and_grid(self)
        return fused.run(operation, x, weight, self.bias, input_grid,
                         weight_grid)

    def quantized_input(self, x: Tensor,
                        quantizer: Optional[nn.Module] = None) -> Tensor:
        """An input on its grid.

        Args:
            x (Tensor): The input.
            quantizer (nn.Module, optional): The one of this input. Defaults
                to None: the ``input_quantizer``.
        """
        if not self._quantizes_input(x):
            return x
        return self.state.activation(quantizer or self.input_quantizer, x)

    def _quantizes_input(self, x: Tensor) -> bool:
        if not self.called:
            self.state.first_call(self, x)
            self.reads_grid = is_on_grid(x)
        return self.input_quantizer is not None and not is_on_grid(x)

    def quantized_weight(self) -> Tensor:
        if self.weight_quantizer is None:
            return self.latent_weight
        return self.state.weight(self.weight_quantizer, self.latent_weight)

    def __setattr__(self, name, value):
        if name == self.weight_name and \
                value is not self._parameters.get(name):
            raise RuntimeError(MOVED.format(self.state.name_of(self)))
        super().__setattr__(name, value)
