"""A config's model, data and evaluator, to measure models with."""
import copy
import hashlib
import itertools
import json
import pickle
from typing import Any, Callable, Dict, List, Optional

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed
from torch import nn
from torch.utils._pytree import tree_leaves

from ..analysis.rules import rules_of_layers
from ..checkpoint import NAME
from ..checkpoint.keys import PACKED
from ..config import QuantConfig
from ..convert import quantize_
from ..training import calibrate, update_bn_stats
from ..version import __version__
from .calibrate import training_forwards
from .evaluating import in_this_process, one_process, quiet, scalars
from .metrics import has_evaluator, metric_name
from .publish import inference_config, quantization_of
from .quantized_model import float_model_config
from .reading import path_of, read_checkpoint, weights_of
from .scopes import build_model, read_config, scope_of
from .trust import sha256_of

# Goes up where the same inputs give other figures.
MEASURED = 3


class Bench:
    """Build models of a config and a checkpoint, and evaluate them.

    The data are those of ``val_dataloader`` and ``val_evaluator``, or of the
    test where a config has none. They are kept in memory.

    Args:
        config (str): Config of the float or the quantized model.
        checkpoint (str): A float one, or one trained with this config.
        batches (int): At most this many.
        calibration (int): Batches of the training set that set thresholds.
            Defaults to 8.
        cfg_options (dict, optional): Changes of the config.

    Raises:
        ValueError: A number is no positive one, the config has no data or no
            evaluator, or the checkpoint is not of this config.
        OSError, RuntimeError: The checkpoint cannot be read.
    """

    def __init__(self, config: str, checkpoint: str, batches: int,
                 calibration: int = 8,
                 cfg_options: Optional[dict] = None) -> None:
        for name, value in (('batches', batches),
                            ('calibration', calibration)):
            if value < 1:
                raise ValueError(f'{name} is {value}, allowed: 1 or more')
        self.config, self.checkpoint = config, checkpoint
        self.cfg = read_config(config, cfg_options)
        self.scope = scope_of(self.cfg)
        self.split = self._split()
        self._weights = weights_of(read_checkpoint(checkpoint))
        self.is_trained = f'{NAME}.schemes' in self._weights
        self.number, self.calibration = batches, calibration
        self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
        self._model = build_loaded(
            self.cfg, config, checkpoint, self._weights,
            self.is_trained).to(self.device)
        init_default_scope(self.scope)
        loader = self._loader(self.split)
        self.meta = getattr(loader.dataset, 'metainfo', None)
        self.batches = list(itertools.islice(loader, batches))
        self._pickled = [pickle.dumps(batch) for batch in self.batches]
        self._training_batches: List[Any] = []

    def _split(self) -> str:
        for split in ('val', 'test'):
            if has_evaluator(self.cfg, split):
                return split
        raise ValueError(
            f'{self.config} has no evaluator with its data: give it a '
            'val_dataloader and a val_evaluator (or those of the test), as '
            'the package\'s test tool needs them')

    def _loader(self, split: str):
        return Runner.build_dataloader(
            in_this_process(self.cfg[f'{split}_dataloader']), seed=0)

    def inputs(self) -> dict:
        """What measured figures depend on."""
        # Not of schedules, work dirs and the like.
        parts = {key: value for key, value in self.cfg.to_dict().items()
                 if key in ('model', 'data_preprocessor', 'custom_hooks')
                 or key.endswith(('_dataloader', '_evaluator'))}
        text = json.dumps(parts, sort_keys=True, default=str)
        return dict(
            config=hashlib.sha256(text.encode()).hexdigest()[:16],
            checkpoint=sha256_of(
                path_of(self.checkpoint) or self.checkpoint)[:16],
            batches=len(self.batches), images=self._digest(),
            calibration=self.calibration, gdrq_mm=__version__,
            measured=MEASURED)

    def _digest(self) -> str:
        """SHA-256 of the images that figures are measured with."""
        total = hashlib.sha256()
        for each in tree_leaves(self.batches):
            if isinstance(each, torch.Tensor):
                total.update(f'{each.dtype} {tuple(each.shape)}'.encode())
                total.update(each.contiguous().numpy().tobytes())
        return total.hexdigest()[:16]

    # -- models --------------------------------------------------------------

    def need_latent_weights(self) -> None:
        """Raises:
            ValueError: The checkpoint is packed, so that weights in float are
                those that were rounded.
        """
        if any(key.endswith(PACKED) for key in self._weights):
            raise ValueError(
                f'{self.checkpoint} is packed, and has no float weights to '
                'compare with; give the checkpoint of the training, or what '
                '"gdrq publish --latent" wrote')

    @property
    def model(self) -> nn.Module:
        """The checkpoint's model, float or as it was trained; a copy."""
        return copy.deepcopy(self._model)

    def quantized(self, quantization: dict, recalibrate: bool = False
                  ) -> nn.Module:
        """The float model, quantized, with thresholds set from data.

        Weights are quantized as no training has adapted them, see
        :meth:`gdrq_mm.config.QuantConfig.for_float_weights`.

        Args:
            quantization (dict): See :class:`gdrq_mm.QuantConfig`.
            recalibrate (bool): Recalibrate batch normalization as well, as
                ``gdrq calibrate`` does. Defaults to False.

        Raises:
            ValueError: The checkpoint is quantized, or the config has no
                training data.
        """
        if self.is_trained:
            raise ValueError(
                f'{self.checkpoint} is quantized already: other bits are '
                'measured from the checkpoint of a float model')
        model, config = self.model, QuantConfig.from_dict(quantization)
        quantize_(model, config.for_float_weights())
        with torch.no_grad():
            if recalibrate:
                update_bn_stats(model, self._forwards(model))
            calibrate(model, self._forwards(model))
            if recalibrate:
                update_bn_stats(model, self._forwards(model))
        model.eval()  # returns nothing in some models
        return model

    def _forwards(self, model: nn.Module):
        if not self._training_batches:
            if not self.cfg.get('train_dataloader'):
                raise ValueError(
                    f'{self.config} has no train_dataloader, whose batches '
                    'set the thresholds of activations')
            set_random_seed(0)  # of augmentation
            self._training_batches = list(itertools.islice(
                self._loader('train'), self.calibration))
        set_random_seed(0)  # detectors sample proposals
        return training_forwards(
            model, copy.deepcopy(self._training_batches), self.calibration)

    # -- measuring -----------------------------------------------------------

    def forwards(self, model: nn.Module) -> List[Callable]:
        """Each predicts one batch."""
        # Copies, since predictions are written into data samples; to load
        # one takes a fraction of the time of copy.deepcopy.
        return [lambda batch=batch: model.test_step(pickle.loads(batch))
                for batch in self._pickled]

    @torch.no_grad()
    def evaluate(self, model: nn.Module, around: Optional[Callable] = None
                 ) -> Dict[str, float]:
        """Metrics of a model.

        Args:
            model (nn.Module): In eval mode.
            around (callable, optional): Index of a batch -> the context in
                which it is predicted.
        """
        evaluator = Evaluator(copy.deepcopy(
            self.cfg[f'{self.split}_evaluator']))
        evaluator.dataset_meta = self.meta
        seen, images = 0, []
        for index, (batch, forward) in enumerate(
                zip(self.batches, self.forwards(model))):
            if around is None:
                outputs = forward()
            else:
                with around(index):
                    outputs = forward()
            evaluator.process(data_samples=outputs, data_batch=batch)
            seen += len(outputs)
            images += [getattr(each, 'img_id', None) for each in outputs]
        for metric in evaluator.metrics:
            if hasattr(metric, 'img_ids'):  # COCO: count these images only
                metric.img_ids = images
        with quiet(), one_process():
            metrics = evaluator.evaluate(seen)
        return scalars(metrics)

    def metric_of(self, metrics: Dict[str, float]) -> str:
        """See :func:`.metrics.metric_name`."""
        return metric_name(metrics, self.cfg)


