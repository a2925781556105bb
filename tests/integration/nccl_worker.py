"""One of the processes of test_gpu.py; not a test itself."""
import sys

import torch
import torch.distributed as dist
from test_gpu import QUANTIZATION, make_model, train
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gdrq_mm import quantize_


def main(rank, folder):
    rank = int(rank)
    torch.cuda.set_device(rank)
    dist.init_process_group('nccl', init_method=f'file://{folder}/rendezvous',
                            rank=rank, world_size=2)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(make_model())
    quantize_(model.cuda(), QUANTIZATION)
    train(DistributedDataParallel(model, device_ids=[rank]))
    torch.save({key: value.cpu() for key, value in
                model.state_dict().items()}, f'{folder}/{rank}.pth')
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
