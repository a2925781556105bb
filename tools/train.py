"""Run the train tool of the package that a config belongs to.

Usage: python tools/train.py CONFIG [arguments of that package's train.py]
"""
from run_package_tool import run_package_tool

if __name__ == '__main__':
    run_package_tool('train.py')
