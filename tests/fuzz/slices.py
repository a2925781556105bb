"""Long runs in slices: what is done is kept when a run is stopped."""
import argparse
import json
import sys
from pathlib import Path
from typing import Callable


def add(done: dict, more: dict) -> dict:
    """Figures of two slices of one run.

    Numbers and lists are added, of ``longest_*`` and ``greatest_*`` the
    larger counts.

    Args:
        done (dict): Of the slices so far; {} for none.
        more (dict): Of the next.
    """
    total = dict(done)
    for key, value in more.items():
        if key not in done or key == 'seed':
            total[key] = value
        elif isinstance(value, dict):
            total[key] = add(done[key], value)
        elif key.startswith(('longest', 'greatest')):
            total[key] = max(done[key], value)
        else:
            total[key] = done[key] + value
    return total


def main(run: Callable[[range, int], dict], description: str, cases: int,
         size: int) -> None:
    """Command line of a fuzzer.

    With ``--json FILE``, ``FILE.part`` has the figures after every slice; the
    same command goes on from there.

    Args:
        run (callable): Takes the numbers of cases and a seed, returns figures
            with ``cases`` and ``failures`` among them.
        description (str): For ``--help``.
        cases (int): Default of ``--cases``.
        size (int): Cases of a slice.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--cases', type=int, default=cases)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--json')
    args = parser.parse_args()
    part = Path(f'{args.json}.part') if args.json else None
    figures = {}
    if part and part.exists():
        figures = json.loads(part.read_text())
        if figures['seed'] != args.seed:
            sys.exit(f'{part} is of seed {figures["seed"]}: remove it, or '
                     f'go on with --seed {figures["seed"]}')
    begin = figures.get('cases', 0)
    for first in range(begin, args.cases, size):
        numbers = range(first, min(first + size, args.cases))
        more = run(numbers, args.seed)
        if not more['cases']:
            break  # there are no more
        figures = add(figures, more)
        if part:
            part.write_text(json.dumps(figures, indent=1) + '\n')
        print(f'{figures["cases"]} cases, {len(figures["failures"])} '
              'failures', file=sys.stderr, flush=True)
    if part and part.exists():
        part.replace(args.json)
    print(json.dumps(figures, indent=1))
    sys.exit(bool(figures['failures']))
