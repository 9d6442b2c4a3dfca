"""Another solution: with names for the steps."""

import os


def _seal(partial, final, files):
    manifest = partial.joinpath("manifest.json")
    manifest.write_text(manifest_text(files), encoding="utf-8")
    for written in (manifest, partial):
        sync(written)
    _remove(final)
    partial.rename(final)
    checkpoints = final.parent
    for names in (checkpoints, checkpoints.parent):
        sync(names)


def _remove(directory):
    if not os.path.lexists(directory):
        return
    grave = directory.parent / (".removed-" + directory.name)
    _delete(grave)
    directory.rename(grave)
    _delete(grave)
