"""How long importing gdrq_mm takes in a process that has mmengine.

Usage: python tools/benchmarks/benchmark_import.py [--rounds 11]
           [--json OUT.json]

Every round is a fresh process. It imports ``mmengine.runner``, which every
training does (and which imports torch), then gdrq_mm, and takes the time of
both. The first round, which reads the files into memory, does not count.
What is held against the goal is CPU time, which other work on the machine
hardly changes.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

GOAL = 0.3
CODE = """
import json, time
start = time.perf_counter(), time.process_time()
import mmengine.runner
middle = time.perf_counter(), time.process_time()
import gdrq_mm
end = time.perf_counter(), time.process_time()
print(json.dumps([[middle[i] - start[i], end[i] - middle[i]]
                  for i in range(2)]))
"""


def one_round() -> list:
    """Wall and CPU seconds, each of mmengine and of gdrq_mm after it."""
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', CODE],
                          check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=11)
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    one_round()
    seconds = np.array([one_round() for _ in range(args.rounds)])
    result = dict(rounds=args.rounds)
    print('| seconds (quartiles) | mmengine.runner | gdrq_mm after it |')
    print('| --- | --- | --- |')
    for clock, values in zip(('wall', 'cpu'), seconds.transpose(1, 2, 0)):
        cells = []
        for name, each in zip(('mmengine', 'gdrq_mm'), values):
            low, median, high = np.quantile(each, (.25, .5, .75))
            result[f'{clock}_{name}'] = dict(
                median=median, quartiles=(low, high))
            cells.append(f'{median:.2f} ({low:.2f} to {high:.2f})')
        print(f'| {clock} | {" | ".join(cells)} |')
    added = result['cpu_gdrq_mm']['median']
    print(f'gdrq_mm adds {added:.2f} s of CPU time; the goal is {GOAL} s')
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
