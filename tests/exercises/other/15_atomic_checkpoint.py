"""Another solution: with open and functions of os."""

import os


def _seal(partial, final, files):
    with open(partial / "manifest.json", "w", encoding="utf-8") as manifest:
        manifest.write(manifest_text(files))
        manifest.flush()
        os.fsync(manifest.fileno())
    sync(partial)
    _remove(final)
    os.replace(partial, final)
    checkpoints = final.parent
    for names in (checkpoints, checkpoints.parent):
        sync(names)


def _remove(directory):
    if not os.path.lexists(directory):
        return
    grave = directory.parent / (".removed-" + directory.name)
    _delete(grave)
    os.rename(directory, grave)
    _delete(grave)
