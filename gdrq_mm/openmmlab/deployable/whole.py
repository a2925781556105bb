"""Models whose own methods compute the network."""
import copy
import importlib
from collections import OrderedDict
from typing import List, Tuple

import torch
from torch import Tensor, nn

from ...checkpoint import NAME
from ...integer.graph import NoGraph
from ..scopes import SAMPLES
from .boxes import method_of
from .models import Deployable, Prepare

# Attention of Deformable DETR, DINO and Mask2Former.
SAMPLES_POINTS = 'MultiScaleDeformableAttention'


class DeployableWhole(Deployable):
    """Base: ``model`` is the model, which computes with the parts of this.

    Whatever takes the place of a part here, such as its merged form, takes it
    there as well.
    """

    def __init__(self, model: nn.Module) -> None:
        nn.Module.__init__(self)
        own = copy.copy(model)
        self._modules = own._modules = {
            name: part for name, part in model._modules.items()
            if name not in ('data_preprocessor', NAME)}
        self._parameters, self._buffers = own._parameters, own._buffers
        self.prepare = Prepare(model.data_preprocessor)
        own.training = False
        # Its load gate belongs to ``model``, and goes with it.
        own._load_state_dict_pre_hooks = OrderedDict()
        self.__dict__['model'] = own  # no part of itself

    def features(self, images: Tensor):
        return self.model.extract_feat(self.prepared(images))

    def prepared(self, images: Tensor) -> Tensor:
        """Images as the network reads them.

        Raises:
            NoGraph: In a capture for any batch or size, of a layer that
                has a graph of one.
        """
        if any(isinstance(length, torch.SymInt) for length in images.shape):
            for name, part in self.named_modules():
                if method_of(part, 'forward') == SAMPLES_POINTS:
                    raise NoGraph(
                        f'{name} is a {type(part).__name__}, which splits '
                        'its input by the sizes of levels, so that its graph '
                        'is of one batch and size: leave out --dynamic '
                        '(dynamic=())')
        return self.prepare(images)

    def samples(self, number: int, size: Tuple[int, int]) -> List[object]:
        """What the packages tell a model of images of a height and width."""
        scope = self.prepare.scope
        structures = importlib.import_module(f'{scope}.structures')
        told = dict(img_shape=size, ori_shape=size, scale_factor=(1., 1.),
                    **dict.fromkeys(('pad_shape', 'batch_input_shape'),
                                    self.padded_size(size)))
        samples = [getattr(structures, SAMPLES[scope])()
                   for _ in range(number)]
        for sample in samples:  # ``metainfo=`` copies, which symbols refuse
            for name, value in told.items():
                sample.set_field(value, name, field_type='metainfo')
        return samples
