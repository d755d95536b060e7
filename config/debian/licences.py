"""Paragraphs for debian/copyright, one for each Python package in a directory, as its own metadata tell.

python3 licences.py DIRECTORY     appends to standard output; fails if a package does not say its licence
"""

import sys
from importlib.metadata import Distribution, distributions


def licence(package: Distribution) -> str:
    """Its licence in a few words."""
    metadata = package.metadata
    classified = [
        row.rpartition(" :: ")[2] for row in metadata.get_all("Classifier", []) if row.startswith("License ::")
    ]
    said = metadata["License-Expression"] or (metadata["License"] or "").splitlines()[:1] or classified
    if not said:
        sys.exit(f"{metadata['Name']} does not say its licence")
    return said if isinstance(said, str) else said[0]


def paragraph(package: Distribution) -> str:
    metadata = package.metadata
    author = (
        metadata["Author"] or metadata["Author-email"] or metadata["Maintainer"] or f"the {metadata['Name']} authors"
    )
    where = (
        f"/usr/lib/dataplane/{metadata['Name'].lower().replace('-', '_').replace('.', '_')}-{package.version}.dist-info"
    )
    return f"""
Files: {metadata["Name"]}
Copyright: {" ".join(author.split())}
License: {licence(package).replace(" ", "-")}
 Version {package.version} of {metadata["Name"]}, brought along in /usr/lib/dataplane.
 What its authors say about the licence stands in
 {where}."""


packages = sorted(distributions(path=sys.argv[1:]), key=lambda package: package.metadata["Name"].lower())
print(*(paragraph(package) for package in packages if package.metadata["Name"] != "dataplane"), sep="\n")
