"""What an environment is made of: a bill of materials in CycloneDX's JSON, and the licences of everything in it.

Both come from the metadata of the installed distributions. Bills that a wheel itself brings (of compiled Rust code, for
instance) are taken in, and shared libraries that a wheel carries are named with their SHA-256. Standard library only;
the same environment gives the same text.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import re
import uuid
from pathlib import Path
from typing import Any

_LICENCE_FILE = re.compile(r"(licen[cs]e|copying|notice|authors)", re.IGNORECASE)
_SPEC = "1.6"


def _distributions(site: Path) -> list[importlib.metadata.Distribution]:
    found = importlib.metadata.distributions(path=[str(site)])
    return sorted(found, key=lambda each: _normal(each.metadata["Name"]))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _field(each: importlib.metadata.Distribution, name: str) -> str:
    """Return a field of the distribution's metadata; empty if it is absent."""
    return str((each.metadata.get_all(name) or [""])[0])


def _stated_licence(each: importlib.metadata.Distribution) -> str:
    """Return the licence as the distribution states it: an SPDX expression, or a name."""
    if expression := _field(each, "License-Expression"):
        return expression
    classified = [
        line.rpartition(" :: ")[2]
        for line in each.metadata.get_all("Classifier") or ()
        if line.startswith("License :: OSI Approved :: ")
    ]
    stated = _field(each, "License").strip().partition("\n")[0]
    return stated or " and ".join(classified) or "not stated"


def _purl(each: importlib.metadata.Distribution) -> str:
    return f"pkg:pypi/{_normal(each.metadata['Name'])}@{each.version}"


def _component(each: importlib.metadata.Distribution) -> dict[str, Any]:
    expression = _field(each, "License-Expression")
    licence = {"expression": expression} if expression else {"license": {"name": _stated_licence(each)}}
    return {
        "type": "library",
        "bom-ref": _purl(each),
        "name": each.metadata["Name"],
        "version": each.version,
        "licenses": [licence],
        "purl": _purl(each),
    }


def _own_bills(site: Path) -> list[dict[str, Any]]:
    """Return the components that wheels list in bills of their own."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(site.glob("*.dist-info/sboms/*.json")):
        document = json.loads(path.read_text())
        for each in document.get("components", ()) if document.get("bomFormat") == "CycloneDX" else ():
            kept = {key: each[key] for key in ("type", "name", "version", "purl", "licenses", "hashes") if key in each}
            if kept.get("purl"):
                found.setdefault(kept["purl"], {**kept, "bom-ref": kept["purl"]})
    return [found[key] for key in sorted(found)]


def _shared_libraries(site: Path) -> list[dict[str, Any]]:
    """Return the shared libraries of others that wheels carry beside their modules."""
    return [
        {
            "type": "library",
            "bom-ref": f"file:{path.relative_to(site)}",
            "name": path.name,
            "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}],
        }
        for path in sorted(site.glob("*.libs/*.so*"))
    ]


def cyclonedx(site: Path, name: str, version: str, epoch: int) -> str:
    """Return the bill of materials of the environment with its packages in `site`."""
    distributions = _distributions(site)
    parts = [*map(_component, distributions), *_own_bills(site), *_shared_libraries(site)]
    components = list({each["bom-ref"]: each for each in reversed(parts)}.values())[::-1]
    product = f"pkg:generic/{name}@{version}"
    text = json.dumps(components, sort_keys=True)
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": _SPEC,
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, f"{product}\n{epoch}\n{text}").urn,
        "version": 1,
        "metadata": {
            "timestamp": datetime.datetime.fromtimestamp(epoch, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {"type": "application", "bom-ref": product, "name": name, "version": version},
        },
        "components": components,
        "dependencies": [{"ref": product, "dependsOn": [each["bom-ref"] for each in components]}],
    }
    return json.dumps(document, indent=1) + "\n"


def licences(site: Path, own: str) -> str:
    """Return the licence of the project, then name, version, licence and its text of everything in `site`."""
    parts = [own]
    for each in _distributions(site):
        if each.metadata["Name"] in ("mep", "mep-sdk"):
            continue
        directory = next(site.glob(f"{re.sub('[-_.]+', '?', each.metadata['Name'])}-{each.version}.dist-info"), None)
        files = sorted(path for path in directory.rglob("*") if _is_licence(path)) if directory else []
        head = f"{each.metadata['Name']} {each.version}\nLicence: {_stated_licence(each)}\n"
        texts = [path.read_text(errors="replace").strip() + "\n" for path in files]
        parts.append("\n".join([head, *texts]))
    return f"\n{'-' * 80}\n\n".join(parts)


def _is_licence(path: Path) -> bool:
    return path.is_file() and (path.parent.name == "licenses" or bool(_LICENCE_FILE.match(path.name)))