def build_loaded(cfg: Config, config: str, checkpoint: str, weights: dict,
                 trained: bool) -> nn.Module:
    """Build a model and load it whole.

    Args:
        cfg (Config): Its config.
        config (str): Name of that, for errors.
        checkpoint (str): Name of the checkpoint, for errors.
        weights (dict): The state dict in it.
        trained (bool): Whether that is of a quantized model.

    Raises:
        ValueError: They do not fit.
    """
    built = inference_config(cfg) if trained else copy.deepcopy(cfg)
    if not trained:
        built.model = float_model_config(built.model)
    model = build_model(built)
    try:
        found = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ValueError(
            f'{checkpoint} is not of {config}: '
            f'{lines[min(1, len(lines) - 1)]} Give the config that it was '
            'trained with.') from None
    missing = [key for key in found.missing_keys
               if not key.endswith('num_batches_tracked')]
    if missing or found.unexpected_keys:
        raise ValueError(
            f'{checkpoint} is not of {config}: it lacks {len(missing)} '
            f'weights of the model{_such_as(missing)} and has '
            f'{len(found.unexpected_keys)} that the model does not have'
            f'{_such_as(found.unexpected_keys)}; give the config that it '
            'was trained with')
    model.eval()  # returns nothing in some models
    return model


def base_quantization(cfg: Config, bits: int,
                      model: Optional[nn.Module] = None) -> dict:
    """The quantization of a config with all layers at some bits.

    Layers that a rule leaves float stay so; all read their own thresholds
    (``site='input'``), so that each can be switched on its own.

    Args:
        cfg (Config): That of a float or a quantized model.
        bits (int): Bits of weights and inputs.
        model (nn.Module, optional): The float model, to leave out what rules
            say of its ReLUs alone, which no layer is. Defaults to None: no
            rule does.
    """
    try:
        given = quantization_of(cfg)
    except ValueError:  # a float config
        given = {}
    fields = dict(weight=dict(bits=bits),
                  activation=dict(bits=max(bits, 2), site='input'))
    rules = [{key: dict(part, **fields[key])
              if key in fields and part and part.get('bits', 0) is not None
              else part for key, part in rule.items()}
             for rule in (given.get('rules') or () if model is None
                          else rules_of_layers(given, model))]
    return dict({side: dict(given.get(side) or {}, **fields[side])
                 for side in fields}, rules=rules)


def _such_as(names: List[str]) -> str:
    return f' ({names[0]})' if names else ''
