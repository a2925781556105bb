"""Run the test tool of the package that a config belongs to.

Usage: python tools/test.py CONFIG [arguments of that package's test.py]
"""
from run_package_tool import run_package_tool

if __name__ == '__main__':
    run_package_tool('test.py')
