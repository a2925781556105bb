"""One of the processes of test_quantizer_matrix.py; not a test itself."""
import sys

import torch
import torch.distributed as dist
from test_quantizer_matrix import CASES, NAMES, batch, make
from torch.nn.parallel import DistributedDataParallel

from gdrq_mm.training import get_state

torch.set_num_threads(1)


def main(rank, folder):
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous',
                            rank=rank, world_size=2)
    results = {}
    for name in NAMES:
        model, report = make(name, **CASES[0])
        # Batch statistics differ by rank.
        wrapped = DistributedDataParallel(model, broadcast_buffers=False)
        optimizer = torch.optim.SGD(model.parameters(), .05)
        for step in range(4):
            get_state(model).set_phase('quantize' if step else 'reshape')
            optimizer.zero_grad()
            wrapped(batch(2 * step + rank)).square().mean().backward()
            optimizer.step()
        results[name] = {
            key: value for key, value in model.state_dict().items()
            if 'running_' not in key}
    torch.save(results, f'{folder}/{rank}.pth')
    dist.destroy_process_group()


if __name__ == '__main__':
    main(int(sys.argv[1]), sys.argv[2])
