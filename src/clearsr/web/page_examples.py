"""Pictures to try the page with: the bundled photographs, made small and damaged as the demo does it."""

import logging
from pathlib import Path

from clearsr.errors import ClearSRError
from clearsr.evaluation.demo import PHOTOGRAPHS, degraded_photograph
from clearsr.image import write_image
from clearsr.web.uploads import Storage

logger = logging.getLogger(__name__)


def write_examples(storage: Storage) -> list[Path]:
    """The files; none if scikit-image, which brings the photographs, is not installed."""
    paths = []
    for name in PHOTOGRAPHS:
        try:
            picture, _ = degraded_photograph(name)
        except ClearSRError as error:
            logger.info("no examples on the page: %s", error)
            return []
        path = storage.examples / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(picture, path)
        paths.append(path)
    return paths
