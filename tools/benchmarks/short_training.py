"""A short training on random images by mmengine's own runner.

Usage:
    python tools/benchmarks/short_training.py MODEL [--steps 30]
        [--device cuda] [--amp] [--json OUT]

The model of a package's own config is trained with GDRQHook, saved, and
loaded into a model that is built anew, which must give the same outputs. What
is asked is whether it runs on this machine: random images teach nothing.
"""
import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import DATASETS
from mmengine.runner import Runner, load_checkpoint
from workloads import SAMPLES, WORKLOADS, evaluation_step

from gdrq_mm import quantize_
from gdrq_mm.openmmlab.scopes import build_model, scope_of


@DATASETS.register_module()
class RandomImages(torch.utils.data.Dataset):
    """Random images with random annotations.

    Args:
        scope (str): Package whose samples they are.
        shape (tuple[int, int]): Height and width.
        length (int): Number of images.
    """
    metainfo = {}

    def __init__(self, scope: str, shape, length: int) -> None:
        self.scope, self.shape, self.length = scope, tuple(shape), length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        return dict(
            inputs=torch.randint(0, 256, (3, *self.shape),
                                 generator=generator, dtype=torch.uint8),
            data_samples=SAMPLES[self.scope](self.shape, generator))

    def full_init(self) -> None:
        pass


def make_config(name: str, args, folder: str) -> Config:
    workload = WORKLOADS[name]
    cfg = get_config(workload.config)
    cfg.merge_from_dict({'model.backbone.init_cfg': None, **workload.changes})
    scope = scope_of(cfg)
    optimizer = dict(type='SGD', lr=1e-3, momentum=.9)
    return Config(dict(
        model=cfg.model, default_scope=scope, work_dir=folder,
        data_preprocessor=cfg.get('data_preprocessor'),
        custom_hooks=[dict(type='GDRQHook', quantization=quantization())],
        train_dataloader=dict(
            batch_size=workload.batch, num_workers=0,
            collate_fn=dict(type='default_collate' if scope == 'mmpretrain'
                            else 'pseudo_collate'),
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='RandomImages', scope=scope,
                         shape=workload.shape,
                         length=workload.batch * args.steps)),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(type='AmpOptimWrapper', dtype='bfloat16',
                           optimizer=optimizer) if args.amp
        else dict(type='OptimWrapper', optimizer=optimizer),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=10)),
        randomness=dict(seed=0), log_level='WARNING'))


def quantization() -> dict:
    return dict(weight=dict(bits=4, group_size=4), activation=dict(bits=4))


def outputs_of(model, batch) -> list:
    found = []
    model.eval().register_forward_hook(
        lambda module, inputs, outputs: found.append(outputs))
    evaluation_step(model, batch)()
    return [tensor.float().cpu() for tensor in tensors_in(found)]


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)


def train(name: str, args) -> dict:
    """Raises AssertionError where the reloaded model is another one."""
    workload = WORKLOADS[name]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        cfg = make_config(name, args, folder)
        runner = Runner.from_cfg(cfg)
        device = next(runner.model.parameters()).device
        begin = time.perf_counter()
        runner.train()
        seconds = time.perf_counter() - begin
        losses = runner.message_hub.get_scalar('train/loss').data[0]
        assert all(map(torch.isfinite, torch.tensor(losses))), losses
        batch = workload.make_batch(cfg.default_scope)
        ours = outputs_of(runner.model, batch)
        model = build_model(cfg).to(device)
        quantize_(model, quantization())
        load_checkpoint(model, f'{folder}/epoch_1.pth')
        theirs = outputs_of(model, batch)
    assert ours and len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        assert torch.equal(one, other), \
            f'outputs differ by {(one - other).abs().max():.3g}'
    return dict(model=name, device=str(device), steps=len(losses),
                amp=args.amp, first_loss=float(losses[0]),
                last_loss=float(losses[-1]), seconds=round(seconds, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('model', choices=WORKLOADS)
    parser.add_argument('--steps', type=int, default=30)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cuda')
    parser.add_argument('--amp', action='store_true',
                        help='bfloat16 autocast')
    parser.add_argument('--json', type=Path, help='where the figures go')
    args = parser.parse_args()
    if args.device == 'cuda' and not torch.cuda.is_available():
        sys.exit('torch finds no GPU here (torch.cuda.is_available() is '
                 'False); --device cpu trains without one')
    found = train(args.model, args)
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
