"""Runs the course from this folder: python -m course --help"""

import os
import runpy
import sys

PROJECT = os.environ.get("NANOQWENLONG", "where the project is")

sys.path.insert(0, PROJECT)
runpy.run_module("course", run_name="__main__", alter_sys=True)
