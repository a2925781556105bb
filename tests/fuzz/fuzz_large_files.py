"""The same with files of 34 MB: the memory of a damaged one is twice that of
an honest one at most, not what its pickle claims or what each check copies.

Usage: python tests/fuzz/fuzz_large_files.py [--cases 300] [--seed 0]
           [--json FILE]
"""
import fuzz_files
import slices

OUTPUTS = 40_000  # of 216 weights


def run(numbers: range, seed: int) -> dict:
    return fuzz_files.run(numbers, seed, OUTPUTS)


if __name__ == '__main__':
    slices.main(run, 'Mutated checkpoint files of 34 MB.', cases=300, size=20)
