"""Networks as models of `river <https://riverml.xyz>`_, for its metrics, pipelines and evaluation.

It needs river: ``pip install 'akkordeon[river]'``.
"""

try:
    import river.base  # noqa: F401 - to say at once that it is missing
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("akkordeon.river needs river: pip install 'akkordeon[river]'") from error

from akkordeon.river.classifier import Classifier
from akkordeon.river.regressor import Regressor

__all__ = ["Classifier", "Regressor"]
