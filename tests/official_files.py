"""Files in the layouts of data sets, and what a source makes of them. For tests."""

from pathlib import Path

from vidssl.interfaces import DataSource


def fill(root: Path, *keys: str) -> Path:
    """Files by name only: a source opens none before it is asked for one."""
    root.mkdir(parents=True, exist_ok=True)
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).touch()
    return root


def labelled(source: DataSource) -> dict[str, str]:
    """Key -> name of the class."""
    classes = source.label_classes["class"]
    return {source.key(i): classes[source.labels(i)["class"]] for i in range(len(source))}


def keys(source: DataSource) -> list[str]:
    return [source.key(i) for i in range(len(source))]
