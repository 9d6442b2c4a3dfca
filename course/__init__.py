"""The course: write the core of nanoqwenlong yourself, with checks that explain. See docs/course.md.

`python -m course --help` lists the commands. micro_grpo.py is the whole method in one file.
"""
