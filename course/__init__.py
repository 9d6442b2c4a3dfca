"""The course: write the core of nanoqwenlong yourself, with checks that explain. See docs/course.md.

    python -m course start DIR      a folder with one file per exercise
    python -m course --help         all commands
"""
