"""What only a GPU can show; left out, with that reason, where there is none.

``make gpu`` runs what is marked ``gpu``.
"""
from pathlib import Path

import pytest
import torch
from torch import nn

from gdrq_mm import quantize_
from gdrq_mm.training import get_state

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')]
WORKER = Path(__file__).with_name('nccl_worker.py')
QUANTIZATION = dict(weight=dict(bits=4, group_size=2),
                    activation=dict(bits=4))


def make_model(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3), norm(8),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def train(model, steps=12, dtype=None, device='cuda'):
    """Losses of some steps; the model stays where it is."""
    optimizer = torch.optim.SGD(model.parameters(), .1, momentum=.9)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        x = torch.randn(8, 3, 16, 16, generator=generator).to(device)
        with torch.autocast(device, dtype, enabled=dtype is not None):
            loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize('site', ['input', 'relu'])
def test_a_model_trains_on_the_gpu_as_on_the_cpu(site, monkeypatch):
    # In TF32 so many codes are others that the losses go apart.
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    config = dict(weight=dict(bits=4), activation=dict(bits=4, site=site))
    ours, plain = make_model(), make_model()
    for model in (ours, plain):
        quantize_(model, config)
    ours.cuda()
    torch.testing.assert_close(torch.tensor(train(ours)),
                               torch.tensor(train(plain, device='cpu')),
                               rtol=5e-2, atol=1e-3)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_trains_and_keeps_float32_thresholds(dtype):
    model = make_model().cuda()
    quantize_(model, QUANTIZATION)
    losses = train(model, dtype=dtype)
    assert all(map(torch.isfinite, torch.tensor(losses)))
    thresholds = [quantizer.clip for quantizer in
                  get_state(model).activation_quantizers.values()]
    assert thresholds and all(
        clip.dtype == torch.float32 and clip > 0 for clip in thresholds)


def test_sync_bn_of_one_process_is_batch_norm():
    ours, plain = make_model(), make_model()
    ours = nn.SyncBatchNorm.convert_sync_batchnorm(ours)
    for model in (ours, plain):
        quantize_(model.cuda(), QUANTIZATION)
    assert torch.equal(torch.tensor(train(ours)), torch.tensor(train(plain)))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_two_processes_with_nccl_and_sync_bn_agree(run_processes, tmp_path):
    run_processes(*([WORKER, rank, tmp_path] for rank in range(2)))
    first, second = (torch.load(tmp_path / f'{rank}.pth', weights_only=True)
                     for rank in range(2))
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key
