"""Figures that took long to measure, kept in a file."""
import json
from pathlib import Path
from typing import Any, Iterator, Optional, Tuple, Union

from ..writing import write_whole


class Measurements:
    """A JSON file of figures, written whole after every new one.

    Args:
        path (str or Path): The file, made with the first figure.
        inputs (dict, optional): What the figures depend on, in primitive
            types. Defaults to None: those of the file, to look at it.

    Raises:
        ValueError: The file is there, and is of other inputs or is not a file
            of measurements.
    """

    def __init__(self, path: Union[str, Path], inputs: Optional[dict] = None
                 ) -> None:
        self.path = Path(path)
        self.content: dict = dict(inputs=inputs or {}, figures={})
        if not self.path.exists():
            return
        try:
            self.content = json.loads(self.path.read_text(encoding='utf-8'))
            kept = self.content['inputs']
            self.content['figures'].items(), kept.items()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f'{self.path} is no file of measurements; remove it or give '
                'another name') from None
        if inputs is None:
            return
        other = sorted(key for key in {*inputs, *kept}
                       if inputs.get(key) != kept.get(key))
        if other:
            raise ValueError(
                f'{self.path} was measured with other settings '
                f'({", ".join(other)}); give another --json, or remove it to '
                'measure anew')

    def get(self, key: str) -> Optional[Any]:
        return self.content['figures'].get(key)

    def put(self, key: str, value: Any) -> None:
        # Another process may have measured something else meanwhile.
        there = Measurements(self.path, self.content['inputs'])
        self.content['figures'] = {
            **dict(there.items()), **self.content['figures'], key: value}
        with write_whole(self.path, overwrite=True) as part:
            part.write_text(json.dumps(self.content, indent=1) + '\n',
                            encoding='utf-8')

    def items(self) -> Iterator[Tuple[str, Any]]:
        return iter(self.content['figures'].items())
